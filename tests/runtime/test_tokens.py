"""Tokens divided over ranks: steps in full are the plain pipeline's, rounds use keys that are one step old."""

import itertools
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_structure, tree_unflatten

from asyncdiff import AsyncDiff, ConfigurationError, Method, SplitError, load_demo
from asyncdiff.denoiser.attention import AttentionCall, AttentionCalls
from asyncdiff.errors import OtherUnitsError
from asyncdiff.plan.token_layout import TokenLayout
from asyncdiff.plan.tokens import TokenDivision
from tests.processes import run_ranks
from tests.tiny import PIPELINES, every, run
from tests.tiny.base import PIXELS

ALL_STEPS = 1000  # more than any generation has
pytestmark = pytest.mark.filterwarnings("ignore:asyncdiff accelerates nothing")


def division_of(async_diff: AsyncDiff) -> TokenDivision:
    """How the only denoiser is divided."""
    (division,) = divisions_of(async_diff)
    return division


def divisions_of(async_diff: AsyncDiff) -> list[TokenDivision]:
    """How those denoisers are divided that were called."""
    attachment = async_diff._attachment
    assert attachment is not None
    divisions = [runtime._computing.division for runtime in attachment._runtimes.values()]
    found = [division for division in divisions if isinstance(division, TokenDivision)]
    assert len(found) == sum(division is not None for division in divisions)
    return found


@pytest.mark.parametrize("name", every("flux", "sd3_controlnet"))
def test_steps_in_full_are_the_plain_pipeline(name: str) -> None:
    """In one process bit for bit; among processes to rounding, since kernels sum in another order."""
    tiny, pipe = PIPELINES[name], PIPELINES[name].build()
    plain, found, why = run(pipe, tiny), None, ""
    with AsyncDiff(pipe, tokens=2, fresh=False, warmup=ALL_STEPS, executor="local"):
        try:
            found = run(pipe, tiny)
        except SplitError as error:
            why = str(error)
    assert torch.equal(run(pipe, tiny), plain), "nothing is left behind"
    if found is None:
        pytest.skip(why)
    assert torch.equal(found, plain)


class Emulated:
    """Rounds by calls of the whole denoiser: rank for rank, keys of the others' tokens are put in from the call before.

    No tokens are cut: what becomes of the others' in a rank's call is of no use, and reaches nothing, since their keys
    are replaced at every attention. Knows of the code under test only where tokens lie.

    Of `bridge` calls after the warm-up the first is a round; in the others the last of the divided units gives what it
    gave in the call before.
    """

    def __init__(self, denoiser: nn.Module, layout: TokenLayout, ranks: int, warmup: int, bridge: int = 1) -> None:
        self._denoiser, self._layout, self._warmup, self._bridge = denoiser, layout, warmup, bridge
        self._bounds = [rank * layout.tokens // ranks for rank in range(ranks + 1)]
        self._made: dict[int, tuple[Tensor, Tensor]] = {}  # by site, of the call before
        self._calls = 0
        self._plain = denoiser.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._calls += 1
        if self._calls <= self._warmup:
            with self._last_unit() as given:
                result, self._made = self._with_keys(None, args, kwargs)
            self._given = tree_leaves(given[0])
            return result
        if (self._calls - self._warmup - 1) % self._bridge:
            with self._last_unit(self._given):
                return self._plain(*args, **kwargs)
        parts, made, last = [], {}, []
        for rank in range(len(self._bounds) - 1):
            with self._last_unit() as given:
                result, keys = self._with_keys(rank, args, kwargs)
            parts.append(result[0])
            last.append(tree_leaves(given[0]))
            for site, pair in keys.items():
                made.setdefault(site, []).append(pair)
        self._made = {
            site: tuple(
                torch.cat([self._tokens(pair[which], site, rank) for rank, pair in enumerate(pairs)], -2)
                for which in (0, 1)
            )
            for site, pairs in made.items()
        }
        self._given = [self._joined(leaf, [leaves[leaf] for leaves in last]) for leaf in range(len(last[0]))]
        # A packed picture, (batch, tokens, channels): every rank's own tokens.
        whole = [part[:, slice(*self._bounds[rank : rank + 2])] for rank, part in enumerate(parts)]
        return (torch.cat(whole, 1),)

    @contextmanager
    def _last_unit(self, instead: list[Tensor] | None = None) -> Iterator[list[Any]]:
        """What the last of the divided units gives; or it gives something else instead."""
        seen: list[Any] = []

        def look(module: nn.Module, given: Any, result: Any) -> Any:
            seen.append(result)
            return None if instead is None else tree_unflatten(instead, tree_structure(result))

        name = self._layout.graph.units[self._layout.last].name
        hook = self._denoiser.get_submodule(name).register_forward_hook(look)
        try:
            yield seen
        finally:
            hook.remove()

    def _joined(self, leaf: int, of_ranks: list[Tensor]) -> Tensor:
        """A leaf of the last unit's output, with every rank's own tokens of the picture; the rest is rank 0's."""
        whole, extent = of_ranks[0].clone(), self._layout.outputs.get(leaf)
        if extent is not None and extent.start is not None:
            for rank, own in enumerate(of_ranks):
                size = self._bounds[rank + 1] - self._bounds[rank]
                place = extent.dim, extent.start + self._bounds[rank], size
                whole.narrow(*place).copy_(own.narrow(*place))
        return whole

    def _tokens(self, tensor: Tensor, site: int, rank: int) -> Tensor:
        start = self._layout.sites[site].keys.start
        return tensor[..., start + self._bounds[rank] : start + self._bounds[rank + 1], :]

    def _with_keys(self, rank: int | None, args: Any, kwargs: Any) -> tuple[Any, dict[int, tuple[Tensor, Tensor]]]:
        numbers, made = itertools.count(), {}

        def answer(call: AttentionCall) -> Tensor:
            number = next(numbers)
            site = self._layout.sites[number]
            pair = [call.key, call.value]
            if rank is None:
                end = site.keys.start + self._layout.tokens
                made[number] = tuple(tensor[..., site.keys.start : end, :] for tensor in pair)
                return call()
            made[number] = tuple(pair)
            mixed = []
            for tensor, old in zip(pair, self._made[number], strict=True):
                new = tensor.clone()
                new[..., site.keys.start : site.keys.start + self._layout.tokens, :] = old
                own = slice(site.keys.start + self._bounds[rank], site.keys.start + self._bounds[rank + 1])
                new[..., own, :] = tensor[..., own, :]
                mixed.append(new)
            return call._replace(key=mixed[0], value=mixed[1])()

        with AttentionCalls(answer):
            return self._plain(*args, **kwargs), made  # type: ignore[return-value]


@contextmanager
def emulated(denoiser: nn.Module, layout: TokenLayout, ranks: int, warmup: int, bridge: int = 1) -> Iterator[None]:
    forward = Emulated(denoiser, layout, ranks, warmup, bridge)
    denoiser.forward = types.MethodType(lambda self, *args, **kwargs: forward(*args, **kwargs), denoiser)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del denoiser.forward


@pytest.mark.parametrize("ranks", [2, 3])
def test_rounds_use_the_keys_of_the_step_before(ranks: int) -> None:
    tiny, pipe = PIPELINES["flux"], PIPELINES["flux"].build()
    settings: dict[str, Any] = dict(tokens=ranks, fresh=False, warmup=2, method="paper", executor="local")
    with AsyncDiff(pipe, **settings) as async_diff:
        found = run(pipe, tiny)
        layout = division_of(async_diff).layout
        counts = async_diff.report().denoisers[0].counts
        assert counts.divided == 2 and counts.rounds > 2
    plain = run(pipe, tiny)
    with emulated(getattr(pipe, tiny.denoiser), layout, ranks, warmup=2):
        expected = run(pipe, tiny)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert (found - plain).abs().max() > 100 * (found - expected).abs().max(), "rounds are no steps in full"


@pytest.mark.parametrize("bridge", [4, 5])  # longer than what is not bridged at the end
def test_a_bridged_step_has_the_last_units_output_of_the_step_before(bridge: int) -> None:
    """With the paper's method, which forecasts nothing: of a call only what comes after the tokens is computed."""
    tiny, pipe = PIPELINES["flux"], PIPELINES["flux"].build()
    settings: dict[str, Any] = dict(tokens=2, fresh=False, warmup=2, method="paper", bridge=bridge, executor="local")
    with AsyncDiff(pipe, **settings) as async_diff:
        found = run(pipe, tiny, num_inference_steps=10)
        division = division_of(async_diff)
        counts = async_diff.report().denoisers[0].counts
        rounds = -(-8 // bridge)
        assert (counts.divided, counts.rounds, counts.bridged) == (2, rounds, 8 - rounds)
        assert division.layout.last == division.layout.last_site and division.made_everywhere
    plain = run(pipe, tiny, num_inference_steps=10)
    with emulated(getattr(pipe, tiny.denoiser), division.layout, 2, warmup=2, bridge=bridge):
        expected = run(pipe, tiny, num_inference_steps=10)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert (found - plain).abs().max() > 100 * (found - expected).abs().max()


def test_as_many_steps_are_bridged_as_a_speed_up_takes() -> None:
    tiny, pipe = PIPELINES["flux"], PIPELINES["flux"].build()
    with AsyncDiff(
        pipe, tokens=2, fresh=False, warmup=2, cooldown=0, target_speedup=2.0, executor="local"
    ) as async_diff:
        run(pipe, tiny, num_inference_steps=12)
        (denoiser,) = async_diff.report().denoisers
    assert denoiser.counts.bridged and denoiser.modelled_speedup >= 2.0


def test_what_is_added_is_forecast_and_not_the_sum() -> None:
    """The last block's output is the first one's input, and what all of them have added to it."""
    tiny, pipe = PIPELINES["sd3"], PIPELINES["sd3"].build()
    with AsyncDiff(pipe, tokens=2, fresh=False, warmup=2, bridge=4, cooldown=0, executor="local") as async_diff:
        run(pipe, tiny)
        division = division_of(async_diff)
    first = division.layout.graph.units[division.layout.first].name
    assert "block" in first and set(division.bases) >= set(division.layout.outputs)


LAYOUTS: dict[int, list[tuple[str, dict[str, Any]]]] = {
    2: [
        ("flux", {"tokens": 2, "fresh": False, "bridge": 4}),
        ("wan22", {"tokens": 2, "fresh": False, "max_error": 0.05}),
        ("qwen_image", {"tokens": 2, "fresh": False}),
    ],
    3: [
        ("sd3_controlnet", {"tokens": 3, "fresh": False}),
        ("flux", {"tokens": 3, "fresh": False, "bridge": 4, "max_error": 0.5}),
    ],
    4: [("sd3", {"tokens": 2, "fresh": False, "guidance": 2})],
}


def _drawn(rank: int, name: str, settings: dict[str, Any]) -> tuple[Tensor, Tensor, int]:
    tiny, pipe = PIPELINES[name], PIPELINES[name].build()
    with AsyncDiff(pipe, warmup=2, executor="distributed", timeout=60, **settings) as async_diff:
        run(pipe, tiny)
        rounds = run(pipe, tiny)
        sent = async_diff.report().bytes_sent
    with AsyncDiff(pipe, warmup=ALL_STEPS, executor="distributed", timeout=60, **settings):
        run(pipe, tiny)
        in_full = run(pipe, tiny)  # divided from the first step on
    return rounds, in_full, sent


@pytest.mark.parametrize(
    ("ranks", "name", "settings"),
    [
        pytest.param(ranks, *layout, marks=() if ranks == 4 else pytest.mark.whole)
        for ranks, layouts in LAYOUTS.items()
        for layout in layouts
    ],
)
def test_processes_give_what_one_process_gives(ranks: int, name: str, settings: dict[str, Any]) -> None:
    tiny, pipe = PIPELINES[name], PIPELINES[name].build()
    plain = run(pipe, tiny)
    with AsyncDiff(pipe, warmup=2, executor="local", **settings):
        local = run(pipe, tiny)
    everyone = run_ranks(ranks, _drawn, name, settings)
    scale = float(plain.abs().max())
    for rounds, in_full, sent in everyone:
        assert torch.equal(rounds, everyone[0][0]) and torch.equal(in_full, everyone[0][1])
        torch.testing.assert_close(rounds, local, rtol=0, atol=1e-3 * scale)
        torch.testing.assert_close(in_full, plain, rtol=0, atol=1e-3 * scale)
        assert sent > 0
    assert (local - plain).abs().max() > 10 * (everyone[0][0] - local).abs().max()


def test_the_report_counts_what_is_divided() -> None:
    tiny, pipe = PIPELINES["flux"], PIPELINES["flux"].build()
    with AsyncDiff(pipe, tokens=3, fresh=False, warmup=2, cooldown=0, method=Method(), executor="local") as async_diff:
        run(pipe, tiny)
        report = async_diff.report()
        division = division_of(async_diff)
    (denoiser,) = report.denoisers
    assert (report.tokens, report.components, report.world_size) == (3, 1, 3)
    assert denoiser.counts.divided == 2 and denoiser.counts.rounds > 2
    assert denoiser.bounds == division.parts.bounds
    keys = sum(form.bytes for site in division.layout.sites.values() for form in site.forms)
    share = division.layout.tokens / next(iter(division.layout.sites.values())).total
    assert denoiser.bytes_per_round == pytest.approx(2 * keys * share)  # each part goes to two others
    assert "P=3" in str(report) and "each device its tokens" in str(report)
    assert 1.0 < denoiser.modelled_speedup < 3.0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sd15", "several sizes"),
        ("sana", "linear attention"),
        ("nucleus_image", "in other ways than by attention"),
    ],
)
def test_what_cannot_be_divided_is_refused_with_the_reason(name: str, reason: str) -> None:
    tiny, pipe = PIPELINES[name], PIPELINES[name].build()
    plain = run(pipe, tiny)
    with AsyncDiff(pipe, tokens=2, executor="local"), pytest.raises(SplitError, match=reason):
        run(pipe, tiny)
    assert torch.equal(run(pipe, tiny), plain)


def _by_hand(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    """Attention as other libraries have it."""
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    return scores.softmax(-1) @ value


def test_attention_that_is_not_seen_any_more_is_an_error() -> None:
    """As with an attention backend of another library, chosen between two generations: a wrong picture, unnoticed."""
    tiny, pipe = PIPELINES["flux"], PIPELINES["flux"].build()
    with AsyncDiff(pipe, tokens=2, fresh=False, warmup=2, executor="local"):
        run(pipe, tiny)

        def unseen(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
            return _by_hand(*(tensor.transpose(1, 2) for tensor in (query, key, value))).transpose(1, 2)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("diffusers.models.transformers.transformer_flux.dispatch_attention_fn", unseen)
            with pytest.raises(OtherUnitsError, match="attention was called 0 times"):
                run(pipe, tiny)
        run(pipe, tiny)


def test_attention_that_a_user_has_put_into_torch_s_place() -> None:
    """As users of SageAttention do it: F.scaled_dot_product_attention = sageattn."""
    tiny, pipe = PIPELINES["flux"], PIPELINES["flux"].build()
    ordinary = run(pipe, tiny)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", _by_hand)
        plain = run(pipe, tiny)
        assert not torch.equal(plain, ordinary)
        with AsyncDiff(pipe, tokens=2, warmup=1000, executor="local"):
            assert torch.equal(run(pipe, tiny), plain)
        assert torch.nn.functional.scaled_dot_product_attention is _by_hand


@pytest.mark.parametrize("other", [{"stride": 2}, {"shard": True}, {"split": [["a"], ["b"]]}])
def test_settings_that_do_not_go_together(other: dict[str, Any]) -> None:
    pipe = PIPELINES["flux"].build()
    with pytest.raises(ConfigurationError, match=f"tokens=2 .* {next(iter(other))}"):
        AsyncDiff(pipe, tokens=2, **other)


def test_more_ranks_than_tokens() -> None:
    tiny, pipe = PIPELINES["flux"], PIPELINES["flux"].build()
    with AsyncDiff(pipe, tokens=1000, executor="local"), pytest.raises(SplitError, match="too few"):
        run(pipe, tiny)


def _too_many(rank: int) -> str:
    try:
        AsyncDiff(PIPELINES["flux"].build(), tokens=3, executor="distributed")
    except ConfigurationError as error:
        return str(error)
    return ""


def test_as_many_channels_as_tokens() -> None:
    """A text that goes from block to block is as wide as the picture is long, and no picture for that."""
    tiny, pipe = PIPELINES["cogview4"], PIPELINES["cogview4"].build()
    with AsyncDiff(pipe, tokens=2, executor="local") as async_diff:
        pipe(**tiny.inputs(pipe) | {"height": PIXELS // 2})
        assert division_of(async_diff).layout.tokens == pipe.transformer.proj_out.in_features
        assert async_diff.report().denoisers[0].counts.divided


def test_another_number_of_ranks() -> None:
    for sentence in run_ranks(2, _too_many):
        assert "tokens=3" in sentence and "start 3 processes" in sentence and "use tokens=2" in sentence


@pytest.mark.whole
def test_forecasts_of_keys_are_closer_than_old_ones_and_than_components() -> None:
    pipe: Any = load_demo("dit")
    pipe.set_progress_bar_config(disable=True)

    def draw() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        picture: Tensor = pipe("rocket", num_inference_steps=20, output_type="pt", generator=generator)[0]
        return picture

    plain, off = draw(), list[float]()
    ways: tuple[dict[str, Any], ...] = (
        {"tokens": 2, "fresh": False},
        {"tokens": 2, "fresh": False, "method": "paper"},
        {"components": 2},
    )
    for way in ways:
        with AsyncDiff(pipe, warmup=4, guidance=1, executor="local", **way):
            off.append(float((draw() - plain).norm()))
    assert off[0] < min(off[1:])
