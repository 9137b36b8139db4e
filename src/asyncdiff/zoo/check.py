"""The checks that a specimen must pass, each against something that does not know the code under test."""

import copy
import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from asyncdiff.api import AsyncDiff
from asyncdiff.call import Call, tensors_of
from asyncdiff.denoiser.form import CallForm
from asyncdiff.denoiser.graph import Edge, build_graph
from asyncdiff.denoiser.rates import CPU
from asyncdiff.denoiser.trace import record
from asyncdiff.errors import AsyncDiffError
from asyncdiff.plan.division import Division, divide_denoiser
from asyncdiff.plan.partition import BALANCE_TOLERANCE
from asyncdiff.plan.schedule import Schedule
from asyncdiff.zoo.specimen import Specimen, is_time
from asyncdiff.zoo.tokens import why_tokens_stay_whole

COMPONENTS = (2, 3, 4)

# Steps of a generation and its warm-up, by stride. With stride 2 the last round has labels beyond the last step.
_STEPS = {1: (4, 2), 2: (4, 1)}

UnitKey = tuple[str, int]
"""A module's name, and how many calls of it came before in the pass, those inside of other units left out."""


class CheckFailedError(AsyncDiffError):
    """A denoiser does not behave as asyncdiff needs it to; the message says in what."""


@dataclass(frozen=True)
class Finding:
    """What the checks found of one specimen.

    Attributes:
        kind: the class's name.
        variant: what is special about the specimen, where the class has several.
        ok: whether all checks passed.
        reason: why not.
        units: how many calls of units one pass consists of.
        live_edges: how many tensors cross in a round of two components.
        balance: for N = 2, 3, 4, the heaviest component's share of the cost of a call.
        whole_tokens: why its tokens cannot be divided; empty where they can, None where that was not looked at.
    """

    kind: str
    variant: str = ""
    ok: bool = True
    reason: str = ""
    units: int | None = None
    live_edges: int | None = None
    balance: Mapping[int, float] = field(default_factory=dict)
    whole_tokens: str | None = None


@torch.no_grad()
def check(specimen: Specimen) -> Finding:
    """Run all checks on a specimen.

    Raises:
        AsyncDiffError: one of them failed.
    """
    subject = _Subject(specimen)
    live_edges, balance = 0, {}
    for components in COMPONENTS:
        division = subject.divide(components)
        _check_balance(subject, division)
        _check_live_edges(subject, division)
        for stride in _STEPS:
            _check_executor(subject, subject.divide_as_run(components), stride)
        balance[components] = max(division.partition.shares)
        if components == COMPONENTS[0]:
            live_edges = sum(len(reads) for reads in division.partition.reads)
    _check_warm_up_only(subject)
    return Finding(
        specimen.kind,
        specimen.variant,
        units=len(subject.graph.units),
        live_edges=live_edges,
        balance=balance,
        whole_tokens=why_tokens_stay_whole(
            subject.model, Call(subject.model.__call__, (), subject.inputs(0)), subject.trace, subject.graph
        ),
    )


class _Subject:
    """A specimen's model, its calls at the steps of a generation, and what the plain model makes of the first one."""

    def __init__(self, specimen: Specimen) -> None:
        self.specimen = specimen
        self._times = specimen.times()
        self.model = specimen.build()
        first = self.inputs(0)
        self.plain = tensors_of(self.model(**first))
        call = Call(self.model.forward, (), self.inputs(0))
        result, self.trace = record(self.model, call)
        self._batch = CallForm(self.model).batch(call)
        _expect(_is_equal(tensors_of(result), self.plain), "recording the call changes its result")
        _expect(all(bool(leaf.isfinite().all()) for leaf in self.plain), "the plain model's output is not finite")
        self.rates = CPU
        self.graph = build_graph(self.trace, self.rates)

    def divide(self, components: int) -> Division:
        """As its costs are for the recorded batch."""
        return divide_denoiser(self.trace, Schedule(components, 1, 1), None, self.rates)

    def divide_as_run(self, components: int) -> Division:
        """As AsyncDiff divides it, whatever the batch is."""
        trace = replace(self.trace, batch=self._batch)
        return divide_denoiser(trace, Schedule(components, 1, 1), None, self.rates)

    def inputs(self, step: int, label: int | None = None) -> dict[str, Any]:
        """The arguments of the call at a step, with the timestep of another one where `label` says so."""
        given = self.specimen.inputs()
        times = {name: _later(given.pop(name), step if label is None else label) for name in self._times}
        constant = {name: given.pop(name) for name in list(given) if is_time(name)}
        leaves, structure = tree_flatten(given)
        generator = torch.Generator().manual_seed(1 + step)
        moved = tree_unflatten([_moved(leaf, generator) for leaf in leaves], structure)
        return {**moved, **constant, **times}

    def timesteps(self, steps: int) -> list[float]:
        time = torch.as_tensor(self.specimen.inputs()[self.specimen.time])
        return [float(torch.as_tensor(_later(time, step)).max()) for step in range(steps)]


def _moved(leaf: Any, generator: torch.Generator) -> Any:
    """Another value of the same kind; what holds whole numbers only is a mask or positions, and stays."""
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or bool((leaf == leaf.round()).all()):
        return leaf
    return leaf + 0.05 * torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)


def _later(time: Any, step: int) -> Any:
    """The timestep argument some steps later: all noise levels are lower, and none stays none.

    In numbers of few binary digits: one that is derived from another series of them is exact.
    """
    if isinstance(time, Tensor) and time.is_floating_point():
        return (time * 1024).round() / 1024 * (1 - step / 16)
    if isinstance(time, float):
        return round(time * 1024) / 1024 * (1 - step / 16)
    return time - step * (time > 0)


def _is_equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise CheckFailedError(otherwise)


Rule = Callable[[UnitKey, Callable[[], Any], tuple[Any, ...]], Any]
"""What to do at a unit call: given its key, how to run it, and the tensors that it was given."""


@contextmanager
def _interposed(model: nn.Module, keys: Sequence[UnitKey], rule: Rule) -> Iterator[None]:
    """Ask the rule at every unit call of one pass. Knows units by name only."""
    counts: dict[str, int] = {}
    wanted = set(keys)
    inside = False

    def stand_in(name: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        if inside:
            return forward(*args, **kwargs)
        key = (name, counts.get(name, 0))
        counts[name] = key[1] + 1
        if key not in wanted:
            return forward(*args, **kwargs)
        inside = True
        try:
            given = tuple(tensors_of((args, kwargs)))
            return rule(key, functools.partial(forward, *args, **kwargs), given)
        finally:
            inside = False

    replaced = {name: model.get_submodule(name) for name, _ in keys}
    for name, module in replaced.items():
        module.forward = functools.partial(stand_in, name, module.forward)
    try:
        yield
    finally:
        for module in replaced.values():
            del module.forward


class _Kept:
    """A unit's output as it was when the unit returned."""

    def __init__(self, output: Any, given: Sequence[Tensor]) -> None:
        leaves, self.structure = tree_flatten(output)
        places = {id(tensor): place for place, tensor in enumerate(given)}
        # What a unit merely hands on is not its output.
        self.handed_on = {number: places[id(leaf)] for number, leaf in enumerate(leaves) if id(leaf) in places}
        self.leaves = _copied(leaves)

    def again(self, given: Sequence[Tensor], leaves: Sequence[Any] | None = None) -> Any:
        """The output once more, or other leaves in its place."""
        made = _copied(self.leaves if leaves is None else leaves)
        for number, place in self.handed_on.items():
            made[number] = given[place]
        return tree_unflatten(made, self.structure)


def _copied(leaves: Sequence[Any]) -> list[Any]:
    """Copies, of which two are one tensor where the originals are."""
    memo: dict[int, Any] = {}
    return [copy.deepcopy(leaf, memo) for leaf in leaves]


def _check_balance(subject: _Subject, division: Division) -> None:
    """The heaviest component is as light as contiguous parts of these units can be, to the tolerance."""
    graph, partition = division.graph, division.partition
    costs = [subject.graph.units[unit].cost for unit in subject.graph.divisible]
    heaviest = max(sum(graph.units[unit].cost for unit in own) for own in partition.components)
    best = _lightest(costs, len(partition.components))
    _expect(
        heaviest <= best * (1 + BALANCE_TOLERANCE) * (1 + 1e-9),
        f"N={len(partition.components)}: the heaviest component costs {heaviest:.0f}, although {best:.0f} is possible",
    )


def _lightest(costs: Sequence[float], parts: int) -> float:
    """The least possible cost of the heaviest of some contiguous parts: every last cut is tried."""
    sums = [0.0, *itertools.accumulate(costs)]
    best = list(sums)
    for _ in range(parts - 1):
        best = [min(max(best[cut], sums[end] - sums[cut]) for cut in range(end + 1)) for end in range(len(sums))]
    return best[-1]


def _check_live_edges(subject: _Subject, division: Division) -> None:
    """A component needs the live edges that it reads, every one of them, and nothing else of the others."""
    graph, partition = division.graph, division.partition
    number_of = {(unit.name, unit.ordinal): number for number, unit in enumerate(graph.units)}
    plain: dict[int, _Kept] = {}

    def keep(key: UnitKey, run: Callable[[], Any], given: tuple[Any, ...]) -> Any:
        output = run()
        plain[number_of[key]] = _Kept(output, given)
        return output

    inputs = subject.inputs(0)
    with _interposed(subject.model, list(number_of), keep):
        result = subject.model(**inputs)
    _expect(_is_equal(tensors_of(result), subject.plain), "looking at units changes the output")
    _expect(plain.keys() == set(number_of.values()), "units were not called as often as recorded")

    def results_of(component: int, known: frozenset[Edge]) -> list[Tensor]:
        """What a component's pass makes for others, with NaN in the place of what is not known to it."""
        made: dict[int, list[Any]] = {}

        def rule(key: UnitKey, run: Callable[[], Any], given: tuple[Any, ...]) -> Any:
            unit = number_of[key]
            if partition.owner(unit) in (component, None):
                output = run()
                made[unit] = _copied(tree_leaves(output))
                return output
            origins = graph.units[unit].origins
            poisoned: dict[int, Any] = {}
            leaves = []
            for number, leaf in enumerate(plain[unit].leaves):
                origin = origins[number]
                if origin not in poisoned:
                    poisoned[origin] = leaf if Edge(unit, origin) in known else _poison(leaf)
                leaves.append(poisoned[origin])
            return plain[unit].again(given, leaves)

        with _interposed(subject.model, list(number_of), rule):
            output = subject.model(**subject.inputs(0))
        found = [made[edge.unit][edge.leaf] for edge in wanted[component]]
        return found + (tensors_of(output) if component == partition.predictor else [])

    everyone = range(len(partition.components))
    read = sorted(frozenset[Edge]().union(*partition.reads))
    wanted = [[edge for edge in read if partition.owner(edge.unit) == component] for component in everyone]
    for component in everyone:
        reads = partition.reads[component]
        expected = [plain[edge.unit].leaves[edge.leaf] for edge in wanted[component]]
        expected += subject.plain if component == partition.predictor else []
        who = f"N={len(everyone)}: component {component}"
        _expect(_is_equal(results_of(component, reads), expected), f"{who} needs more than the live edges found")
        for edge in sorted(reads):
            found = results_of(component, reads - {edge})
            name = f"{graph.units[edge.unit].name} → {edge.leaf}"
            _expect(not all(bool(leaf.isfinite().all()) for leaf in found), f"{who} does not need {name}")


def _poison(leaf: Any) -> Any:
    if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
        return torch.full_like(leaf, float("nan"))
    return leaf


class Pipeline(SimpleNamespace):
    """As much of a pipeline as asyncdiff looks at."""


class _Timesteps:
    """A scheduler that does nothing but to count."""

    def __init__(self, timesteps: Sequence[float]) -> None:
        self.timesteps: Sequence[float] = ()
        self._coming = timesteps

    def set_timesteps(self) -> None:
        self.timesteps = self._coming

    def step(self, model_output: Any, timestep: float) -> None:
        """One step further."""


def _generate(subject: _Subject, steps: int, components: int, stride: int, warmup: int) -> list[list[Tensor]]:
    """The noise predictions of the real executor, all ranks in this process."""
    scheduler = _Timesteps(subject.timesteps(steps))
    parts = {"denoiser": subject.model, "scheduler": scheduler}
    pipe = Pipeline(components=parts, **parts)
    found = []
    with AsyncDiff(pipe, components, stride, warmup, executor="local", method="paper") as async_diff:
        scheduler.set_timesteps()
        for step, timestep in enumerate(scheduler.timesteps):
            result = subject.model(**subject.inputs(step))
            found.append([leaf.clone() for leaf in tensors_of(result)])
            scheduler.step(result, timestep)
        counts = async_diff.report().denoisers[0].counts
    expected = -(-max(steps - warmup, 0) // stride)
    _expect(counts.rounds == expected, f"N={components} S={stride}: {counts.rounds} rounds instead of {expected}")
    return found


def _check_warm_up_only(subject: _Subject) -> None:
    """As long as the warm-up lasts, the output is the plain model's, bit for bit."""
    steps = 2
    plain = [tensors_of(subject.model(**subject.inputs(step))) for step in range(steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that nothing is accelerated
        found = _generate(subject, steps, COMPONENTS[0], 1, steps)
    _expect(all(map(_is_equal, found, plain)), "the warm-up's output is not the plain model's")


def _check_executor(subject: _Subject, division: Division, stride: int) -> None:
    """The executor's predictions are those of the plain recurrence."""
    steps, warmup = _STEPS[stride]
    components = len(division.partition.components)
    found = _generate(subject, steps, components, stride, warmup)
    for step, expected in _recurrence(subject, division, steps, stride, warmup):
        _expect(
            _is_equal(found[step], expected),
            f"N={components} S={stride} w={warmup}: step {step} is not what the recurrence of the paper gives",
        )


def _recurrence(
    subject: _Subject, division: Division, steps: int, stride: int, warmup: int
) -> Iterator[tuple[int, list[Tensor]]]:
    """The paper's recurrence (sections 3.2, 3.3), written down as it stands there.

    In a round every component runs once, in a pass of the whole denoiser in which EVERY unit of the other
    components gives what that component's own pass made of it one round before. Only which component computes which
    unit is taken from the division: nothing is known of live edges.
    """
    components, predictor = len(division.partition.components), division.partition.predictor
    owner = {(unit.name, unit.ordinal): division.partition.owner(n) for n, unit in enumerate(division.graph.units)}
    before: dict[UnitKey, _Kept] = {}

    def compute(component: int | None, inputs: dict[str, Any]) -> tuple[list[Tensor], dict[UnitKey, _Kept]]:
        made: dict[UnitKey, _Kept] = {}

        def rule(key: UnitKey, run: Callable[[], Any], given: tuple[Any, ...]) -> Any:
            if component is not None and owner[key] not in (component, None):
                return before[key].again(given)
            output = run()
            made[key] = _Kept(output, given)
            return output

        with _interposed(subject.model, list(owner), rule):
            return tensors_of(subject.model(**inputs)), made

    for step in range(warmup):
        prediction, before = compute(None, subject.inputs(step))
        yield step, prediction
    for first in range(warmup, steps, stride):
        last = min(first + stride, steps) - 1
        label = min(first + stride - 1, steps - 1)
        for step in range(first, first + stride - 1):
            if step <= last:
                yield step, compute(predictor, subject.inputs(first, step))[0]
        after: dict[UnitKey, _Kept] = {}
        predictions = []
        for component in range(components):
            prediction, made = compute(component, subject.inputs(first, label))
            predictions.append(prediction)
            after |= {key: kept for key, kept in made.items() if owner[key] == component}
        if first + stride - 1 < steps:
            yield first + stride - 1, predictions[predictor]
        before = after
