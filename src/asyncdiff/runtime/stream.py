"""Streams: the denoiser calls, one per step, that belong together."""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_unflatten

from asyncdiff.call import Call, is_equal
from asyncdiff.denoiser.form import CallForm, Signature
from asyncdiff.denoiser.graph import Graph
from asyncdiff.exchange.protocol import Channel, Exchange
from asyncdiff.plan.course import Course, course_of
from asyncdiff.plan.division import Division
from asyncdiff.plan.moments import Order
from asyncdiff.plan.schedule import Schedule
from asyncdiff.report import WARM_UP
from asyncdiff.runtime.fillers import Fillers
from asyncdiff.runtime.labels import Labels, Timetable

# Conditioning up to this size is kept to be compared by value; of a larger one only the object's identity is kept.
_SMALL = 2**22


class Arguments:
    """What of a denoiser call tells its stream from others.

    Attributes:
        signature: what decides how the denoiser runs; the same in all calls of a stream.
        context: the name that the pipeline gives to the guidance branch, where it gives one.
        times: the time arguments by name, the timestep first.
    """

    def __init__(self, signature: Signature, context: Any, tensors: Sequence[Tensor], times: dict[str, Any]) -> None:
        self.signature = signature
        self.context = context
        self.times = times
        self._references = [weakref.ref(tensor) for tensor in tensors]
        self._small = [tensor if tensor.numel() <= _SMALL else None for tensor in tensors]

    def same(self, other: "Arguments") -> frozenset[int]:
        """The places at which both have the same tensor object."""
        pairs = zip(self._references, other._references, strict=False)
        return frozenset(place for place, (one, another) in enumerate(pairs) if one() is another() is not None)

    def equal(self, other: "Arguments") -> frozenset[int]:
        """The places at which both have a tensor of the same values."""
        return frozenset(
            place
            for place, (one, another) in enumerate(zip(self._small, other._small, strict=False))
            if one is not None and another is not None and is_equal(one, another)
        )


@dataclass
class Stream:
    """One stream.

    Attributes:
        arguments: those of its last call.
        labels: those of each time argument.
        conditioning: the places of the tensors that are the same in all its calls; None until the second.
        reason: why it began, and thus why its first steps are computed in full.
        first_times: the time arguments with which it began.
        place: how many streams there were when it began.
        division: how the denoiser is divided for it.
        index: the step of its next call, counted from its first.
        last_step: the pipeline's step of its last call.
        predictions: the leaves of the noise predictions made so far in this round, by step.
        structure: how the leaves make up the denoiser's result.
        course: what the schedule makes of its generation; None before its first call.
        judged: the newest step of which it was judged how far its forecasts were off.
    """

    arguments: Arguments
    labels: dict[str, Labels]
    reason: str
    first_times: dict[str, Any]
    place: int = 0
    division: Division | None = None
    index: int = 0
    last_step: int = -1
    conditioning: frozenset[int] | None = None
    channel: Channel | None = None
    predictions: dict[int, list[Any]] = field(default_factory=dict)
    structure: TreeSpec | None = None
    course: Course | None = None
    judged: int = -1
    _is_nan_before: Tensor | None = None
    _order: Order | None = None
    _fillers: dict[int, Fillers] = field(default_factory=dict)

    @staticmethod
    def apart(arguments: Arguments) -> "Stream":
        """For one call that belongs to no generation."""
        return Stream(arguments, {}, "", arguments.times, place=-1)

    def goes_on_with(self, arguments: Arguments) -> bool:
        """Whether a call can be the next one: of the same form, with the same conditioning."""
        mine = self.arguments
        if (mine.signature, mine.context) != (arguments.signature, arguments.context):
            return False
        if arguments.context is not None or self.conditioning is None:
            return True
        return self.conditioning <= arguments.same(mine) or self.conditioning <= arguments.equal(mine)

    def go_on(self, arguments: Arguments, now: int) -> None:
        """The stream's call at the pipeline's step `now`."""
        if self.conditioning is None and self.last_step >= 0:
            self.conditioning = arguments.same(self.arguments) or arguments.equal(self.arguments)
        for name, labels in self.labels.items():
            labels.given(self.index, arguments.times[name])
        self.arguments, self.last_step = arguments, now

    def ready(self) -> tuple[Division, Channel]:
        """Its division and its channel, which the warm-up has left.

        Raises:
            RuntimeError: it has not.
        """
        if self.division is None or self.channel is None:
            raise RuntimeError("a round came before the warm-up")
        return self.division, self.channel

    def opened(self, exchange: Exchange, device: torch.device) -> Channel:
        """Its channel, opened on an exchange if it is not yet."""
        if self.channel is None:
            self.channel = exchange.open(self.divided(), device)
        return self.channel

    def divided(self) -> Division:
        """Its division.

        Raises:
            RuntimeError: its denoiser was not divided yet.
        """
        if self.division is None:
            raise RuntimeError("the denoiser is not divided yet for this stream")
        return self.division

    def order(self) -> Order:
        """In which order its steps' exchanges are."""
        division = self.divided()
        if self._order is None or self._order.division is not division:
            self._order = Order(division)
        return self._order

    def fillers(self, graph: Graph | None = None) -> Fillers:
        """What stands for outputs that nothing reads, of a graph; by default of the one that is walked through."""
        graph = self.divided().walked if graph is None else graph
        known = self._fillers.get(id(graph))
        if known is None or known.graph is not graph:
            known = self._fillers[id(graph)] = Fillers(graph)
        return known

    def follow(self, schedule: Schedule) -> Course:
        """What a schedule makes of its generation, as far as that is known by now."""
        if self.course is None:
            self.course = course_of(schedule)
        elif self.course.schedule != schedule:
            self.course = Course(schedule, inserted=self.course.inserted)
        self.course = self.course.ending_at(self.last())
        return self.course

    def last(self) -> int | None:
        """The index of the generation's last step, where it is known."""
        return next((labels.last() for labels in self.labels.values()), None)

    def moment(self, step: int) -> float:
        """The place of a step in the scheduler's own time."""
        return next((labels.moment(step) for labels in self.labels.values()), float(step))

    def labelled(self, form: CallForm, call: Call, step: int) -> Call:
        """Its call with the time arguments of a step, which may be another one."""
        if step == self.index:
            return call
        return form.with_times(call, {name: labels.argument(step, self.index) for name, labels in self.labels.items()})

    def look_at_warm_up(self) -> None:
        """Note, on the device, whether the last prediction holds what is no number; that is read at the end only."""
        self._is_nan_before = _any_nan(self.predictions)

    def has_lost_its_numbers(self) -> bool:
        """Whether the last predictions hold what is no number, and those of the warm-up did not."""
        before, now = self._is_nan_before, _any_nan(self.predictions)
        return before is not None and now is not None and bool(now) and not bool(before)

    def result(self, step: int) -> Any:
        """The prediction of a step, in the form of the denoiser's own result."""
        if self.structure is None:
            raise RuntimeError("a prediction was asked for before the first denoiser call")
        return tree_unflatten(list(self.predictions[step]), self.structure)


class Streams:
    """All streams of one denoiser in one generation.

    The calls of a step are told apart by the name of their context, where the pipeline gives one; else by their
    conditioning, which is the same tensor object in every step, or at least has the same values; else by their order.
    A call with other conditioning than any before it is a stream of its own, computed in full at first.
    """

    def __init__(self) -> None:
        self._streams: list[Stream] = []

    def __iter__(self) -> Iterator[Stream]:
        return iter(self._streams)

    def begins_step(self, arguments: Arguments, now: int) -> bool:
        """Whether a call must be of the step after `now`, though nothing has said that `now` is over.

        It is, if the call of this step that is most like it had another timestep.
        """
        free_first = sorted(self._streams, key=lambda stream: stream.last_step == now)
        best = _most_alike(free_first, arguments)
        if best is None or best.last_step != now:
            return False
        return not all(is_equal(best.arguments.times[name], time) for name, time in arguments.times.items())

    def begins_again(self, arguments: Arguments) -> bool:
        """Whether a call has the times with which its stream began: with the next piece of a long video, say."""
        best = _most_alike(self._streams, arguments)
        return best is not None and any(
            _goes_back(best.first_times[name], best.arguments.times[name], time)
            for name, time in arguments.times.items()
        )

    def of_call(self, arguments: Arguments, now: int, timetable: Timetable) -> tuple[Stream, bool]:
        """The stream of a call at the pipeline's step `now`, and whether it begins with it."""
        expected = [stream for stream in self._streams if stream.last_step == now - 1]
        stream = _most_alike(expected, arguments)
        if stream is None:
            labels = {name: Labels(timetable) for name in arguments.times}
            stream = Stream(arguments, labels, self._why_new(arguments, now), arguments.times)
            self._streams = [old for old in self._streams if not _is_over(old, now)]
            stream.place = len(self._streams)
            self._streams.append(stream)
        is_new = stream.last_step < 0
        stream.go_on(arguments, now)
        return stream, is_new

    def end_step(self, timestep: Any, now: int, learning_steps: int) -> None:
        """The pipeline's step before `now` is over; streams in their first steps learn its label."""
        for stream in self._streams:
            if stream.last_step == now - 1 and stream.index <= learning_steps:
                for labels in stream.labels.values():
                    labels.learn(stream.index - 1, timestep)

    def _why_new(self, arguments: Arguments, now: int) -> str:
        if now == 0:
            return WARM_UP
        idle = [stream for stream in self._streams if stream.last_step != now]
        if any(stream.last_step < now - 1 and stream.goes_on_with(arguments) for stream in idle):
            return "steps were skipped"
        is_alike = any(stream.arguments.signature == arguments.signature for stream in idle)
        return "new stream" if is_alike or not idle else "inputs of another shape"

    @property
    def held_bytes(self) -> int:
        """The memory that this process takes for versions of live edges."""
        channels = [stream.channel for stream in self._streams if stream.channel is not None]
        return sum(store.bytes for channel in channels for store in channel.stores.values())

    def forget(self) -> None:
        """Drop all streams, without waiting for what is on its way."""
        self._streams.clear()

    def close(self) -> None:
        """End all streams; waits for what is on its way."""
        for stream in self._streams:
            if stream.channel is not None:
                stream.channel.close()
        self._streams.clear()


def _any_nan(predictions: Mapping[int, Sequence[Any]]) -> Tensor | None:
    """Whether there is one, as a tensor that is still on the device."""
    leaves = [leaf for step in predictions.values() for leaf in step if isinstance(leaf, Tensor)]
    found = [leaf.isnan().any() for leaf in leaves if leaf.is_floating_point()]
    return torch.stack(found).any() if found else None


def _most_alike(streams: Sequence[Stream], arguments: Arguments) -> Stream | None:
    """The stream that a call most probably goes on with; the first of several that are equally probable."""
    alike = [stream for stream in streams if stream.goes_on_with(arguments)]
    if arguments.context is not None or len(alike) <= 1:
        return alike[0] if alike else None
    same = [len(stream.arguments.same(arguments)) for stream in alike]
    if max(same) == min(same):  # values are looked at only where the objects do not tell
        same = [len(stream.arguments.equal(arguments)) for stream in alike]
    return alike[same.index(max(same))]


def _is_over(stream: Stream, now: int) -> bool:
    """Whether a stream cannot go on any more, because it missed a step; closes it."""
    if stream.last_step >= now - 1:
        return False
    if stream.channel is not None:
        stream.channel.close()
    return True


def _goes_back(first: Any, last: Any, new: Any) -> bool:
    """Whether a number of a time argument is again what it was at first, and was not meanwhile."""
    first, last, new = torch.as_tensor(first), torch.as_tensor(last), torch.as_tensor(new)
    return first.shape == last.shape == new.shape and bool(((new == first) & (last != first)).any())
