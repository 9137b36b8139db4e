"""The course of one generation: every step by the schedule, as far as the generation is known. Pure, plain data."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from asyncdiff.plan.schedule import Schedule, Step, StepKind, Task, Version

# Steps before the cool-down that are not bridged: what they are off by is not corrected any more. With longer bridges
# that was measured to gain nothing (docs/quality.md).
_NOT_BRIDGED = 3
_SHORT_BRIDGE = 3


@dataclass(frozen=True)
class Course:
    """What a schedule makes of one generation. What was asked once is remembered.

    Attributes:
        schedule: what the generation goes by.
        last: the index of the generation's last step, where it is known.
        inserted: steps that are of another kind because forecasts were too far off (`remedied`). A round in place of
            forecasts ends the bridging.
    """

    schedule: Schedule
    last: int | None = None
    inserted: Mapping[int, StepKind] = field(default_factory=dict)
    _steps: dict[int, Step] = field(default_factory=dict, init=False, repr=False, compare=False)
    _begins: dict[int, int] = field(default_factory=dict, init=False, repr=False, compare=False)
    _histories: dict[tuple[int, int], tuple[Version, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def ending_at(self, last: int | None) -> "Course":
        """The same course, now that its last step is known."""
        if last == self.last:
            return self
        return replace(self, last=last) if self.inserted else course_of(self.schedule, last)

    def steps(self) -> tuple[Step, ...]:
        """All steps.

        Raises:
            ValueError: it is not known how many there are.
        """
        if self.last is None:
            raise ValueError("the last step of this course is not known")
        return tuple(self.step(index) for index in range(self.last + 1))

    def step(self, index: int) -> Step:
        """The step `index`; 0 is the first."""
        if index not in self._steps:
            self._steps[index] = self._step(index)
        return self._steps[index]

    def history(self, index: int, most: int | None = None) -> tuple[Version, ...]:
        """The newest versions that there are at a step, newest first, those that it makes itself left out.

        Args:
            most: how many; by default as many as the schedule's tasks read.
        """
        key = index, self.schedule.versions if most is None else most
        if key not in self._histories:
            self._histories[key] = self._history(*key)
        return self._histories[key]

    def judged(self, index: int) -> tuple[Version, ...]:
        """The versions by which it is judged, before a step, whether it can do without the ordinary denoiser.

        Newest first: how far is the first one from what the others let expect? None where there is nothing to judge:
        the step is computed in full anyway, or has its prediction already.
        """
        if not self.schedule.guarded or self.step(index).kind not in (StepKind.ROUND, StepKind.BRIDGED):
            return ()
        return self.history(index, self.schedule.kept_versions)

    def remedied(self, index: int) -> "Course":
        """The course in which a step is computed for which forecasts are too far off.

        In place of forecasts alone a round, and from then on no step is bridged: rounds inserted here and there leave
        versions that lie unevenly, and forecasts from these are worse than from fewer (docs/quality.md). Else in full.
        """
        start = self._first_round_since(index)
        begins_later_prediction = (index - start) % self.schedule.stride == 0
        is_bridged = index >= start and self._behind_round(index, start) is None
        kind = StepKind.ROUND if is_bridged and begins_later_prediction else self.schedule.in_full
        return replace(self, inserted={**self.inserted, index: kind})

    def _step(self, index: int) -> Step:
        schedule = self.schedule
        if self._is_full(index):
            return self._in_full(index)
        start = self._first_round_since(index)
        if index < start:
            return Step(index, StepKind.STORED, schedule.warmup - 1)
        behind = self._behind_round(index, start)
        if behind is None:
            return Step(index, StepKind.BRIDGED, index, self._bridged(index))
        if behind == 0 and schedule.fresh:
            return self._in_full(index)
        if behind == 0:
            return Step(index, StepKind.ROUND, index, self._round(index))
        if schedule.fresh_sum:
            return Step(index, StepKind.BRIDGED, index, self._completed_later(index, behind))
        return Step(index, StepKind.STORED, index)

    def _in_full(self, index: int) -> Step:
        schedule = self.schedule
        is_read = schedule.bridge > 1 or not schedule.fresh
        return Step(index, schedule.in_full, index, keeps=is_read and index >= schedule.first_kept)

    def _is_full(self, index: int) -> bool:
        schedule, since = self.schedule, index - self.schedule.warmup
        is_due = schedule.resync_every is not None and since % schedule.resync_every == schedule.resync_every - 1
        is_at_end = self.last is not None and index > self.last - schedule.cooldown
        return since < 0 or is_due or is_at_end or self.inserted.get(index) is schedule.in_full

    def _first_round_since(self, index: int) -> int:
        """Where the rounds that a step belongs to begin: after the last full step, in the warm-up's case in line."""
        warmup, begin = self.schedule.warmup, index
        while begin > warmup and begin not in self._begins and not self._is_full(begin - 1):
            begin -= 1
        begin = self._begins[index] = self._begins.get(begin, begin)
        return begin if begin > warmup else begin + (1 - begin) % self.schedule.stride

    def _is_round(self, index: int) -> bool:
        start = self._first_round_since(index)
        return index >= start and self._behind_round(index, start) == 0

    def _behind_round(self, index: int, start: int) -> int | None:
        """How many steps ago the round was that a step's prediction is from; None where it is from none."""
        schedule = self.schedule
        place = (index - start) % (schedule.stride * schedule.bridge)
        behind = place % schedule.stride
        is_near_end = self.last is not None and index - behind > self.last - schedule.cooldown - _NOT_BRIDGED
        is_over = any(kind is StepKind.ROUND and at <= index - behind for at, kind in self.inserted.items())
        is_computed = place < schedule.stride or is_over or (is_near_end and schedule.bridge <= _SHORT_BRIDGE)
        return behind if is_computed else None

    def _history(self, index: int, count: int) -> tuple[Version, ...]:
        found: list[Version] = []
        for step in range(index - 1, self.schedule.first_kept - 1, -1):
            if self._is_full(step):
                found.append(Version(step, step))
            elif self._is_round(step):
                found.append(Version(step, self._label(step + self.schedule.stride - 1)))
            if len(found) == count:
                break
        return tuple(found)

    def _label(self, step: int) -> int:
        clamped = step if self.last is None else min(step, self.last)
        return clamped - 1 if self.schedule.time_shift else clamped

    def _round(self, index: int) -> tuple[Task, ...]:
        schedule, reads = self.schedule, self.history(index)
        ahead, predictor = schedule.stride - 1, schedule.predicting_component
        completes = self.history(index + 1) if schedule.fresh_sum else ()
        # With a fresh sum the later predictions of the round are made in their own steps.
        predicts_later = ahead > 0 and schedule.fresh_sum
        tasks = [
            Task(
                rank=rank,
                label=self._label(index + ahead),
                component=rank,
                reads=reads,
                completes=completes if rank == predictor and ahead == 0 else (),
                predicts=index + ahead if rank == predictor and not predicts_later else None,
                feeds=True,
            )
            for rank in range(schedule.components)
        ]
        tasks += [
            Task(
                rank=schedule.components + offset,
                label=self._label(index + offset),
                component=predictor,
                reads=reads,
                completes=completes if offset == 0 else (),
                predicts=index + offset if offset == 0 or not predicts_later else None,
            )
            for offset in range(ahead)
        ]
        return tuple(tasks)

    def _completed_later(self, index: int, behind: int) -> tuple[Task, ...]:
        """With a stride, each prediction of a round is completed on its own step's latent."""
        schedule = self.schedule
        predictor = schedule.predicting_component
        rank = predictor if behind == schedule.stride - 1 else schedule.components + behind
        return (Task(rank, self._label(index), predictor, completes=self.history(index), predicts=index),)

    def _bridged(self, index: int) -> tuple[Task, ...]:
        schedule = self.schedule
        # Where tokens are divided every rank has what is forecast, and nothing is sent.
        ranks = range(schedule.components) if schedule.by_tokens else (schedule.predicting_component,)
        label, completes = self._label(index), self.history(index)
        return tuple(Task(rank, label, None, completes=completes, predicts=index) for rank in ranks)


@functools.lru_cache(maxsize=16)
def course_of(schedule: Schedule, last: int | None = None) -> Course:
    """The course into which nothing is inserted: one for all generations that go so, which remembers its steps."""
    return Course(schedule, last)
