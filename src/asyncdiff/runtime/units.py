"""The hooks on a denoiser's units: run them, keep or pass on what they make, or substitute it."""

import functools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_unflatten

from asyncdiff.call import Call
from asyncdiff.denoiser.graph import Edge, Graph, UnitCall
from asyncdiff.errors import OtherUnitsError, ShapeChangedError
from asyncdiff.exchange.protocol import Channel
from asyncdiff.exchange.store import Reading
from asyncdiff.hooks import intercept_call, is_intercepted
from asyncdiff.plan.division import Division
from asyncdiff.plan.partition import Partition
from asyncdiff.plan.schedule import Task, Version
from asyncdiff.report import Counts
from asyncdiff.runtime.fillers import Fillers


@dataclass(frozen=True)
class UnitRule:
    """What to do when a unit is called.

    Attributes:
        run: given the unit's number in the graph, and the call.
        answers: for units of which nothing is read and nothing has to be known, by name and ordinal.
        counts: of units run and skipped.
    """

    run: Callable[[int, Call], Any]
    counts: Counts
    answers: Mapping[tuple[str, int], Any] = field(default_factory=dict)


@dataclass
class _Walk:
    graph: Graph
    rule: UnitRule
    calls: dict[str, int] = field(default_factory=dict)
    is_in_unit: bool = False


class UnitHooks:
    """Hooks on the units of one denoiser; without a walk they change nothing.

    A walk is of the thread that makes it: what other threads call meanwhile is no part of it.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self._denoiser = denoiser
        self._undo: dict[str, Callable[[], None]] = {}
        self._walks: dict[int, _Walk] = {}  # by thread

    @property
    def is_walking(self) -> bool:
        """Whether a walk of this thread is under way."""
        return threading.get_ident() in self._walks

    def add(self, graph: Graph) -> None:
        """Hook the units of a graph that are not hooked yet, and what was not called when it was recorded."""
        for name in (*graph.calls, *graph.idle):
            module = self._denoiser.get_submodule(name)
            if name not in self._undo or not is_intercepted(module):
                self._undo[name] = intercept_call(
                    module, functools.partial(self._on_call, name), functools.partial(self._answer, name)
                )

    def keep(self, graphs: Sequence[Graph]) -> None:
        """Hook the units of some graphs, and no others."""
        names = {name for graph in graphs for name in (*graph.calls, *graph.idle)}
        for name in self._undo.keys() - names:
            self._undo.pop(name)()
        for graph in graphs:
            self.add(graph)

    def remove(self) -> None:
        """Leave all units as they were."""
        for undo in self._undo.values():
            undo()
        self._undo.clear()

    def walk(self, graph: Graph, rule: UnitRule, call: Call) -> Any:
        """Make a call of the denoiser with a rule for its units.

        Raises:
            OtherUnitsError: it calls other units than the recorded call, or not as often.
        """
        thread = threading.get_ident()
        walk = self._walks[thread] = _Walk(graph, rule)
        try:
            result = call.with_own_containers()()
        finally:
            del self._walks[thread]
        if walk.calls != graph.calls:  # divisions may be of different units; those of others are counted as well
            _check_calls(graph, walk.calls)
        return result

    def _on_call(self, name: str, call: Call) -> Any:
        walk = self._walks.get(threading.get_ident())
        if walk is None or walk.is_in_unit:
            return call()
        ordinal = walk.calls.get(name, 0)
        walk.calls[name] = ordinal + 1
        unit = walk.graph.index.get((name, ordinal))
        if unit is None:
            return call()
        walk.is_in_unit = True
        try:
            return walk.rule.run(unit, call)
        finally:
            walk.is_in_unit = False

    def _answer(self, name: str) -> Any:
        """The output of a unit's next call, where it does not depend on the call."""
        walk = self._walks.get(threading.get_ident())
        if walk is None or walk.is_in_unit:
            return None
        ordinal = walk.calls.get(name, 0)
        known = walk.rule.answers.get((name, ordinal))
        if known is not None:
            walk.calls[name] = ordinal + 1
            walk.rule.counts.units_skipped += 1
        return known


def keep_what_ranks_read(division: Division, ranks: Iterable[int], channel: Channel, counts: Counts) -> UnitRule:
    """The rule of a full step that others follow on: run every unit, and store what the ranks will read.

    It raises ShapeChangedError where the division was made for tensors of other shapes.
    """
    readers: dict[Edge, list[int]] = {}
    for rank in ranks:
        for edge in division.reads_of(rank):
            readers.setdefault(edge, []).append(rank)
    residuals = _Residuals(division.partition)

    def rule(unit: int, call: Call) -> Any:
        known = division.graph.units[unit]
        residuals.note(unit, call)
        result = call()
        for number, leaf in enumerate(tree_leaves(result)):
            _check_shape(known, number, leaf)
            edge = Edge(unit, number)
            if edge in readers:
                kept = residuals.of(edge, _unshared(known, edge, leaf))
                for rank in readers[edge]:
                    channel.stores[rank].put(edge, kept)
        return result

    return UnitRule(rule, counts)


@dataclass(frozen=True)
class Work:
    """What the tasks of a step share.

    Attributes:
        division: the divided denoiser.
        channel: where live edges come from, and go to.
        fillers: what stands for outputs that nothing reads.
        counts: of units run and skipped.
        moment: the place of a step's label in the scheduler's own time.
        everywhere: for each rank of this process, the results of units that every device runs, if they will be needed
            again with the same label.
    """

    division: Division
    channel: Channel
    fillers: Fillers
    counts: Counts
    moment: Callable[[int], float]
    everywhere: dict[int, dict[int, Any]] = field(default_factory=dict)


def compute_task(work: Work, task: Task, kept: frozenset[Edge]) -> UnitRule:
    """The rule of a round: run the task's own units and pass on what others read; substitute the rest.

    `kept` are the live edges that will be read.
    """
    division, partition, counts = work.division, work.division.partition, work.counts
    own = frozenset[int]() if task.component is None else partition.components[task.component]
    replicated = division.replicated
    again = work.everywhere.setdefault(task.rank, {}) if task.completes else None
    passed_on = kept if task.feeds else kept & division.own_reads_of(task.rank)
    makers = {edge.unit for edge in passed_on}
    residuals = _Residuals(partition)
    reads = frozenset[Edge]() if task.component is None else partition.reads[task.component]
    received = _Received(work, task.rank, task.reads, task.label, reads)

    def rule(unit: int, call: Call) -> Any:
        residuals.note(unit, call)
        if unit not in own and unit not in replicated:
            counts.units_skipped += 1
            return _substitute(work, unit, residuals, received, call)
        counts.units_run += 1
        result = call()
        if unit in makers:
            known = division.graph.units[unit]
            for number, leaf in enumerate(tree_leaves(result)):
                edge = Edge(unit, number)
                if edge in passed_on:
                    _check_shape(known, number, leaf)
                    work.channel.made(task.rank, edge, residuals.of(edge, _unshared(known, edge, leaf)))
        elif again is not None and unit in division.independent and not division.graph.units[unit].overwritten:
            again[unit] = result
        return result

    return UnitRule(rule, counts, _answers(work, own | replicated, received, residuals))


def complete_task(work: Work, task: Task) -> UnitRule:
    """The rule for the denoiser's last layers: run them on what all components have made; substitute the rest."""
    partition, counts = work.division.partition, work.counts
    residuals = _Residuals(partition)
    made = frozenset[int]() if task.component is None else partition.components[task.component]
    received = _Received(work, task.rank, task.completes, task.label, partition.end.reads, made)
    run = partition.end.units | work.division.replicated
    known = work.everywhere.get(task.rank, {})

    def rule(unit: int, call: Call) -> Any:
        residuals.note(unit, call)
        if unit in known:
            return known[unit]
        if unit in run:
            counts.units_run += 1
            return call()
        counts.units_skipped += 1
        return _substitute(work, unit, residuals, received, call)

    return UnitRule(rule, counts, _answers(work, run, received, residuals))


class _Residuals:
    """Turns outputs into residuals, and back, with what the units are given in this walk."""

    def __init__(self, partition: Partition) -> None:
        self._bases = partition.bases
        self._wanted = partition.base_inputs
        self._given: dict[tuple[int, int], Tensor] = {}

    @property
    def units(self) -> frozenset[int]:
        """The units whose inputs are wanted."""
        return frozenset(self._wanted)

    def note(self, unit: int, call: Call) -> None:
        """A unit is about to be called."""
        if unit in self._wanted:
            tensors = call.tensors
            for place in self._wanted[unit]:
                self._given[unit, place] = tensors[place]

    def of(self, edge: Edge, output: Tensor) -> Tensor:
        """The form in which an output travels."""
        base = self._bases.get(edge)
        return output if base is None else output - self._given[base.unit, base.input]

    def added(self, edge: Edge, sent: Tensor) -> Tensor:
        """The output, from the form in which it travels."""
        base = self._bases.get(edge)
        return sent if base is None else sent + self._given[base.unit, base.input]


class _Received:
    """What a rank holds of live edges, forecast to the label of its task.

    Attributes:
        units: those of which something is read.

    Args:
        reads: the edges that are read.
        exact: the units, if any, whose edges the rank made itself with this very label.
    """

    def __init__(
        self,
        work: Work,
        rank: int,
        versions: Sequence[Version],
        label: int,
        reads: frozenset[Edge],
        exact: frozenset[int] = frozenset(),
    ) -> None:
        self.units = frozenset(edge.unit for edge in reads)
        self._reads = reads
        self._exact = exact
        self._output_reads = work.division.graph.output_reads
        self._store = work.channel.stores[rank]
        # One version is the newest, wherever it lies: with the paper's method no scheduler need be understood.
        is_timed = len(versions) > 1
        self._reading = Reading(
            steps=tuple(version.step for version in versions),
            times=tuple(work.moment(version.label) for version in versions) if is_timed else (0.0,),
            target=work.moment(label) if is_timed else 0.0,
            method=work.division.method,
            among=self._store.spans_of(reads, exact),
        )

    def has(self, edge: Edge) -> bool:
        return edge in self._reads

    def tensor(self, edge: Edge) -> Tensor:
        if edge.unit in self._exact:
            found = self._store.newest(edge, self._reading.steps[0])
        else:
            found = self._store.expected(edge, self._reading)
        # What a pipeline is given it may hold longer than a version lasts.
        return found.clone() if edge in self._output_reads else found


def _answers(
    work: Work, run: frozenset[int], received: "_Received", residuals: "_Residuals"
) -> Mapping[tuple[str, int], Any]:
    """Fillers for the units that are not run, of which nothing is read, and whose inputs nobody adds to."""
    needed = run | received.units | residuals.units
    return work.fillers.answers(needed)


def _substitute(work: Work, unit: int, residuals: _Residuals, received: _Received, call: Call) -> Any:
    """A unit's output, made of what was received for it."""
    known = work.division.graph.units[unit]
    given = call.tensors if any(leaf.input_index is not None for leaf in known.outputs) else []
    made: list[Any] = []
    for number, leaf in enumerate(known.outputs):
        origin = known.origins[number]
        edge = Edge(unit, origin)
        if leaf.value is None:
            made.append(leaf.constant)
        elif leaf.input_index is not None:
            made.append(given[leaf.input_index])
        elif origin != number:
            made.append(made[origin])
        elif received.has(edge):
            made.append(_unshared(known, edge, residuals.added(edge, received.tensor(edge))))
        else:
            made.append(work.fillers.leaf(unit, number))
    return tree_unflatten(made, known.structure)


def _check_calls(graph: Graph, calls: Mapping[str, int]) -> None:
    """Whether the units were called that were called when the denoiser was recorded, and no other part of it."""
    for name in (*graph.calls, *sorted(graph.idle)):
        found, recorded = calls.get(name, 0), graph.calls.get(name, 0)
        if found != recorded:
            raise OtherUnitsError(
                f"{name!r} was called {_times(found)}, and {_times(recorded)} when the denoiser was recorded: another "
                "rule decides which blocks run (a cache like TeaCache's, for instance), and two do not go together; "
                "take it off, or call disable()"
            )


def _times(count: int) -> str:
    return {0: "not at all", 1: "once"}.get(count, f"{count} times")


def _check_shape(known: UnitCall, number: int, leaf: Any) -> None:
    """Shapes inside of a denoiser may depend on values: it may cut a text where its mask ends."""
    shape = tuple(leaf.shape) if isinstance(leaf, Tensor) else ()
    recorded = known.outputs[number].shape
    if shape != recorded:
        raise ShapeChangedError(
            f"unit {known.name!r} gives a tensor of shape {shape}, and gave one of {recorded} when it was recorded; "
            "what a round reads must have the same shape in all rounds"
        )


def _unshared(known: UnitCall, edge: Edge, tensor: Tensor) -> Tensor:
    """The tensor, or a copy where the denoiser writes to it later on."""
    return tensor.clone() if edge.leaf in known.overwritten else tensor
