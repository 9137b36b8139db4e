"""What every rank computes at every step, with which label, from which versions. Pure, plain data.

Paper: section 3.2 (asynchronous denoising) and section 3.3 (stride denoising).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple

from asyncdiff.errors import ConfigurationError

# Of so many steps at least one is computed, whatever speed is aimed at: forecasts from farther away are worth nothing.
_LONGEST_BRIDGE = 8

# Steps before the cool-down that are not bridged: what they are off by is not corrected any more. With longer bridges
# that was measured to gain nothing (docs/quality.md).
_NOT_BRIDGED = 3
_SHORT_BRIDGE = 3


class StepKind(Enum):
    """How a step gets its noise prediction."""

    FULL = "full"  # the ordinary denoiser, on every rank
    ROUND = "round"  # every component once, all at the same time
    BRIDGED = "bridged"  # no component at all: what they would make is forecast
    STORED = "stored"  # a prediction that an earlier step has left


class Version(NamedTuple):
    """Live edges of one step: the step in which they were made, and the step whose label their makers were given."""

    step: int
    label: int


@dataclass(frozen=True)
class Task:
    """What one rank computes in a step.

    Attributes:
        rank: who computes.
        label: the step whose timestep label it is given.
        component: which component it computes, or has computed with this very label; None if that is forecast too.
        reads: the versions from which what others make is forecast while the component runs, newest first; none if
            no component runs.
        completes: the versions from which the denoiser's last layers get what others have made; none if they belong
            to the component that runs.
        predicts: the step that its noise prediction is for; None if its output is no prediction.
        feeds: whether the live edges it makes are sent to the other ranks.
    """

    rank: int
    label: int
    component: int | None
    reads: tuple[Version, ...] = ()
    completes: tuple[Version, ...] = ()
    predicts: int | None = None
    feeds: bool = False


_NONE: Mapping[int, StepKind] = MappingProxyType({})


@dataclass(frozen=True)
class Step:
    """One denoising step.

    Attributes:
        index: 0 is the first step of the generation.
        kind: how the prediction comes about.
        prediction: the step whose prediction is returned (its own, but for steps between the
            warm-up and the first round).
        tasks: what every rank computes, where `kind` is ROUND or BRIDGED.
        keeps: whether a full step stores the live edges for the steps that follow.
    """

    index: int
    kind: StepKind
    prediction: int
    tasks: tuple[Task, ...] = ()
    keeps: bool = False


@dataclass(frozen=True)
class Schedule:
    """The schedule of N components with stride S after w warm-up steps.

    Attributes:
        components: N, how many parts the denoiser has.
        stride: S, how many predictions a round yields.
        warmup: w, how many steps the ordinary denoiser computes at first.
        time_shift: after the warm-up, give every task the label of the step before.
        bridge: k, of how many predictions' worth of rounds one is computed; the others are forecast, but for those
            right before the cool-down.
        cooldown: how many steps the ordinary denoiser computes at the end, where the last step is known.
        resync_every: after the warm-up, every so manieth step is computed in full; None for never.
        versions: how many versions of what others have made a task reads, where there are as many.
        guarded: whether it is judged how far the newest version is from what the older ones let expect.
        fresh_sum: whether the denoiser's last layers read what several components have made in this round.
        predictor: the component that yields the prediction.
    """

    components: int
    stride: int
    warmup: int
    time_shift: bool = False
    bridge: int = 1
    cooldown: int = 0
    resync_every: int | None = None
    versions: int = 1
    guarded: bool = False
    fresh_sum: bool = False
    predictor: int | None = None

    def __post_init__(self) -> None:
        for name in ("components", "stride", "warmup", "bridge", "resync_every"):
            value = getattr(self, name)
            if name == "resync_every" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigurationError(f"{name} must be a whole number of at least 1, not {value!r}")
        if not isinstance(self.cooldown, int) or isinstance(self.cooldown, bool) or self.cooldown < 0:
            raise ConfigurationError(f"cooldown must be a whole number of at least 0, not {self.cooldown!r}")

    @property
    def world_size(self) -> int:
        """N + S − 1: one rank a component, one more for each further prediction of a round."""
        return self.components + self.stride - 1

    @property
    def completes(self) -> bool:
        """Whether the denoiser's last layers run apart from the component that they belong to, in some steps."""
        return self.fresh_sum or self.bridge > 1

    @property
    def kept_versions(self) -> int:
        """How many versions a rank holds: those that it reads, and one more to judge them by."""
        return self.versions + self.guarded

    @property
    def first_kept(self) -> int:
        """The first step of which a version is kept; not the very first, which is recorded, if it can be helped."""
        return max(self.warmup - self.kept_versions, min(1, self.warmup - 1))

    def component_of(self, rank: int) -> int:
        """The component that a rank computes; helper ranks compute the predictor's."""
        return rank if rank < self.components else self._predictor

    def step(self, index: int, last: int | None = None, inserted: Mapping[int, StepKind] = _NONE) -> Step:
        """The step `index`.

        Args:
            index: 0 is the first.
            last: the index of the generation's last step, where it is known.
            inserted: steps that `remedy` has changed, and into what. A round in place of forecasts ends the bridging.
        """
        if self._is_full(index, last, inserted):
            return Step(index, StepKind.FULL, index, keeps=index >= self.first_kept)
        start = self._first_round_since(index, last, inserted)
        if index < start:
            return Step(index, StepKind.STORED, self.warmup - 1)
        behind = self._behind_round(index, start, last, inserted)
        if behind is None:
            return Step(index, StepKind.BRIDGED, index, self._bridged(index, last, inserted))
        if behind == 0:
            return Step(index, StepKind.ROUND, index, self._round(index, last, inserted))
        if self.fresh_sum:
            return Step(index, StepKind.BRIDGED, index, self._completed_later(index, behind, last, inserted))
        return Step(index, StepKind.STORED, index)

    def steps(self, count: int) -> tuple[Step, ...]:
        """All steps of a generation of `count` steps."""
        return tuple(self.step(index, count - 1) for index in range(count))

    def judged(
        self, index: int, last: int | None = None, inserted: Mapping[int, StepKind] = _NONE
    ) -> tuple[Version, ...]:
        """The versions by which it is judged, before a step, whether it can do without the ordinary denoiser.

        Newest first: how far is the first one from what the others let expect? None where there is nothing to judge:
        the step is computed in full anyway, or has its prediction already.
        """
        if not self.guarded or self.step(index, last, inserted).kind not in (StepKind.ROUND, StepKind.BRIDGED):
            return ()
        return self._history(index, last, inserted, self.kept_versions)

    def remedy(self, index: int, last: int | None = None, inserted: Mapping[int, StepKind] = _NONE) -> StepKind:
        """What a step becomes when forecasts are too far off for what it would be.

        In place of forecasts alone a round, and from then on no step is bridged: rounds inserted here and there leave
        versions that lie unevenly, and forecasts from these are worse than from fewer (docs/quality.md). Else in full.
        """
        start = self._first_round_since(index, last, inserted)
        begins_later_prediction = (index - start) % self.stride == 0
        is_bridged = index >= start and self._behind_round(index, start, last, inserted) is None
        return StepKind.ROUND if is_bridged and begins_later_prediction else StepKind.FULL

    @property
    def _predictor(self) -> int:
        return self.components - 1 if self.predictor is None else self.predictor

    def _is_full(self, index: int, last: int | None, inserted: Mapping[int, StepKind]) -> bool:
        since = index - self.warmup
        is_due = self.resync_every is not None and since % self.resync_every == self.resync_every - 1
        is_at_end = last is not None and index > last - self.cooldown
        return since < 0 or is_due or is_at_end or inserted.get(index) is StepKind.FULL

    def _first_round_since(self, index: int, last: int | None, inserted: Mapping[int, StepKind]) -> int:
        """Where the rounds that a step belongs to begin: after the last full step, in the warm-up's case in line."""
        begin = index
        while begin > self.warmup and not self._is_full(begin - 1, last, inserted):
            begin -= 1
        return begin if begin > self.warmup else begin + (1 - begin) % self.stride

    def _is_round(self, index: int, last: int | None, inserted: Mapping[int, StepKind]) -> bool:
        start = self._first_round_since(index, last, inserted)
        return index >= start and self._behind_round(index, start, last, inserted) == 0

    def _behind_round(self, index: int, start: int, last: int | None, inserted: Mapping[int, StepKind]) -> int | None:
        """How many steps ago the round was that a step's prediction is from; None where it is from none."""
        place = (index - start) % (self.stride * self.bridge)
        behind = place % self.stride
        is_near_end = last is not None and index - behind > last - self.cooldown - _NOT_BRIDGED
        is_over = any(kind is StepKind.ROUND and at <= index - behind for at, kind in inserted.items())
        is_computed = place < self.stride or is_over or (is_near_end and self.bridge <= _SHORT_BRIDGE)
        return behind if is_computed else None

    def _history(
        self, index: int, last: int | None, inserted: Mapping[int, StepKind], most: int | None = None
    ) -> tuple[Version, ...]:
        """The newest versions that there are at a step, those that it makes itself left out."""
        found: list[Version] = []
        for step in range(index - 1, self.first_kept - 1, -1):
            if self._is_full(step, last, inserted):
                found.append(Version(step, step))
            elif self._is_round(step, last, inserted):
                found.append(Version(step, self._label(step + self.stride - 1, last)))
            if len(found) == (most or self.versions):
                break
        return tuple(found)

    def _label(self, step: int, last: int | None) -> int:
        clamped = step if last is None else min(step, last)
        return clamped - 1 if self.time_shift else clamped

    def _round(self, index: int, last: int | None, inserted: Mapping[int, StepKind]) -> tuple[Task, ...]:
        reads = self._history(index, last, inserted)
        ahead = self.stride - 1
        completes = self._history(index + 1, last, inserted) if self.fresh_sum else ()
        # With a fresh sum the later predictions of the round are made in their own steps.
        predicts_later = ahead > 0 and self.fresh_sum
        tasks = [
            Task(
                rank=rank,
                label=self._label(index + ahead, last),
                component=rank,
                reads=reads,
                completes=completes if rank == self._predictor and ahead == 0 else (),
                predicts=index + ahead if rank == self._predictor and not predicts_later else None,
                feeds=True,
            )
            for rank in range(self.components)
        ]
        tasks += [
            Task(
                rank=self.components + offset,
                label=self._label(index + offset, last),
                component=self._predictor,
                reads=reads,
                completes=completes if offset == 0 else (),
                predicts=index + offset if offset == 0 or not predicts_later else None,
            )
            for offset in range(ahead)
        ]
        return tuple(tasks)

    def _completed_later(
        self, index: int, behind: int, last: int | None, inserted: Mapping[int, StepKind]
    ) -> tuple[Task, ...]:
        """With a stride, each prediction of a round is completed on its own step's latent."""
        rank = self._predictor if behind == self.stride - 1 else self.components + behind
        versions = self._history(index, last, inserted)
        label = self._label(index, last)
        return (Task(rank, label, self._predictor, completes=versions, predicts=index),)

    def _bridged(self, index: int, last: int | None, inserted: Mapping[int, StepKind]) -> tuple[Task, ...]:
        versions = self._history(index, last, inserted)
        return (Task(self._predictor, self._label(index, last), None, completes=versions, predicts=index),)


def cost(step: Step, largest_share: float, end_share: float = 0.0) -> float:
    """The modelled time of a step, in denoiser calls, without communication.

    `largest_share` is the largest component's part of a call, `end_share` that of the denoiser's last layers, where
    they run apart from the components.
    """
    computed = {StepKind.FULL: 1.0, StepKind.ROUND: largest_share}.get(step.kind, 0.0)
    return computed + (end_share if any(task.completes for task in step.tasks) else 0.0)


def speedup(schedule: Schedule, steps: int, largest_share: float, end_share: float = 0.0) -> float:
    """The modelled speed-up of the denoising loop without communication (paper, appendix).

    T / (w + rounds · c_max), with c_max the largest component's share of a denoiser call, and the cost of `cost`.
    """
    return steps / sum(cost(step, largest_share, end_share) for step in schedule.steps(steps))


def fast_enough(
    schedule: Schedule, steps: int, target: float, largest_share: float, end_share: float = 0.0
) -> Schedule:
    """The same schedule with the smallest `bridge` whose modelled speed-up reaches the target, or else the fastest."""
    candidates = [replace(schedule, bridge=bridge) for bridge in range(1, _LONGEST_BRIDGE + 1)]
    speedups = [speedup(candidate, steps, largest_share, end_share) for candidate in candidates]
    reaching = (candidate for candidate, reached in zip(candidates, speedups, strict=True) if reached >= target)
    return next(reaching, candidates[speedups.index(max(speedups))])
