"""Steps of a denoiser whose tokens are divided: every rank runs all of it on its own tokens."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves

from asyncdiff.call import Call
from asyncdiff.denoiser.graph import Edge
from asyncdiff.errors import ShapeChangedError
from asyncdiff.exchange.protocol import Channel
from asyncdiff.plan.course import Course
from asyncdiff.plan.moments import Moment
from asyncdiff.plan.schedule import StepKind, Task
from asyncdiff.plan.tokens import TokenDivision
from asyncdiff.report import Counts
from asyncdiff.runtime.context import Context
from asyncdiff.runtime.dividing import Divisions
from asyncdiff.runtime.fresh_keys import exchanged_keys, with_size
from asyncdiff.runtime.rules import Received, Work, substitute
from asyncdiff.runtime.stream import Stream
from asyncdiff.runtime.token_walk import Pair, WalkEndedError, walk_divided, walk_whole
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
            elif result is None or step.keeps:
                result = self._in_full(stream, step.keeps, step.index, call)
        leaves, stream.structure = tree_flatten(result)
        stream.predictions = {step.index: leaves}

    def _in_full(self, stream: Stream, keeps: bool, index: int, call: Call) -> Any:
        """A step with the keys that all ranks make in it."""
        division = _of_tokens(stream)
        channel = self._channel(stream) if keeps else None
        if len(self._context.exchange.ranks) > 1:
            result = self._in_one_process(division, channel, call)
        else:
            result = self._among_processes(division, channel, call)
        if channel is not None:
            channel.end_in_full([index])
        return result

    def _in_one_process(self, division: TokenDivision, channel: Channel | None, call: Call) -> Any:
        """The undivided call gives what all ranks would make of it."""

        def note(number: int, pair: Pair) -> None:
            extent = division.layout.sites[number].extent
            for source in range(division.parts.count):
                key, value = (division.parts.of(tensor, extent, source) for tensor in pair)
                _keep(division, channel, number, source, (key, value))

        end = _Exit(division)

        def look(unit: int, result: Any) -> None:
            if unit == division.layout.last:
                end.keep(channel, tree_leaves(result))

        return walk_whole(self._context.units, division.layout, call, note, Counts(), look, end.enter)

    def _among_processes(self, division: TokenDivision, channel: Channel | None, call: Call) -> Any:
        """Keys and values go to all other ranks at every site, and are waited for there."""
        exchange, end = self._context.exchange, _Exit(division)
        (rank,) = exchange.ranks
        everyone = tuple((source, source) for source in range(division.parts.count))

        def keys(number: int, mine: Pair) -> list[Pair]:
            found = exchanged_keys(exchange, division.parts, self._context.name, number, mine)
            for source, pair in enumerate(found):
                _keep(division, channel, number, source, pair)
            return found

        def join(leaves: list[Any]) -> list[Any]:
            whole = self._joined(division, {rank: leaves}, Moment(results=everyone))()
            end.keep(channel, whole)
            return whole

        return walk_divided(
            self._context.units, division.layout, division.parts, rank, call, keys, join, Counts(), end.enter
        )

    def _round(self, stream: Stream, course: Course, call: Call, counts: Counts) -> Any:
        """A step with keys of the others that are forecast."""
        division, step = _of_tokens(stream), course.step(stream.index)
        channel, order = self._channel(stream), stream.order().of(course, step.index)
        work = Work(division, channel, stream.fillers(), counts, stream.moment)
        channel.start_round(order)
        tasks = [task for task in step.tasks if task.rank in self._context.exchange.ranks]
        made: dict[int, list[Any]] = {}
        end = _Exit(division)

        def join(leaves: list[Any]) -> list[Any]:
            task = tasks[len(made)]
            made[task.rank] = leaves
            if task is not tasks[-1]:
                raise WalkEndedError
            finish: Callable[[], list[Any]] | None = None
            for moment in order.moments:
                if moment.messages:
                    channel.exchange(moment)
                else:
                    finish = self._joined(division, made, moment)
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
        layout, end = division.layout, _Exit(division)

        def known(edge: Edge) -> Tensor | None:
            if edge.unit != layout.last:
                return None
            return end.added(edge.leaf, received.sent(division.exit(edge.leaf)))

        def rule(unit: int, inner: Call) -> Any:
            if unit == layout.first:
                end.enter(inner)
            if not layout.first <= unit <= layout.last:
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
        kept: frozenset[Any],
        call: Call,
        join: Callable[[list[Any]], list[Any]],
        end: "_Exit",
    ) -> Any:
        """One rank's part in a round."""
        division = _of_tokens(stream)
        call = stream.labelled(self._context.form, call, task.label)
        received = Received(work, task.rank, task.reads, task.label, division.partition.reads[task.rank], once=True)

        def keys(number: int, mine: Pair) -> list[Pair]:
            pairs = []
            for source in range(division.parts.count):
                key, value = division.edges(number, source)
                if source == task.rank:
                    for edge, tensor in ((key, mine[0]), (value, mine[1])):
                        if edge in kept:
                            work.channel.made(task.rank, edge, tensor)
                    pairs.append(mine)
                else:
                    pairs.append((received.sent(key), received.sent(value)))
            return pairs

        return walk_divided(
            self._context.units, division.layout, division.parts, task.rank, call, keys, join, work.counts, end.enter
        )

    def _joined(self, division: TokenDivision, made: dict[int, list[Any]], moment: Moment) -> Callable[[], list[Any]]:
        """Begin to give all ranks the last unit's output, of which those of this process have made parts."""
        layout, parts = division.layout, division.parts
        rank = max(made)
        mine = made[rank]
        tensors = [place for place, leaf in enumerate(mine) if isinstance(leaf, Tensor)]
        # What is not of the picture every rank has; for all to go on with the same, it is rank 0's.
        places = {source: [at for at in tensors if at in layout.outputs or source == 0] for source, _ in moment.results}
        given = {
            source: [
                parts.own(leaf, layout.outputs[at], source) if at in layout.outputs else leaf
                for at, leaf in ((at, made[source][at]) for at in found)
            ]
            if source in made
            else [_sized(division, mine[at], at, source) for at in found]
            for source, found in places.items()
        }
        sharing = self._context.exchange.share(given, moment, "the tokens of part")

        def finish() -> list[Any]:
            shared = {
                source: dict(zip(places[source], received, strict=True))
                for source, received in sharing.finish().items()
            }
            whole = list(mine)
            for at in tensors:
                if at not in layout.outputs:
                    whole[at] = shared[0][at]
                    continue
                extent = layout.outputs[at]
                whole[at] = parts.join(mine[at], extent, rank, [shared[source][at] for source in range(parts.count)])
            return whole

        return finish

    def _channel(self, stream: Stream) -> Channel:
        return stream.opened(self._context.exchange, self._context.device)


class _Exit:
    """What the last of the divided units gives, of all tokens: kept where steps are bridged from it.

    Where it is made by adding to what the first of them is given, it is kept, and forecast, as what is added.
    """

    def __init__(self, division: TokenDivision) -> None:
        self._division = division
        self._given: list[Tensor] = []

    def enter(self, call: Call) -> None:
        """The first unit's call, with all tokens."""
        self._given = call.tensors

    def keep(self, channel: Channel | None, leaves: Sequence[Any]) -> None:
        """Leave it for the ranks of this process."""
        bases = self._division.bases
        if channel is None:
            return
        for edge in self._division.made_everywhere:
            leaf = leaves[edge.leaf]
            held = leaf - self._given[bases[edge.leaf]] if edge.leaf in bases else leaf
            for rank in channel.stores:
                channel.keep(rank, edge, held)

    def added(self, leaf: int, held: Tensor) -> Tensor:
        """The leaf, from what was kept of it."""
        base = self._division.bases.get(leaf)
        return held if base is None else held + self._given[base]


def _of_tokens(stream: Stream) -> TokenDivision:
    division = stream.divided()
    if not isinstance(division, TokenDivision):
        raise RuntimeError("the denoiser is not divided by tokens")
    return division


def _keep(division: TokenDivision, channel: Channel | None, number: int, source: int, pair: Pair) -> None:
    """Leave a rank's keys and values at a site where ranks of this process need them later, if they do."""
    if channel is None:
        return
    for rank in channel.stores:
        for edge, tensor in zip(division.edges(number, source), pair, strict=True):
            if edge in division.kept_by(rank):
                channel.keep(rank, edge, tensor)


def _sized(division: TokenDivision, leaf: Tensor, place: int, source: int) -> Tensor:
    """A tensor for another rank's tokens of the last unit's output."""
    if place not in division.layout.outputs:
        return leaf
    return with_size(leaf, division.layout.outputs[place].dim, division.parts.size(source))
