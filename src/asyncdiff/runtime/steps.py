"""A step of each kind: in full, as a round, forecast."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils._pytree import tree_flatten

from asyncdiff.call import Call
from asyncdiff.errors import ShapeChangedError
from asyncdiff.exchange.protocol import share_results
from asyncdiff.plan.division import Division
from asyncdiff.plan.schedule import Step, StepKind, Task
from asyncdiff.report import Counts
from asyncdiff.runtime.context import Context
from asyncdiff.runtime.dividing import Divisions
from asyncdiff.runtime.stream import Stream
from asyncdiff.runtime.units import UnitRule, complete_task, compute_task, keep_what_ranks_read


class StepRunner:
    """Runs the steps of one group's streams.

    Attributes:
        is_interrupted: whether a round was not brought to its end, so that messages may be outstanding.
    """

    def __init__(self, context: Context, divisions: Divisions, lane: int) -> None:
        self.is_interrupted = False
        self._context = context
        self._divisions = divisions
        self._lane = lane

    def run(self, stream: Stream, step: Step, call: Call, counts: Counts) -> None:
        """Make a step's predictions, if there are any to make, and leave them in the stream on every rank."""
        if step.kind is StepKind.FULL:
            self._run_in_full(stream, step, call)
        elif step.kind is StepKind.ROUND:
            self._run_round(stream, step, call, counts)
        elif step.kind is StepKind.BRIDGED:
            self._complete(stream, step, call, counts, {})

    def _run_in_full(self, stream: Stream, step: Step, call: Call) -> None:
        result, division = None, stream.division
        if division is None:
            result, division = self._divisions.divide(stream, self._lane, call)
        if step.keeps:
            # With w = 1 the very first call runs twice: its units are known only after it was traced.
            try:
                result = self._run_and_keep(stream, division, [step.index], call)
            except ShapeChangedError:
                _, division = self._divisions.divide(stream, self._lane, call)
                stream.channel = None
                # What earlier steps have left is of the old shapes: as if nothing had changed since.
                versions = range(division.schedule.first_kept, step.index + 1)
                result = self._run_and_keep(stream, division, versions, call)
        elif result is None:
            result = call()
        leaves, stream.structure = tree_flatten(result)
        stream.predictions = share_results(
            self._context.exchange, {step.index: leaves}, {step.index: division.partition.predictor}
        )

    def _run_and_keep(self, stream: Stream, division: Division, versions: Sequence[int], call: Call) -> Any:
        """A step in full that others follow on: what they read is stored."""
        exchange = self._context.exchange
        if stream.channel is None:
            stream.channel = exchange.open(division)
        rule = keep_what_ranks_read(division, exchange.ranks, stream.channel, versions)
        return self._context.units.walk(division.graph, rule, call)

    def _run_round(self, stream: Stream, step: Step, call: Call, counts: Counts) -> None:
        division, channel = stream.ready()
        self.is_interrupted = True
        channel.start_round()
        made: dict[int, list[Any]] = {}
        for task in self._tasks(step):
            rule = compute_task(division, task, channel, counts, stream.moment)
            leaves = self._walk(stream, division, rule, task, call)
            if task.predicts is not None and not task.completes:
                made[task.predicts] = leaves
        channel.end_round(step.index)
        self._complete(stream, step, call, counts, made)
        self.is_interrupted = False

    def _complete(self, stream: Stream, step: Step, call: Call, counts: Counts, made: Mapping[int, list[Any]]) -> None:
        """Make the predictions that no component alone makes, and give all of them to every rank.

        `made` are those that this process has made already, by step.
        """
        division, channel = stream.ready()
        predictions = dict(made)
        for task in self._tasks(step):
            if task.completes and task.predicts is not None:
                rule = complete_task(division, task, channel, counts, stream.moment)
                predictions[task.predicts] = self._walk(stream, division, rule, task, call)
        sources = {task.predicts: task.rank for task in step.tasks if task.predicts is not None}
        like = next(iter(stream.predictions.values()))
        shared = share_results(self._context.exchange, {at: predictions.get(at, like) for at in sources}, sources)
        stream.predictions.update(shared)
        stream.predictions = {at: leaves for at, leaves in stream.predictions.items() if at >= step.index}

    def _tasks(self, step: Step) -> list[Task]:
        """Those of this process."""
        return [task for task in step.tasks if task.rank in self._context.exchange.ranks]

    def _walk(self, stream: Stream, division: Division, rule: UnitRule, task: Task, call: Call) -> list[Any]:
        """Call the denoiser with a task's label and a rule for its units; returns the leaves of the result."""
        if task.label != stream.index:
            call = self._context.form.with_times(call, stream.times(task.label))
        return tree_flatten(self._context.units.walk(division.graph, rule, call))[0]
