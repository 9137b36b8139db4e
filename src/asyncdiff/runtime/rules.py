"""What is done at the units of a denoiser in a step of each kind: run, keep, pass on, substitute."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from asyncdiff.call import Call
from asyncdiff.denoiser.graph import Edge, Graph, UnitCall
from asyncdiff.errors import ShapeChangedError
from asyncdiff.exchange.protocol import Channel
from asyncdiff.exchange.store import Reading
from asyncdiff.plan.division import Division
from asyncdiff.plan.partition import Partition
from asyncdiff.plan.schedule import Task, Version
from asyncdiff.report import Counts
from asyncdiff.runtime.fillers import Fillers
from asyncdiff.runtime.units import UnitRule


def keep_what_ranks_read(division: Division, ranks: Iterable[int], channel: Channel, counts: Counts) -> UnitRule:
    """The rule of a full step that others follow on: run every unit, and store what the ranks will read.

    It raises ShapeChangedError where the division was made for tensors of other shapes.
    """
    readers: dict[Edge, list[int]] = {}
    for rank in ranks:
        for edge in division.kept_by(rank):
            readers.setdefault(edge, []).append(rank)
    residuals = Residuals(division.partition)

    def rule(unit: int, call: Call) -> Any:
        known = division.graph.units[unit]
        residuals.note(unit, call)
        result = call()
        for number, leaf in enumerate(tree_leaves(result)):
            check_shape(known, number, leaf)
            edge = Edge(unit, number)
            if edge in readers:
                kept = residuals.of(edge, unshared(known, edge, leaf))
                for rank in readers[edge]:
                    channel.keep(rank, edge, kept)
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
    division, partition = work.division, work.division.partition
    run = division.replicated if task.component is None else division.run_by[task.component]
    again = work.everywhere.setdefault(task.rank, {}) if task.completes else None
    residuals = Residuals(partition)
    reads = frozenset[Edge]() if task.component is None else partition.reads[task.component]
    received = Received(work, task.rank, task.reads, task.label, reads)
    component = run_component(
        graph=division.graph,
        run=run,
        passed_on=kept if task.feeds else kept & division.own_reads_of(task.rank),
        made=functools.partial(work.channel.made, task.rank),
        known=received.of(residuals),
        residuals=residuals,
        fillers=work.fillers,
        counts=work.counts,
    )

    answers = _answers(work, run, received)
    if again is None:
        return UnitRule(component, work.counts, answers)

    def rule(unit: int, call: Call) -> Any:
        result = component(unit, call)
        if unit in division.independent and not division.graph.units[unit].overwritten:
            again[unit] = result
        return result

    return UnitRule(rule, work.counts, answers)


def run_component(
    graph: Graph,
    run: frozenset[int],
    passed_on: frozenset[Edge],
    made: Callable[[Edge, Tensor], None],
    known: Callable[[Edge], Tensor | None],
    residuals: "Residuals",
    fillers: Fillers,
    counts: Counts,
) -> Callable[[int, Call], Any]:
    """What gives the output of each unit where some are run, given its number and its call.

    Args:
        run: the units that are.
        passed_on: the live edges that others read.
        made: is given them, in the form in which they travel.
        known: gives a live edge of a unit that is not run; None where it is not read.
    """
    makers = {edge.unit for edge in passed_on}

    def output(unit: int, call: Call) -> Any:
        residuals.note(unit, call)
        if unit not in run:
            counts.units_skipped += 1
            return substitute(graph, fillers, unit, call, known)
        counts.units_run += 1
        result = call()
        if unit in makers:
            maker = graph.units[unit]
            for number, leaf in enumerate(tree_leaves(result)):
                edge = Edge(unit, number)
                if edge in passed_on:
                    check_shape(maker, number, leaf)
                    made(edge, residuals.of(edge, unshared(maker, edge, leaf)))
        return result

    return output


def complete_task(work: Work, task: Task) -> UnitRule:
    """The rule for the denoiser's last layers: run them on what all components have made; substitute the rest."""
    partition, counts = work.division.partition, work.counts
    residuals = Residuals(partition)
    made = frozenset[int]() if task.component is None else partition.components[task.component]
    received = Received(work, task.rank, task.completes, task.label, partition.end.reads, made)
    run = work.division.run_at_the_end
    known = work.everywhere.get(task.rank, {})

    def rule(unit: int, call: Call) -> Any:
        residuals.note(unit, call)
        if unit in known:
            return known[unit]
        if unit in run:
            counts.units_run += 1
            return call()
        counts.units_skipped += 1
        return substitute(work.division.graph, work.fillers, unit, call, received.of(residuals))

    return UnitRule(rule, counts, _answers(work, run, received))


class Residuals:
    """Turns outputs into residuals, and back, with what the units are given in a walk."""

    def __init__(self, partition: Partition) -> None:
        self._bases = partition.bases
        self._wanted = partition.base_inputs
        self._given: dict[tuple[int, int], Tensor] = {}

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


class Received:
    """What a rank holds of live edges, forecast to the label of its task.

    Attributes:
        reads: those that are read.

    Args:
        exact: the units, if any, whose edges the rank made itself with this very label.
        once: whether each edge is asked for once, so that forecasts need not be held.
    """

    def __init__(
        self,
        work: Work,
        rank: int,
        versions: Sequence[Version],
        label: int,
        reads: frozenset[Edge],
        exact: frozenset[int] = frozenset(),
        once: bool = False,
    ) -> None:
        self.reads = reads
        self._exact = exact
        self._units = work.division.graph.units
        self._output_reads = work.division.graph.output_reads
        self._store = work.channel.stores[rank]
        # One version is the newest, wherever it lies: with the paper's method no scheduler need be understood.
        is_timed = len(versions) > 1
        self._reading = Reading(
            steps=tuple(version.step for version in versions),
            times=tuple(work.moment(version.label) for version in versions) if is_timed else (0.0,),
            target=work.moment(label) if is_timed else 0.0,
            method=work.division.method,
            among=self._store.spans_of(reads, exact, once),
            is_read_once=once,
        )

    def of(self, residuals: Residuals) -> Callable[[Edge], Tensor | None]:
        """The edges' tensors, for a walk in which residuals are added to what it gives."""

        def tensor(edge: Edge) -> Tensor | None:
            if edge not in self.reads:
                return None
            return unshared(self._units[edge.unit], edge, residuals.added(edge, self.sent(edge)))

        return tensor

    def sent(self, edge: Edge) -> Tensor:
        """An edge's tensor in the form in which it travels."""
        if edge.unit in self._exact:
            found = self._store.newest(edge, self._reading.steps[0])
        else:
            found = self._store.expected(edge, self._reading)
        # What a pipeline is given it may hold longer than a version lasts.
        return found.clone() if edge in self._output_reads else found


def _answers(work: Work, run: frozenset[int], received: Received) -> Mapping[tuple[str, int], Any]:
    """Fillers for the units that are not run, of which nothing is read, and whose inputs nobody adds to."""
    return work.fillers.answers(run, received.reads, work.division.partition.base_inputs)


def substitute(graph: Graph, fillers: Fillers, unit: int, call: Call, known: Callable[[Edge], Tensor | None]) -> Any:
    """A unit's output, made of what is known of it.

    Args:
        known: an edge's tensor, for this reader alone; None where it is not read.
    """
    unit_call = graph.units[unit]
    given = call.tensors if unit_call.hands_on else []
    made: list[Any] = []
    for number, leaf in enumerate(unit_call.outputs):
        origin = unit_call.origins[number]
        if leaf.value is None:
            made.append(leaf.constant)
        elif leaf.input_index is not None:
            made.append(given[leaf.input_index])
        elif origin != number:
            made.append(made[origin])
        else:
            tensor = known(Edge(unit, origin))
            made.append(fillers.leaf(unit, number) if tensor is None else tensor)
    return unit_call.form(made)


def check_shape(known: UnitCall, number: int, leaf: Any) -> None:
    """Shapes inside of a denoiser may depend on values: it may cut a text where its mask ends.

    Raises:
        ShapeChangedError: a unit's output has another shape than the recorded one.
    """
    shape = tuple(leaf.shape) if isinstance(leaf, Tensor) else ()
    recorded = known.outputs[number].shape
    if shape != recorded:
        raise ShapeChangedError(
            f"unit {known.name!r} gives a tensor of shape {shape}, and gave one of {recorded} when it was recorded; "
            "what a round reads must have the same shape in all rounds"
        )


def unshared(known: UnitCall, edge: Edge, tensor: Tensor) -> Tensor:
    """The tensor, or a copy where the denoiser writes to it later on."""
    return tensor.clone() if edge.leaf in known.overwritten else tensor
