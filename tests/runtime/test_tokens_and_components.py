"""Tokens and components together: a rank runs its component on its own tokens, on what the step before has left."""

import functools
import itertools
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from asyncdiff import AsyncDiff, ConfigurationError, Method, SplitError
from asyncdiff.denoiser.attention import AttentionCall, AttentionCalls
from asyncdiff.denoiser.graph import Edge
from asyncdiff.plan.tokens import TokenDivision
from asyncdiff.runtime.layout import Layout
from asyncdiff.settings import Settings
from tests.processes import run_ranks
from tests.runtime.test_tokens import ALL_STEPS, division_of
from tests.tiny import PIPELINES, every, run

pytestmark = pytest.mark.filterwarnings("ignore:asyncdiff accelerates nothing")

REUSE = Method("reuse", residual=True, fresh_sum=False)


@pytest.mark.parametrize("name", every("sd3", "modular_z_image_perturbed"))
def test_steps_in_full_are_the_plain_pipeline(name: str) -> None:
    """Three parts of 64 tokens, in one process bit for bit."""
    tiny, pipe = PIPELINES[name], PIPELINES[name].build()
    plain, found, why = run(pipe, tiny), None, ""
    with AsyncDiff(pipe, tokens=3, components=2, warmup=ALL_STEPS, executor="local"):
        try:
            found = run(pipe, tiny)
        except SplitError as error:
            why = str(error)
    if found is None:
        pytest.skip(why)
    assert torch.equal(found, plain)


@dataclass
class Made:
    """What one part's ranks have made in a call: by attention, and by unit."""

    keys: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    outputs: dict[int, Any] = field(default_factory=dict)
    added: dict[Edge, Tensor] = field(default_factory=dict)


class Emulated:
    """Rounds by calls of the whole denoiser with all tokens, for each part and each component.

    In the call for part p and component n, attention in the units of n is given the others' keys of the call before,
    and the units of other components give what they gave for p in the call before, or add it to what they are given
    now. Of the last unit's output each part's tokens are put together. What becomes of other tokens is of no use, and
    reaches nothing. Known of the code under test are the places of tokens, who has which units, and what is added to
    what.

    Of `bridge` calls after the warm-up the first is a round; in the others the last unit gives what it gave before.
    """

    def __init__(self, denoiser: nn.Module, division: TokenDivision, warmup: int, bridge: int) -> None:
        self._denoiser, self._warmup, self._bridge = denoiser, warmup, bridge
        self._layout, self._layers = division.layout, division.layers
        parts, tokens = division.parts.count, division.layout.tokens
        self._bounds = [part * tokens // parts for part in range(parts + 1)]
        self._plain = denoiser.forward
        self._made: list[Made] = []
        self._last: Any = None
        self._calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._calls += 1
        plain = functools.partial(self._plain, *args, **kwargs)
        if self._calls <= self._warmup:
            made, result = self._run(plain, None, 0)
            self._made, self._last = [made for _ in self._bounds[1:]], made.outputs[self._layout.last]
            return result
        if (self._calls - self._warmup - 1) % self._bridge == 0:
            everyone = [Made() for _ in self._made]
            for (part, new), component in itertools.product(enumerate(everyone), range(len(self._layers.components))):
                made, _ = self._run(plain, part, component)
                new.keys |= made.keys
                new.outputs |= made.outputs
                new.added |= made.added
            self._made = everyone
            self._last = self._joined([made.outputs[self._layout.last] for made in everyone])
        with self._hooked(self._layout.last, lambda given, result: self._last):
            return plain()

    def _run(self, plain: Any, part: int | None, component: int) -> tuple[Made, Any]:
        """A call in which all is noted that a component makes; of no part everything is, and nothing replaced."""
        made, given, unit_now = Made(), dict[tuple[int, int], Tensor](), [-1]
        numbers = itertools.count()

        def enter(unit: int, tensors: list[Tensor]) -> None:
            unit_now[0] = unit
            given.update({(unit, place): tensor for place, tensor in enumerate(tensors)})

        def leave(unit: int, result: Any) -> Any:
            unit_now[0] = -1
            leaves, structure = tree_flatten(result)
            bases = {leaf: base for (at, leaf), base in self._layers.bases.items() if at == unit}
            if part is None or self._layers.owner(unit) in (component, None):
                made.outputs[unit] = result
                for leaf, base in bases.items():
                    made.added[Edge(unit, leaf)] = leaves[leaf] - given[base.unit, base.input]
                return result
            old = tree_leaves(self._made[part].outputs[unit])
            for leaf, base in bases.items():
                old[leaf] = self._made[part].added[Edge(unit, leaf)] + given[base.unit, base.input]
            return tree_unflatten(old, structure)

        def answer(call: AttentionCall) -> Tensor:
            if unit_now[0] not in self._layout.inside:
                return call()
            number = next(numbers)
            site = self._layout.sites.get(number)
            if site is None or (part is not None and self._layers.owner(site.unit) != component):
                return call()
            made.keys[number] = call.key, call.value
            if part is None:
                return call()
            mixed = []
            for which, tensor in enumerate((call.key, call.value)):
                new = tensor.clone()
                for other, old in enumerate(self._made):
                    place = slice(site.keys.start + self._bounds[other], site.keys.start + self._bounds[other + 1])
                    if other != part:
                        new[..., place, :] = old.keys[number][which][..., place, :]
                mixed.append(new)
            return call._replace(key=mixed[0], value=mixed[1])()

        with ExitStack() as hooks, AttentionCalls(answer):
            for unit in self._layout.inside:
                module = self._denoiser.get_submodule(self._layout.graph.units[unit].name)
                hooks.callback(module.register_forward_pre_hook(_entering(unit, enter), with_kwargs=True).remove)
                hooks.enter_context(self._hooked(unit, functools.partial(lambda unit, _, out: leave(unit, out), unit)))
            return made, plain()

    @contextmanager
    def _hooked(self, unit: int, output: Any) -> Iterator[None]:
        """While it is entered, a unit gives what a function makes of its arguments and its output."""
        module = self._denoiser.get_submodule(self._layout.graph.units[unit].name)
        hook = module.register_forward_hook(lambda _, given, result: output(given, result))
        try:
            yield
        finally:
            hook.remove()

    def _joined(self, of_parts: list[Any]) -> Any:
        """The last unit's output with every part's own tokens of the picture; the rest is the first part's."""
        leaves, structure = tree_flatten(of_parts[0])
        for leaf, extent in self._layout.outputs.items():
            leaves[leaf] = leaves[leaf].clone()
            for part, own in enumerate(of_parts):
                place = extent.dim, extent.start + self._bounds[part], self._bounds[part + 1] - self._bounds[part]
                leaves[leaf].narrow(*place).copy_(tree_leaves(own)[leaf].narrow(*place))
        return tree_unflatten(leaves, structure)


def _entering(unit: int, enter: Any) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        enter(unit, [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)])

    return hook


@pytest.mark.parametrize(
    ("name", "parts", "components", "method", "bridge"),
    [
        ("sd3", 2, 2, "paper", 1),
        ("flux", 3, 2, REUSE, 1),
        pytest.param("sd3", 3, 3, REUSE, 1, marks=pytest.mark.whole),
        pytest.param("flux", 2, 3, "paper", 4, marks=pytest.mark.whole),
        pytest.param("flux", 2, 2, "paper", 5, marks=pytest.mark.whole),
        pytest.param("sd3_controlnet", 2, 2, REUSE, 1, marks=pytest.mark.whole),
        pytest.param("hunyuan_dit", 3, 2, "paper", 1, marks=pytest.mark.whole),
    ],
)
def test_rounds_use_the_step_before(name: str, parts: int, components: int, method: Any, bridge: int) -> None:
    tiny, pipe = PIPELINES[name], PIPELINES[name].build()
    settings: dict[str, Any] = dict(warmup=2, cooldown=0, method=method, bridge=bridge, executor="local")
    steps = 6 if bridge == 1 else 10
    with AsyncDiff(pipe, tokens=parts, components=components, **settings) as async_diff:
        found = run(pipe, tiny, num_inference_steps=steps)
        division, counts = division_of(async_diff), async_diff.report().denoisers[0].counts
        assert (counts.divided, counts.rounds, counts.bridged > 0) == (2, -(-(steps - 2) // bridge), bridge > 1)
    assert len(division.layers.components) == components and division.between_layers
    assert (method == REUSE) == bool(division.layers.bases)
    plain = run(pipe, tiny, num_inference_steps=steps)
    denoiser = getattr(pipe, tiny.denoiser)
    forward = Emulated(denoiser, division, warmup=2, bridge=bridge)
    denoiser.forward = types.MethodType(lambda self, *args, **kwargs: forward(*args, **kwargs), denoiser)
    try:
        expected = run(pipe, tiny, num_inference_steps=steps)
    finally:
        del denoiser.forward
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(plain.abs().max()))
    assert (found - plain).abs().max() > 100 * (found - expected).abs().max(), "rounds are no steps in full"


LAYOUTS: list[tuple[int, str, dict[str, Any]]] = [
    (4, "sd3", {"tokens": 2, "components": 2}),
    (4, "flux", {"tokens": 2, "components": 2, "bridge": 4, "max_error": 0.5}),
    (4, "wan22", {"tokens": 2, "components": 2, "max_error": 0.05}),
    (4, "qwen_image", {"tokens": 2, "components": 2, "method": Method(bits=4), "resync_every": 2}),
    (4, "hunyuan_dit", {"tokens": 2, "components": 2, "bridge": 2}),  # one component has both ends
    (6, "sd3_controlnet", {"tokens": 3, "components": 2, "time_shift": True}),
    (6, "flux", {"tokens": 2, "components": 3, "method": "paper"}),
    (8, "sd3", {"tokens": 2, "components": 2, "guidance": 2}),
]


def _drawn(rank: int, name: str, settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    tiny, pipe = PIPELINES[name], PIPELINES[name].build()
    with AsyncDiff(pipe, warmup=2, cooldown=0, executor="distributed", timeout=60, **settings):
        run(pipe, tiny)
        rounds = run(pipe, tiny)
    with AsyncDiff(pipe, warmup=ALL_STEPS, executor="distributed", timeout=60, **settings):
        run(pipe, tiny)
        in_full = run(pipe, tiny)  # divided from the first step on
    return rounds, in_full


@pytest.mark.parametrize(
    ("ranks", "name", "settings"),
    [pytest.param(*layout, marks=pytest.mark.whole if number else ()) for number, layout in enumerate(LAYOUTS)],
)
def test_processes_give_what_one_process_gives(ranks: int, name: str, settings: dict[str, Any]) -> None:
    tiny, pipe = PIPELINES[name], PIPELINES[name].build()
    plain = run(pipe, tiny)
    with AsyncDiff(pipe, warmup=2, cooldown=0, executor="local", **settings):
        local = run(pipe, tiny)
    everyone = run_ranks(ranks, _drawn, name, settings)
    scale = float(plain.abs().max())
    for rounds, in_full in everyone:
        assert torch.equal(rounds, everyone[0][0]) and torch.equal(in_full, everyone[0][1])
        torch.testing.assert_close(rounds, local, rtol=0, atol=1e-3 * scale)
        torch.testing.assert_close(in_full, plain, rtol=0, atol=1e-3 * scale)
    assert (local - plain).abs().max() > 10 * (everyone[0][0] - local).abs().max()


def test_what_travels() -> None:
    """Keys among the ranks of a component, of its own attention; between components a part's own tokens, and text."""
    tiny, pipe = PIPELINES["flux"], PIPELINES["flux"].build()
    settings: dict[str, Any] = dict(warmup=2, cooldown=0, method=Method(), executor="local")
    with AsyncDiff(pipe, tokens=3, components=2, **settings) as async_diff:
        run(pipe, tiny)
        division, report = division_of(async_diff), async_diff.report()
    units, tokens = division.layout.graph.units, division.layout.tokens
    pictures = texts = 0
    for edge in division.between_layers:
        leaf = units[edge.unit].outputs[edge.leaf]
        extent = division.layout.made[edge.unit].get(edge.leaf)
        of_picture = 0 if extent is None else leaf.bytes * tokens // leaf.shape[extent.dim]
        pictures, texts = pictures + of_picture, texts + leaf.bytes - of_picture
    assert pictures and texts
    sites = division.layout.sites.values()
    keys = sum(form.bytes * tokens // site.total for site in sites for form in site.forms)
    between = [message for message in division.messages if message.source // 3 != message.reader // 3]
    within = [message for message in division.messages if message.source // 3 == message.reader // 3]
    assert all(message.source % 3 == message.reader % 3 for message in between)
    assert sum(division.bytes_of(message.edges) for message in between) == pictures + 3 * texts
    assert sum(division.bytes_of(message.edges) for message in within) == 2 * keys
    (denoiser,) = report.denoisers
    assert denoiser.bytes_per_round == pictures + 3 * texts + 2 * keys
    assert (report.tokens, report.components, report.world_size) == (3, 2, 6) and "P=3 N=2" in str(report)
    assert "3 parts of the tokens with 2 components" in report.summary
    assert "component 1, part 2: tokens 42 … 63" in str(report)
    assert 1 / division.share < division.modelled_speedup(1000) < 6


def test_one_part_is_components_and_one_component_is_tokens() -> None:
    """Not the same picture only: the same division."""
    ways: list[dict[str, Any]] = [{"components": 2}, {"components": 2, "tokens": 1}]
    ways += [{"tokens": 2}, {"tokens": 2, "components": 1}]
    pictures, divisions = [], []
    for way in ways:
        tiny, pipe = PIPELINES["sd3"], PIPELINES["sd3"].build()
        with AsyncDiff(pipe, warmup=2, cooldown=0, executor="local", **way) as async_diff:
            pictures.append(run(pipe, tiny))
            (runtime,) = async_diff._present()._runtimes.values()
            divisions.append(runtime._computing.division)
    for one, other in ((0, 1), (2, 3)):
        assert torch.equal(pictures[one], pictures[other]) and type(divisions[one]) is type(divisions[other])
        assert divisions[one].described() == divisions[other].described()
        assert divisions[one].messages == divisions[other].messages
    assert not isinstance(divisions[0], TokenDivision) and not divisions[2].between_layers


def test_fresh_keys_leave_components_nothing_to_divide() -> None:
    pipe = PIPELINES["flux"].build()
    with pytest.raises(ConfigurationError, match=r"fresh=True makes every step .*components=2 have nothing"):
        AsyncDiff(pipe, tokens=2, components=2, fresh=True)


def test_more_components_than_units() -> None:
    tiny, pipe = PIPELINES["flux"], PIPELINES["flux"].build()
    with (
        AsyncDiff(pipe, tokens=2, components=100, executor="local"),
        pytest.raises(SplitError, match="too few for components=100"),
    ):
        run(pipe, tiny)


@pytest.mark.parametrize(
    ("ranks", "ways"),
    [
        (4, ["start 6 processes", "use tokens=2"]),
        (9, ["start 6 processes", "name 6 of them", "use components=3"]),
        (5, ["start 6 processes"]),
    ],
)
def test_another_number_of_ranks(ranks: int, ways: list[str]) -> None:
    world: Any = types.SimpleNamespace(size=ranks, rank=0, global_rank=0)
    with pytest.raises(ConfigurationError) as caught:
        Layout(Settings(tokens=3, components=2), world)
    sentence = str(caught.value)
    assert "tokens=3 and components=2 need guidance × tokens × components = 6" in sentence
    assert [way for way in ways if way not in sentence] == []
    assert sentence.count("use ") == sum(way.startswith("use") for way in ways)
