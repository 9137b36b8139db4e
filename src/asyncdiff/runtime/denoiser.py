"""Runs one denoiser by the schedule, call by call."""

import logging
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from asyncdiff.denoiser.call import CallForm, Signature, digest, own_containers
from asyncdiff.denoiser.find import operations_per_byte
from asyncdiff.denoiser.structure import Structure, check_callable_in_parts, structure_of, surroundings_of
from asyncdiff.denoiser.trace import record
from asyncdiff.errors import ExchangeError, ShapeChangedError
from asyncdiff.exchange.local import Exchange, share_results
from asyncdiff.hooks import Forward, listen_to_context
from asyncdiff.plan.division import Division, Goal, plan
from asyncdiff.plan.method import Method
from asyncdiff.plan.schedule import Schedule, Step, StepKind, Task
from asyncdiff.report import GUARD, RESYNC, Counts, DenoiserReport, GuidanceCounts
from asyncdiff.runtime.clock import Clock
from asyncdiff.runtime.deferred import settled
from asyncdiff.runtime.guard import forecast_error
from asyncdiff.runtime.stream import Arguments, Stream, Streams
from asyncdiff.runtime.units import UnitHooks, UnitRule, complete_task, compute_task, keep_what_ranks_read

logger = logging.getLogger(__name__)


class Outer(Protocol):
    """What comes before the runtime: it takes calls apart, and has the runtime compute the parts."""

    streams: Streams
    counts: GuidanceCounts

    def __call__(self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any], whole: Arguments) -> Any: ...


@dataclass(frozen=True)
class Prospect:
    """A call that is about to be computed.

    Attributes:
        stream: the one that it belongs to.
        schedule: that of its division, if there is one yet.
        judged: whether it was judged how far the forecasts are off.
        within: whether they are within the bound, on all ranks of the group.
    """

    stream: Stream
    schedule: Schedule
    judged: bool = False
    within: bool = True


@dataclass
class _Lane:
    """The calls of one group of ranks."""

    streams: Streams = field(default_factory=Streams)
    counts: Counts = field(default_factory=Counts)


class DenoiserRuntime:
    """One denoiser of one pipeline, attached.

    Attributes:
        outer: what comes before this, if anything.
    """

    def __init__(
        self,
        name: str,
        denoiser: nn.Module,
        schedule: Schedule,
        split: Sequence[Sequence[str]] | None,
        method: Method,
        exchange: Exchange,
        clock: Clock,
        device: torch.device,
        lanes: int = 1,
        max_error: float | None = None,
        target_speedup: float | None = None,
    ) -> None:
        """Get ready for a denoiser's calls.

        Args:
            target_speedup: how fast the group is to be; steps are bridged until it is.
            max_error: how far forecasts may be off before more is computed.
            lanes: how many groups of ranks compute in this process, each with calls of its own.
        """
        self.name = name
        self.outer: Outer | None = None
        self._lanes = [_Lane() for _ in range(lanes)]
        self._lane = 0
        self._denoiser = denoiser
        self._schedule = schedule
        self._split = split
        self._method = method
        self._max_error = max_error
        self._target_speedup = target_speedup
        self._exchange = exchange
        self._clock = clock
        self._form = CallForm(denoiser)
        self._device = device
        self._divisions: dict[tuple[Structure, Signature, float, Goal | None], dict[tuple[int, int], Division]] = {}
        self._current: Division | None = None
        self._context: Any = None
        self._modules: list[nn.Module] = []
        self._module_structure: Structure = None
        self._generation = -1
        self._interrupted = False
        self._units = UnitHooks(denoiser)
        self._undo: list[Callable[[], None]] = []
        if hasattr(denoiser, "cache_context"):
            self._undo.append(listen_to_context(denoiser, "cache_context", self._enter_context))
        clock.on_generation.append(self._begin_generation)
        clock.on_step.append(self._end_step)

    @property
    def counts(self) -> Counts:
        """What the group of ranks that computes, or has computed last, did in this generation."""
        return self._lanes[self._lane].counts

    @property
    def _streams(self) -> Streams:
        return self._lanes[self._lane].streams

    def detach(self) -> None:
        """Leave the denoiser as it was."""
        self._clock.on_generation.remove(self._begin_generation)
        self._clock.on_step.remove(self._end_step)
        self._units.remove()
        for undo in self._undo:
            undo()
        self._begin_generation()

    def report(self) -> DenoiserReport:
        """What this generation did so far."""
        counts = replace(self.counts, full=self.counts.full.copy(), inserted=self.counts.inserted.copy())
        division = self._current
        guidance = GuidanceCounts() if self.outer is None else replace(self.outer.counts)
        if division is None:
            return DenoiserReport(self.name, (), (), (), 0, counts, guidance.speedup, guidance=guidance)
        units, partition = division.graph.units, division.partition
        return DenoiserReport(
            name=self.name,
            components=tuple(tuple(units[unit].name for unit in sorted(own)) for own in partition.components),
            shares=partition.shares,
            live_edges=tuple(
                tuple(f"{units[edge.unit].name} → {edge.leaf}" for edge in sorted(reads)) for reads in partition.reads
            ),
            bytes_per_round=division.bytes_per_round,
            counts=counts,
            bridge=division.schedule.bridge,
            modelled_speedup=counts.speedup * guidance.speedup,
            guidance=guidance,
        )

    @property
    def _is_forecasting(self) -> bool:
        return self._method.versions > 1

    def _begin_generation(self) -> None:
        for lane in self._lanes:
            lane.streams.close()

    def _enter_context(self, name: Any) -> None:
        self._context = name

    def _end_step(self, timestep: Any) -> None:
        # Reading a label off a device costs time: only where later labels are needed.
        is_timed = self._schedule.stride > 1 or self._schedule.cooldown > 0 or self._is_forecasting
        learning_steps = self._schedule.warmup if is_timed else 0
        for lane in self._lanes:
            lane.streams.end_step(timestep, self._clock.steps, learning_steps)

    def denoise(self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Stands in for the denoiser's forward."""
        if self._units.is_walking:
            return forward(*args, **kwargs)
        if self.outer is not None:
            args, kwargs = settled((args, kwargs))
        self._clock.check_schedulers()
        if self._generation != self._clock.generation:
            self._look_again()
        arguments = self._arguments(args, kwargs, self._context)
        self._clock.call(arguments.times)
        streams = self._streams if self.outer is None else self.outer.streams
        if streams.begins_step(arguments, self._clock.steps):
            if streams.begins_again(arguments):
                self._clock.begin_again()
                self._look_again()
            else:
                self._clock.tick()
        if self.outer is not None:
            return self.outer(forward, args, kwargs, arguments)
        return self._compute(forward, args, kwargs, arguments)

    def begin_part(
        self, lane: int, context: Any, args: tuple[Any, ...], kwargs: dict[str, Any], times_larger: float = 1.0
    ) -> Prospect:
        """Get ready to compute a part of a call on a group of ranks.

        Args:
            lane: which of the groups of this process.
            context: the same for all parts that belong to one stream.
            times_larger: how large the batch of the whole call is, in batches of the part.
        """
        self._lane = lane
        return self._begin(args, kwargs, self._arguments(args, kwargs, context), times_larger)

    def compute_part(
        self,
        lane: int,
        prospect: Prospect,
        within: bool,
        forward: Forward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Compute the part of a call that `begin_part` has got ready.

        Args:
            within: whether forecasts are within the bound, in all parts that are computed at the same time.
        """
        self._lane = lane
        return self._finish(prospect, within, forward, args, kwargs)

    def is_checked_again(self, index: int) -> bool:
        """Whether the inputs of a stream's step are compared with the other ranks', as those of its first are.

        They are after the first round: by then, ranks would have drifted apart that read what a round does not give to
        all, like a unit's inner state.
        """
        return index == self._schedule.warmup + self._schedule.stride

    def agree(self, mine: bool, what: str) -> bool:
        """Whether all ranks of the group say so."""
        return self._exchange.agree(mine, what)

    def kind_of_call(self, arguments: Arguments) -> Hashable:
        """What decides how a call runs, apart from values."""
        return self._module_structure, arguments.signature

    def _compute(self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any], arguments: Arguments) -> Any:
        """The prediction of a call by the schedule."""
        prospect = self._begin(args, kwargs, arguments)
        return self._finish(prospect, prospect.within, forward, args, kwargs)

    def _begin(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], arguments: Arguments, times_larger: float = 1.0
    ) -> Prospect:
        """Find a call's stream; compare with the other ranks what has to be the same on all."""
        stream, is_new = self._streams.of_call(arguments, self._clock.steps, self._clock.course)
        try:
            if is_new or self.is_checked_again(stream.index):
                self._exchange.check_agreement(*digest(args, kwargs), f"the inputs of the denoiser {self.name!r}")
            if is_new:
                stream.times_larger = times_larger
                stream.division = self._known_division(stream)
            return self._judge(stream, self._schedule if stream.division is None else stream.division.schedule)
        except BaseException:
            self._streams.forget()
            raise

    def _judge(self, stream: Stream, schedule: Schedule) -> Prospect:
        """Whether the forecasts are good enough to go on with; one decision for all ranks of the group."""
        versions = schedule.judged(stream.index, stream.last(), stream.inserted)
        if self._max_error is None or len(versions) < 2 or versions[0].step <= stream.judged:
            return Prospect(stream, schedule)
        stream.judged = versions[0].step
        division, channel = stream.ready()
        errors = [
            forecast_error(division, rank, versions, channel.stores[rank], stream.moment)
            for rank in self._exchange.ranks
        ]
        counts = self.counts
        counts.largest_error = max(counts.largest_error, *errors)
        within = all(error <= self._max_error for error in errors)
        what = f"how far the forecasts of the denoiser {self.name!r} are off"
        return Prospect(stream, schedule, True, self._exchange.agree(within, what))

    def _finish(
        self, prospect: Prospect, within: bool, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The prediction of a call, or of a part of one, by the schedule."""
        stream, schedule = prospect.stream, prospect.schedule
        if not within:
            remedy = schedule.remedy(stream.index, stream.last(), stream.inserted)
            stream.inserted[stream.index] = remedy
            self.counts.inserted[stream.index] = remedy
        step = schedule.step(stream.index, stream.last(), stream.inserted)
        begin = time.perf_counter()
        try:
            if step.kind is StepKind.FULL:
                self._run_in_full(stream, step, forward, args, kwargs)
                self.counts.full[_reason(stream, step, schedule)] += 1
                self.counts.seconds_full += time.perf_counter() - begin
            elif step.kind is StepKind.ROUND:
                self._run_round(stream, step, forward, args, kwargs)
                self.counts.rounds += 1
                self.counts.seconds_rounds += time.perf_counter() - begin
            elif step.kind is StepKind.BRIDGED:
                self._complete(stream, step, forward, args, kwargs)
                self.counts.bridged += 1
                self.counts.seconds_bridged += time.perf_counter() - begin
            else:
                self.counts.stored += 1
        except BaseException:
            self._streams.forget()
            raise
        self._current = stream.division
        self.counts.cost += 1.0 if stream.division is None else stream.division.cost(step)
        stream.index += 1
        return stream.result(step.prediction)

    def _run_in_full(
        self, stream: Stream, step: Step, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        result, division = None, stream.division
        if division is None:
            result, division = self._divide(stream, forward, args, kwargs)
        if step.keeps:
            # With w = 1 the very first call runs twice: its units are known only after it was traced.
            try:
                result = self._run_and_keep(stream, division, [step.index], forward, args, kwargs)
            except ShapeChangedError:
                _, division = self._divide(stream, forward, args, kwargs)
                stream.channel = None
                # What earlier steps have left is of the old shapes: as if nothing had changed since.
                versions = range(division.schedule.first_kept, step.index + 1)
                result = self._run_and_keep(stream, division, versions, forward, args, kwargs)
        elif result is None:
            result = forward(*args, **kwargs)
        leaves, stream.structure = tree_flatten(result)
        stream.predictions = self._share({step.index: leaves}, {step.index: division.partition.predictor})

    def _known_division(self, stream: Stream) -> Division | None:
        """The division made for such calls: best for a stream in the same place, since values may decide on shapes."""
        known = self._divisions_for(stream)
        return known.get((self._lane, stream.place), next(iter(known.values()), None))

    def _divisions_for(self, stream: Stream) -> dict[tuple[int, int], Division]:
        """Those made for calls like a stream's, by lane and place."""
        key = (self._module_structure, stream.arguments.signature, stream.times_larger, self._goal())
        return self._divisions.setdefault(key, {})

    def _goal(self) -> Goal | None:
        steps = len(self._clock.course.timesteps)
        return Goal(steps, self._target_speedup) if self._target_speedup is not None and steps else None

    def _divide(
        self, stream: Stream, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Division]:
        """Record a call and divide the denoiser for its stream; returns the call's result and the division."""
        result, trace = record(self._denoiser, forward, *own_containers(args, kwargs))
        goal = self._goal()
        weighed = operations_per_byte(self._device)
        division = plan(trace, self._schedule, self._split, weighed, self._method, goal, stream.times_larger)
        stream.division = division
        self._divisions_for(stream)[self._lane, stream.place] = division
        reached = 0.0 if goal is None else division.modelled_speedup(goal.steps)
        if goal is not None and reached < goal.speedup:
            logger.warning(
                "the denoiser %r cannot be made %.2f times as fast in %d steps; bridge=%d makes it %.2f times as fast",
                self.name,
                goal.speedup,
                goal.steps,
                division.schedule.bridge,
                reached,
            )
        self._units.add(division.graph)
        owners = torch.tensor([division.partition.owner(unit) or 0 for unit in range(len(division.graph.units))])
        self._exchange.check_agreement(owners, 0 * owners, f"the division of the denoiser {self.name!r}")
        return result, division

    def _run_and_keep(
        self,
        stream: Stream,
        division: Division,
        versions: Sequence[int],
        forward: Forward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """A step in full that others follow on: what they read is stored."""
        if stream.channel is None:
            stream.channel = self._exchange.open(division)
        rule = keep_what_ranks_read(division, self._exchange.ranks, stream.channel, versions)
        return self._units.walk(division.graph, rule, forward, *own_containers(args, kwargs))

    def _run_round(
        self, stream: Stream, step: Step, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        division, channel = stream.ready()
        self._interrupted = True
        channel.start_round()
        made: dict[int, list[Any]] = {}
        for task in self._tasks(step):
            rule = compute_task(division, task, channel, self.counts, stream.moment)
            leaves = self._walk(stream, division, rule, task, forward, args, kwargs)
            if task.predicts is not None and not task.completes:
                made[task.predicts] = leaves
        channel.end_round(step.index)
        self._complete(stream, step, forward, args, kwargs, made)
        self._interrupted = False

    def _complete(
        self,
        stream: Stream,
        step: Step,
        forward: Forward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        made: Mapping[int, list[Any]] | None = None,
    ) -> None:
        """Make the predictions that no component alone makes, and give all of them to every rank.

        `made` are those that this process has made already, by step.
        """
        division, channel = stream.ready()
        predictions = dict(made or {})
        for task in self._tasks(step):
            if task.completes and task.predicts is not None:
                rule = complete_task(division, task, channel, self.counts, stream.moment)
                predictions[task.predicts] = self._walk(stream, division, rule, task, forward, args, kwargs)
        sources = {task.predicts: task.rank for task in step.tasks if task.predicts is not None}
        like = next(iter(stream.predictions.values()))
        stream.predictions.update(self._share({at: predictions.get(at, like) for at in sources}, sources))
        stream.predictions = {at: leaves for at, leaves in stream.predictions.items() if at >= step.index}

    def _tasks(self, step: Step) -> list[Task]:
        """Those of this process."""
        return [task for task in step.tasks if task.rank in self._exchange.ranks]

    def _walk(
        self,
        stream: Stream,
        division: Division,
        rule: UnitRule,
        task: Task,
        forward: Forward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> list[Any]:
        """Call the denoiser with a task's label and a rule for its units; returns the leaves of the result."""
        labelled = own_containers(args, kwargs)
        if task.label != stream.index:
            labelled = self._form.with_times(stream.times(task.label), *labelled)
        return tree_flatten(self._units.walk(division.graph, rule, forward, *labelled))[0]

    def _share(self, predictions: dict[int, list[Any]], sources: dict[int, int]) -> dict[int, list[Any]]:
        """The predictions as their source ranks have made them."""
        return share_results(self._exchange, predictions, sources)

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any], context: Any) -> Arguments:
        parts = self._form.read(args, kwargs)
        surroundings = surroundings_of(self._modules, self._device.type)
        times = tuple(parts.times)
        return Arguments((surroundings, times, parts.signature), context, parts.tensors, parts.times)

    def _look_again(self) -> None:
        """Once a generation: adapters and fusions change the module tree, and with it what the units are."""
        self._generation = self._clock.generation
        for lane in self._lanes:
            lane.counts = Counts()
        self._lane = 0
        if self._interrupted and self._exchange.is_between_processes:
            raise ExchangeError(
                f"a round of the denoiser {self.name!r} was interrupted, so messages between the ranks may be "
                "outstanding; call disable() and attach again"
            )
        check_callable_in_parts(self.name, self._denoiser)
        self._exchange.share_random_state()
        structure = structure_of(self._denoiser)
        if structure != self._module_structure:
            self._module_structure = structure
            self._modules = [module for module in self._denoiser.modules() if next(module.children(), None) is not None]
            self._units.remove()
        for (made_for, *_), divisions in self._divisions.items():
            if made_for == structure:
                for division in divisions.values():
                    self._units.add(division.graph)


def _reason(stream: Stream, step: Step, schedule: Schedule) -> str:
    """Why a step was computed in full."""
    if step.index < schedule.warmup:
        return stream.reason
    return GUARD if step.index in stream.inserted else RESYNC
