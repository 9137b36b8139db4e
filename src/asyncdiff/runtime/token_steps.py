"""Steps of a denoiser whose tokens are divided: every rank runs all of it, or its component, on its own tokens."""

import contextlib
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves

from asyncdiff.call import Call
from asyncdiff.denoiser.graph import Edge, Graph
from asyncdiff.denoiser.keeping import keeping_state
from asyncdiff.errors import ShapeChangedError
from asyncdiff.exchange.protocol import Channel
from asyncdiff.plan.course import Course
from asyncdiff.plan.key_form import InBits
from asyncdiff.plan.moments import StepOrder
from asyncdiff.plan.schedule import StepKind, Task
from asyncdiff.plan.tokens import TokenDivision
from asyncdiff.report import Counts
from asyncdiff.runtime.context import Context
from asyncdiff.runtime.dividing import Divisions
from asyncdiff.runtime.fresh_keys import FreshKeys
from asyncdiff.runtime.rounded_keys import RoundedKeys
from asyncdiff.runtime.rules import Received, Residuals, Work, run_component, substitute, unshared
from asyncdiff.runtime.stream import Stream
from asyncdiff.runtime.token_exit import Exit, joined
from asyncdiff.runtime.token_walk import KeysOnly, Pair, WalkEndedError, walk_divided, walk_whole
from asyncdiff.runtime.units import UnitRule


class TokenStepRunner:
    """Runs the steps of one group's streams, each rank on its own tokens."""

    def __init__(self, context: Context, divisions: Divisions) -> None:
        self._context = context
        self._divisions = divisions

    def run(self, stream: Stream, course: Course, call: Call, counts: Counts, result: Any = None) -> None:
        """Make the prediction of a stream's step, and leave it in it on every rank.

        Args:
            result: that of the call, where it has been made in full to be recorded.
        """
        step = course.step(stream.index)
        with self._divisions.told_apart(stream, ShapeChangedError):
            if step.kind is StepKind.ROUND:
                result = self._round(stream, course, call, counts)
            elif step.kind is StepKind.BRIDGED:
                result = self._bridged(stream, course, call, counts)
            elif result is None:
                result = self._in_full(stream, course, call)
            elif step.keeps or isinstance(_of_tokens(stream).key_form, InBits):
                # Keys are needed of it; and it was rounded nowhere, while the same noise would be in later calls.
                with keeping_state(self._context.denoiser, self._context.device):
                    result = self._in_full(stream, course, call)
        leaves, stream.structure = tree_flatten(result)
        stream.predictions = {step.index: leaves}

    def _in_full(self, stream: Stream, course: Course, call: Call) -> Any:
        """A step with the keys that all ranks make in it."""
        step = course.step(stream.index)
        channel = self._channel(stream) if step.keeps else None
        if len(self._context.exchange.ranks) > 1:
            result = self._in_one_process(stream, channel, call)
        else:
            result = self._among_processes(stream, channel, call, stream.order().of(course, step.index))
        if channel is not None:
            channel.end_in_full([step.index])
        return result

    def _in_one_process(self, stream: Stream, channel: Channel | None, call: Call) -> Any:
        """The undivided call gives what all ranks would make of it, but for what is lost on the way."""
        division = _of_tokens(stream)
        layout, parts, end = division.layout, division.parts, Exit(division)

        def note(number: int, pair: Pair) -> None:
            for part in range(parts.count):
                for edge, tensor in zip(division.edges(number, part), pair, strict=True):
                    _keep(division, channel, edge, parts.of(tensor, layout.sites[number].keys, part))

        def made(edge: Edge, tensor: Tensor) -> None:
            extent = layout.made[edge.unit].get(edge.leaf)
            for part in range(parts.count):
                own = tensor if extent is None else parts.cut(tensor, extent, part)
                _keep(division, channel, division.of_part(edge, part), own)

        every = self._every_unit(stream, layout.graph, channel, made)

        def run(unit: int, inner: Call) -> Any:
            result = every(unit, inner)
            if unit == layout.last:
                end.keep(channel, tree_leaves(result))
            return result

        form, attend = division.key_form, None
        if isinstance(form, InBits):
            attend = RoundedKeys(layout, parts, division.dealt, form).attend
        return walk_whole(self._context.units, layout, call, note, run, end.enter, attend)

    def _among_processes(self, stream: Stream, channel: Channel | None, call: Call, order: StepOrder) -> Any:
        """Keys and values go to those that have the other parts at every site, and are waited for there.

        Ranks that have the same tokens, and other components, do the same.
        """
        division, exchange = _of_tokens(stream), self._context.exchange
        layout, parts, end = division.layout, division.parts, Exit(division)
        (rank,), (results,) = exchange.ranks, order.moments
        (_, part), moment = division.place(rank), division.keys_of_step(rank)
        name, dealt, form = self._context.name, division.dealt, division.key_form
        fresh = FreshKeys(exchange, layout, parts, moment, name, dealt, form)

        def keys(number: int, mine: Pair) -> list[Pair]:
            found = fresh.keys(number, mine)
            for source, pair in enumerate(found):
                for edge, tensor in zip(division.edges(number, source), pair, strict=True):
                    _keep(division, channel, edge, tensor)
            return found

        def made(edge: Edge, tensor: Tensor) -> None:
            _keep(division, channel, division.of_part(edge, part), tensor)

        def join(leaves: list[Any]) -> list[Any]:
            whole = joined(exchange, division, leaves, part, {rank: leaves}, results)()
            end.keep(channel, whole)
            return whole

        every = self._every_unit(stream, layout.cut(parts, part), channel, made)
        others = fresh if division.dealt else KeysOnly(keys)  # where heads are dealt out no keys are kept
        return walk_divided(self._context.units, layout, parts, part, call, others, join, Counts(), end.enter, every)

    def _every_unit(
        self, stream: Stream, graph: Graph, channel: Channel | None, made: Callable[[Edge, Tensor], None]
    ) -> Callable[[int, Call], Any]:
        """Runs every unit of a graph, and passes on what other components read of it in later steps."""
        division = _of_tokens(stream)
        return run_component(
            graph=graph,
            run=frozenset(range(len(graph.units))),
            passed_on=frozenset() if channel is None else division.between_layers,
            made=made,
            known=lambda _: None,
            residuals=Residuals(division.layers),
            fillers=stream.fillers(graph),
            counts=Counts(),
        )

    def _round(self, stream: Stream, course: Course, call: Call, counts: Counts) -> Any:
        """A step with keys of the others, and outputs of other components, that are forecast."""
        division, step = _of_tokens(stream), course.step(stream.index)
        channel, order = self._channel(stream), stream.order().of(course, step.index)
        work = Work(division, channel, stream.fillers(), counts, stream.moment)
        channel.start_round(order)
        tasks = [task for task in step.tasks if task.rank in self._context.exchange.ranks]
        made: dict[int, list[Any]] = {}
        end = Exit(division)

        def join(leaves: list[Any]) -> list[Any]:
            task = tasks[len(made)]
            made[task.rank] = leaves
            if task is not tasks[-1]:
                raise WalkEndedError
            _, part = division.place(task.rank)
            finish: Callable[[], list[Any]] | None = None
            for moment in order.moments:
                if moment.messages:
                    channel.exchange(moment)
                else:
                    finish = joined(self._context.exchange, division, leaves, part, made, moment)
            if finish is None:
                raise RuntimeError("a round has no results")
            whole = finish()
            end.keep(channel, whole)
            return whole

        result = None
        for task in tasks:
            with contextlib.suppress(WalkEndedError):
                result = self._walk(stream, work, task, order.kept, call, join, end)
        channel.end_round(step.index)
        return result

    def _bridged(self, stream: Stream, course: Course, call: Call, counts: Counts) -> Any:
        """A step in which what the last of the divided units would give is forecast; every rank does the same."""
        division, step = _of_tokens(stream), course.step(stream.index)
        work = Work(division, self._channel(stream), stream.fillers(), counts, stream.moment)
        task = next(task for task in step.tasks if task.rank in self._context.exchange.ranks)
        received = Received(work, task.rank, task.completes, task.label, division.partition.end.reads)
        call = stream.labelled(self._context.form, call, task.label)
        layout, end = division.layout, Exit(division)

        def known(edge: Edge) -> Tensor | None:
            if edge.unit != layout.last:
                return None
            return end.added(edge.leaf, received.sent(division.exit(edge.leaf)))

        def rule(unit: int, inner: Call) -> Any:
            if unit == layout.first:
                end.enter(inner)
            if unit not in layout.inside:
                counts.units_run += 1
                return inner()
            counts.units_skipped += 1
            return substitute(layout.graph, work.fillers, unit, inner, known)

        return self._context.units.walk(layout.graph, UnitRule(rule, counts), call)

    def _walk(
        self,
        stream: Stream,
        work: Work,
        task: Task,
        kept: frozenset[Edge],
        call: Call,
        join: Callable[[list[Any]], list[Any]],
        end: Exit,
    ) -> Any:
        """One rank's part in a round."""
        division = _of_tokens(stream)
        layout, layers, (component, part) = division.layout, division.layers, division.place(task.rank)
        call = stream.labelled(self._context.form, call, task.label)
        reads = division.partition.reads[task.rank]
        received = Received(work, task.rank, task.reads, task.label, reads, once=True)
        graph, residuals = layout.cut(division.parts, part), Residuals(layers)

        def keys(number: int, mine: Pair) -> list[Pair]:
            pairs = []
            for source in range(division.parts.count):
                key, value = division.edges(number, source)
                if source == part:
                    for edge, tensor in ((key, mine[0]), (value, mine[1])):
                        if edge in kept:
                            work.channel.made(task.rank, edge, tensor)
                    pairs.append(mine)
                else:
                    pairs.append((received.sent(key), received.sent(value)))
            return pairs

        def made(edge: Edge, tensor: Tensor) -> None:
            work.channel.made(task.rank, division.of_part(edge, part), tensor)

        def known(edge: Edge) -> Tensor | None:
            if edge not in layers.reads[component]:
                return None
            sent = received.sent(division.of_part(edge, part))
            return unshared(graph.units[edge.unit], edge, residuals.added(edge, sent))

        run = run_component(
            graph=graph,
            run=division.runs(component),
            passed_on=frozenset(
                edge
                for edge in division.between_layers
                if edge.unit in layers.components[component] and division.of_part(edge, part) in kept
            ),
            made=made,
            known=known,
            residuals=residuals,
            fillers=stream.fillers(graph),
            counts=work.counts,
        )
        return walk_divided(
            self._context.units, layout, division.parts, part, call, KeysOnly(keys), join, work.counts, end.enter, run
        )

    def _channel(self, stream: Stream) -> Channel:
        return stream.opened(self._context.exchange, self._context.device)


def _of_tokens(stream: Stream) -> TokenDivision:
    division = stream.divided()
    if not isinstance(division, TokenDivision):
        raise RuntimeError("the denoiser is not divided by tokens")
    return division


def _keep(division: TokenDivision, channel: Channel | None, edge: Edge, tensor: Tensor) -> None:
    """Leave a live edge where ranks of this process need it later, if they do."""
    if channel is None:
        return
    for rank in channel.stores:
        if edge in division.kept_by(rank):
            channel.keep(rank, edge, tensor)
