"""What every rank computes at every step, with which label, from which versions. Pure, plain data.

Paper: section 3.2 (asynchronous denoising) and section 3.3 (stride denoising).
"""

from dataclasses import dataclass
from enum import Enum

from asyncdiff.errors import ConfigurationError


class StepKind(Enum):
    """How a step gets its noise prediction."""

    FULL = "full"  # the ordinary denoiser, on every rank
    ROUND = "round"  # every component once, all at the same time
    STORED = "stored"  # a prediction that an earlier step has left


@dataclass(frozen=True)
class Task:
    """What one rank computes in a round.

    Attributes:
        rank: who computes.
        component: which component it computes.
        label: the step whose timestep label it is given.
        reads: the version (the step that made them) of the live edges it reads.
        predicts: the step that its noise prediction is for; None if its output is no prediction.
        feeds: whether the live edges it makes are sent to the other ranks.
    """

    rank: int
    component: int
    label: int
    reads: int
    predicts: int | None
    feeds: bool


@dataclass(frozen=True)
class Step:
    """One denoising step.

    Attributes:
        index: 0 is the first step of the generation.
        kind: how the prediction comes about.
        prediction: the step whose prediction is returned (its own, but for steps between the
            warm-up and the first round).
        tasks: what every rank computes, where `kind` is ROUND.
        keeps: whether a full step stores the live edges for the round that follows.
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
        predictor: the component that yields the prediction.
    """

    components: int
    stride: int
    warmup: int
    time_shift: bool = False
    predictor: int | None = None

    def __post_init__(self) -> None:
        for name in ("components", "stride", "warmup"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigurationError(f"{name} must be a whole number of at least 1, not {value!r}")

    @property
    def world_size(self) -> int:
        """N + S − 1: one rank a component, one more for each further prediction of a round."""
        return self.components + self.stride - 1

    def component_of(self, rank: int) -> int:
        """The component that a rank computes; helper ranks compute the predictor's."""
        return rank if rank < self.components else self._predictor

    def step(self, index: int, last: int | None = None) -> Step:
        """The step `index`; `last` is the index of the generation's last step, where it is known."""
        if index < self.warmup:
            return Step(index, StepKind.FULL, index, keeps=index == self.warmup - 1)
        if self._starts_round(index):
            return Step(index, StepKind.ROUND, index, self._tasks(index, last))
        start = self._round_of(index)
        return Step(index, StepKind.STORED, index if start is not None else self.warmup - 1)

    def steps(self, count: int) -> tuple[Step, ...]:
        """All steps of a generation of `count` steps."""
        return tuple(self.step(index, count - 1) for index in range(count))

    @property
    def _predictor(self) -> int:
        return self.components - 1 if self.predictor is None else self.predictor

    def _starts_round(self, index: int) -> bool:
        return index >= self.warmup and (index - 1) % self.stride == 0

    def _round_of(self, index: int) -> int | None:
        start = index - (index - 1) % self.stride
        return start if start >= self.warmup else None

    def _tasks(self, index: int, last: int | None) -> tuple[Task, ...]:
        newest = index - self.stride if index - self.stride >= self.warmup else self.warmup - 1
        ahead = self.stride - 1

        def label(step: int) -> int:
            clamped = step if last is None else min(step, last)
            return clamped - 1 if self.time_shift else clamped

        tasks = [
            Task(
                rank=rank,
                component=rank,
                label=label(index + ahead),
                reads=newest,
                predicts=index + ahead if rank == self._predictor else None,
                feeds=True,
            )
            for rank in range(self.components)
        ]
        tasks += [
            Task(
                rank=self.components + offset,
                component=self._predictor,
                label=label(index + offset),
                reads=newest,
                predicts=index + offset,
                feeds=False,
            )
            for offset in range(ahead)
        ]
        return tuple(tasks)


def speedup(schedule: Schedule, steps: int, largest_share: float) -> float:
    """The modelled speed-up of the denoising loop without communication (paper, appendix).

    T / (w + rounds · c_max), with c_max the largest component's share of a denoiser call.
    """
    work = 0.0
    for step in schedule.steps(steps):
        work += {StepKind.FULL: 1.0, StepKind.ROUND: largest_share, StepKind.STORED: 0.0}[step.kind]
    return steps / work
