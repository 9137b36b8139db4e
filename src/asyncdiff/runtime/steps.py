"""A step of each kind: in full, as a round, forecast."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from asyncdiff.call import Call
from asyncdiff.errors import ShapeChangedError
from asyncdiff.exchange.protocol import Channel, SharedLeaves
from asyncdiff.plan.chain import Link
from asyncdiff.plan.course import Course
from asyncdiff.plan.division import Division
from asyncdiff.plan.moments import Moment
from asyncdiff.plan.schedule import Step, StepKind, Task
from asyncdiff.report import Counts
from asyncdiff.runtime.chain import ChainRunner
from asyncdiff.runtime.context import Context
from asyncdiff.runtime.dividing import Divisions
from asyncdiff.runtime.rules import Work, complete_task, compute_task, keep_what_ranks_read
from asyncdiff.runtime.stream import Stream
from asyncdiff.runtime.units import UnitRule


class StepRunner:
    """Runs the steps of one group's streams."""

    def __init__(self, context: Context, divisions: Divisions, lane: int) -> None:
        self._context = context
        self._divisions = divisions
        self._lane = lane
        self._chain = ChainRunner(context)

    def run(self, stream: Stream, course: Course, call: Call, counts: Counts, result: Any = None) -> None:
        """Make the predictions of a stream's step, if there are any to make, and leave them in it on every rank.

        Args:
            result: that of the call, where it has been made in full to be recorded.
        """
        step = course.step(stream.index)
        if step.kind is StepKind.FULL:
            self._run_in_full(stream, course, call, counts, result)
        elif step.kind is StepKind.CHAINED:
            self._run_chained(stream, course, call)
        elif step.kind is StepKind.ROUND:
            self._run_round(stream, course, call, counts)
        elif step.kind is StepKind.BRIDGED:
            for moment in stream.order().of(course, step.index).moments:
                self._take(
                    stream, self._share(stream, moment, self._completed(stream, step, call, self._work(stream, counts)))
                )

    def _run_in_full(self, stream: Stream, course: Course, call: Call, counts: Counts, result: Any) -> None:
        step, division = course.step(stream.index), stream.divided()
        if step.keeps:
            # With w = 1 the very first call runs twice: its units are known only after it was traced.
            try:
                result = self._run_and_keep(stream, division, [step.index], call, counts)
            except ShapeChangedError:
                _, division = self._divisions.divide(stream, self._lane, call)
                if stream.channel is not None:
                    stream.channel.close()
                stream.channel = None
                # What earlier steps have left is of the old shapes: as if nothing had changed since.
                earlier = course.history(step.index, division.schedule.kept_versions)
                versions = [*reversed([version.step for version in earlier]), step.index]
                result = self._run_and_keep(stream, division, versions, call, counts)
        elif result is None:
            result = call()
        leaves, stream.structure = tree_flatten(result)
        stream.predictions = {step.index: leaves}
        for moment in stream.order().of(course, step.index).moments:
            self._take(stream, self._share(stream, moment, stream.predictions))

    def _run_chained(self, stream: Stream, course: Course, call: Call) -> None:
        step = course.step(stream.index)
        links = stream.order().links(step.keeps)
        channel = self._channel(stream) if step.keeps else None
        leaves, stream.structure = self._chained(stream, links, call, channel)
        if channel is not None:
            channel.end_in_full([step.index])
        stream.predictions = {step.index: leaves}
        for moment in stream.order().of(course, step.index).moments:
            if moment.results:
                self._take(stream, self._share(stream, moment, stream.predictions))

    def whole(self, stream: Stream, call: Call) -> Any:
        """The result of a call that belongs to no step, by ranks that have a part of the weights each."""
        if stream.division is None:
            self._divisions.divide(stream, self._lane, call)
        leaves, structure = self._chained(stream, stream.order().links(keeps=False), call, None)
        moment = Moment(results=((0, stream.divided().partition.predictor),))
        return tree_unflatten(SharedLeaves(self._context.exchange, {0: leaves}, moment).finish()[0], structure)

    def _chained(
        self, stream: Stream, links: Sequence[Link], call: Call, channel: Channel | None
    ) -> tuple[list[Any], TreeSpec]:
        """A call in full, component after component."""
        with self._divisions.told_apart(stream):
            return self._chain.run(stream.divided(), links, stream.fillers(), call, channel)

    def _run_and_keep(
        self, stream: Stream, division: Division, versions: Sequence[int], call: Call, counts: Counts
    ) -> Any:
        """A step in full that others follow on: what they read is stored."""
        channel = self._channel(stream)
        rule = keep_what_ranks_read(division, self._context.exchange.ranks, channel, counts)
        result = self._call(stream, division, rule, call)
        channel.end_in_full(versions)
        return result

    def _channel(self, stream: Stream) -> Channel:
        return stream.opened(self._context.exchange, self._context.device)

    def _run_round(self, stream: Stream, course: Course, call: Call, counts: Counts) -> None:
        work = self._work(stream, counts)
        channel, step = work.channel, course.step(stream.index)
        order = stream.order().of(course, step.index)
        channel.start_round(order)
        predictions: dict[int, list[Any]] = {}
        for task in self._tasks(step):
            leaves = self._walk(stream, compute_task(work, task, order.kept), task, call)
            if task.predicts is not None and not task.completes:
                predictions[task.predicts] = leaves
        is_completed = any(task.completes for task in step.tasks)
        begun = []
        for moment in order.moments:
            if moment.messages:
                channel.exchange(moment)
                continue
            if is_completed:
                channel.end_round(step.index)
                predictions |= self._completed(stream, step, call, work)
            begun.append(self._share(stream, moment, predictions))
        if not is_completed:
            channel.end_round(step.index)
        for sharing in begun:
            self._take(stream, sharing)

    def _completed(self, stream: Stream, step: Step, call: Call, work: Work) -> dict[int, list[Any]]:
        """The predictions that no component alone makes, of those of this process."""
        return {
            task.predicts: self._walk(stream, complete_task(work, task), task, call)
            for task in self._tasks(step)
            if task.completes and task.predicts is not None
        }

    def _work(self, stream: Stream, counts: Counts) -> Work:
        """What the tasks of a stream's step share."""
        division, channel = stream.ready()
        return Work(division, channel, stream.fillers(), counts, stream.moment)

    def _share(self, stream: Stream, moment: Moment, predictions: Mapping[int, list[Any]]) -> SharedLeaves:
        """Begin to give all ranks the predictions of a moment, of which this process has made some."""
        like = next(iter(stream.predictions.values()))
        return SharedLeaves(self._context.exchange, {at: predictions.get(at, like) for at, _ in moment.results}, moment)

    def _take(self, stream: Stream, sharing: SharedLeaves) -> None:
        """Wait for predictions, and forget those of steps that are over."""
        stream.predictions |= sharing.finish()
        stream.predictions = {at: leaves for at, leaves in stream.predictions.items() if at >= stream.index}

    def _tasks(self, step: Step) -> list[Task]:
        """Those of this process."""
        return [task for task in step.tasks if task.rank in self._context.exchange.ranks]

    def _walk(self, stream: Stream, rule: UnitRule, task: Task, call: Call) -> list[Any]:
        """Call the denoiser with a task's label and a rule for its units; returns the leaves of the result."""
        call = stream.labelled(self._context.form, call, task.label)
        return tree_flatten(self._call(stream, stream.ready()[0], rule, call))[0]

    def _call(self, stream: Stream, division: Division, rule: UnitRule, call: Call) -> Any:
        """Call the denoiser with a rule for its units."""
        with self._divisions.told_apart(stream):
            return self._context.units.walk(division.graph, rule, call)
