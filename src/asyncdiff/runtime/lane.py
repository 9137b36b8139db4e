"""The calls of one group of ranks: each is found its stream, judged, run by the schedule, and counted."""

import time
from dataclasses import dataclass
from typing import Any

from asyncdiff.call import Call
from asyncdiff.errors import AsyncDiffError, NotANumberError, TraceError
from asyncdiff.happening import Kind
from asyncdiff.plan.course import Course
from asyncdiff.plan.division import Division
from asyncdiff.plan.schedule import Step
from asyncdiff.report import FRESH, GUARD, RESYNC, Counts
from asyncdiff.runtime.context import Context
from asyncdiff.runtime.dividing import Divisions
from asyncdiff.runtime.guard import forecast_error
from asyncdiff.runtime.steps import StepRunner
from asyncdiff.runtime.stream import Arguments, Stream, Streams
from asyncdiff.runtime.token_steps import TokenStepRunner


@dataclass(frozen=True)
class Prospect:
    """A call that is about to be computed.

    Attributes:
        call: the call.
        stream: the one that it belongs to.
        course: what its generation is by now.
        judged: whether it was judged how far the forecasts are off.
        within: whether they are within the bound, on all ranks of the group.
    """

    call: Call
    stream: Stream
    course: Course
    judged: bool = False
    within: bool = True


class Lane:
    """What one group does with its calls. A process computes for one group, or in one process for all of them.

    Attributes:
        streams: which calls belong together.
        counts: what was done in this generation.
        division: that of the last call.
        held_bytes: the memory that the generation took for versions of live edges.
    """

    def __init__(self, context: Context, divisions: Divisions, number: int) -> None:
        self.streams = Streams()
        self.counts = Counts()
        self.division: Division | None = None
        self.held_bytes = 0
        self._context = context
        self._divisions = divisions
        self._number = number
        self._steps = StepRunner(context, divisions, number)
        self._token_steps = TokenStepRunner(context, divisions)

    def count_anew(self) -> None:
        """A generation begins."""
        self.counts, self.held_bytes = Counts(), 0

    def end(self) -> None:
        """The generation is over: nothing of it is kept but what the report tells."""
        self.streams.close()

    def check_numbers(self) -> None:
        """Look at the last predictions.

        Raises:
            NotANumberError: they are no numbers, although those of the warm-up were.
        """
        if any(stream.has_lost_its_numbers() for stream in self.streams):
            raise NotANumberError(
                f"the denoiser {self._context.name!r} gave numbers in the warm-up, and NaN at the end. Either it does "
                "so by itself (warmup=1000 computes all steps in full), or it depends on something that asyncdiff does "
                "not see: please report that"
            )

    def forget(self) -> None:
        """The generation is broken off: nothing of it is kept, and nothing waited for."""
        self.streams.forget()

    def compute(self, call: Call, arguments: Arguments) -> Any:
        """The prediction of a call by the schedule."""
        prospect = self.begin(call, arguments)
        return self.finish(prospect, prospect.within)

    def begin(self, call: Call, arguments: Arguments) -> Prospect:
        """Find a call's stream; compare with the other ranks what has to be the same on all; judge the forecasts."""
        context, clock = self._context, self._context.clock
        stream, is_new = self.streams.of_call(arguments, clock.steps, clock.timetable)
        try:
            if is_new or is_checked_again(context, stream.index):
                context.compare_inputs(call, context.exchange)
            if is_new:
                stream.division = self._divisions.known(stream, self._number)
            course = stream.follow(context.schedule if stream.division is None else stream.division.schedule)
            return self._judge(call, stream, course)
        except BaseException:
            self.streams.forget()
            raise

    def finish(self, prospect: Prospect, within: bool) -> Any:
        """The prediction of a call that was begun.

        Args:
            within: whether forecasts are within the bound, in all parts that are computed at the same time.
        """
        stream, course, counts = prospect.stream, prospect.course, self.counts
        if not within:
            stream.course = course = course.remedied(stream.index)
            counts.inserted[stream.index] = course.inserted[stream.index]
        step, result = course.step(stream.index), None
        begin = time.perf_counter()
        try:
            with self._context.events.span(
                Kind.STEP,
                f"step {step.index}, {step.kind.value}",
                denoiser=self._context.name,
                index=str(step.index),
                kind=step.kind.value,
            ):
                if stream.division is None:
                    result, division = self._divisions.divide(stream, self._number, prospect.call)
                    course = stream.follow(division.schedule)
                    step = course.step(stream.index)
                runner = self._token_steps if course.schedule.by_tokens else self._steps
                runner.run(stream, course, prospect.call, counts, result)
        except BaseException as error:
            self.streams.forget()
            # What was changed in the middle may fail in words of its own, wherever it meets what was recorded before.
            is_own = isinstance(error, Exception) and not isinstance(error, AsyncDiffError)
            if is_own or isinstance(error, TraceError):
                self._divisions.check_unchanged(error)
            raise
        if stream.index == course.schedule.warmup - 1:
            stream.look_at_warm_up()
        counts.add(step.kind, time.perf_counter() - begin, _reason(stream, step, course))
        self.division = stream.division
        counts.cost += 1.0 if stream.division is None else stream.division.cost(step)
        stream.index += 1
        self.held_bytes = max(self.held_bytes, self.streams.held_bytes)
        return stream.result(step.prediction)

    def whole(self, call: Call, arguments: Arguments) -> Any:
        """The result of a call that belongs to no step, by ranks that have a part of the weights each."""
        stream = Stream.apart(arguments)
        stream.division = self._divisions.known(stream, self._number)
        return self._steps.whole(stream, call)

    def end_step(self, timestep: Any) -> None:
        """The pipeline's step is over; the scheduler was told that its timestep was `timestep`."""
        schedule, method = self._context.schedule, self._context.settings.chosen_method
        # Reading a label off a device costs time: only where later labels are needed.
        is_timed = schedule.stride > 1 or schedule.cooldown > 0 or method.versions > 1
        self.streams.end_step(timestep, self._context.clock.steps, schedule.warmup if is_timed else 0)

    def _judge(self, call: Call, stream: Stream, course: Course) -> Prospect:
        """Whether the forecasts are good enough to go on with; one decision for all ranks of the group."""
        versions, bound = course.judged(stream.index), self._context.settings.max_error
        if bound is None or len(versions) < 2 or versions[0].step <= stream.judged:
            return Prospect(call, stream, course)
        stream.judged = versions[0].step
        exchange = self._context.exchange
        division, channel = stream.ready()
        errors = [
            forecast_error(division.method, versions, channel.stores[rank], stream.moment) for rank in exchange.ranks
        ]
        self.counts.largest_error = max(self.counts.largest_error, *errors)
        within = all(error <= bound for error in errors)
        what = f"how far the forecasts of the denoiser {self._context.name!r} are off"
        return Prospect(call, stream, course, True, exchange.agree(within, what))


def is_checked_again(context: Context, index: int) -> bool:
    """Whether the inputs of a stream's step are compared with the other ranks', as those of its first are.

    They are after the first round: by then, ranks would have drifted apart that read what a round does not give to
    all, like a unit's inner state. And before the last step: what one rank has done to its latents shows in them.
    """
    return index == context.schedule.warmup + context.schedule.stride or context.clock.is_at_last_step


def _reason(stream: Stream, step: Step, course: Course) -> str:
    """Why a step is computed in full, if it is."""
    if not step.kind.is_full:
        return ""
    if step.index < course.schedule.warmup:
        return stream.reason
    if step.index in course.inserted:
        return GUARD
    return FRESH if course.schedule.fresh else RESYNC
