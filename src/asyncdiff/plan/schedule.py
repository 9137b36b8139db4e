"""What is laid down for all generations, and what a step is made of. Pure, plain data.

Paper: section 3.2 (asynchronous denoising) and section 3.3 (stride denoising).
"""

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from asyncdiff.plan.numbers import check_whole_number


class StepKind(Enum):
    """How a step gets its noise prediction."""

    FULL = "full"  # the ordinary denoiser, on every rank
    DIVIDED = "divided"  # the ordinary denoiser, each rank on its own tokens, with the others' keys of this very step
    CHAINED = "chained"  # the ordinary denoiser, component after component, each on the ranks that have its weights
    ROUND = "round"  # every component once, all at the same time
    BRIDGED = "bridged"  # no component at all: what they would make is forecast
    STORED = "stored"  # a prediction that an earlier step has left

    @property
    def is_full(self) -> bool:
        """Whether the prediction is the ordinary denoiser's, wherever it was computed."""
        return self in (StepKind.FULL, StepKind.DIVIDED, StepKind.CHAINED)


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


@dataclass(frozen=True)
class Step:
    """One denoising step.

    Attributes:
        index: 0 is the first step of the generation.
        kind: how the prediction comes about.
        prediction: the step whose prediction is returned (its own, but for steps between the
            warm-up and the first round).
        tasks: what every rank computes, where `kind` is ROUND or BRIDGED.
        keeps: whether a step in full stores the live edges for the steps that follow.
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
        components: N, how many parts the denoiser has; where tokens are divided P · N, one for each rank.
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
        by_tokens: whether a component is not a part of the denoiser, but all of it, or a part, on a part of the tokens.
        fresh: whether what a step needs of other ranks is exchanged within it, so that a round is a step in full.
        chained: whether a rank has the weights of its own component alone, so that steps in full are chained.
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
    chained: bool = False
    by_tokens: bool = False
    fresh: bool = False

    def __post_init__(self) -> None:
        for name in ("components", "stride", "warmup", "bridge"):
            check_whole_number(name, getattr(self, name), 1)
        if self.resync_every is not None:
            check_whole_number("resync_every", self.resync_every, 1)
        check_whole_number("cooldown", self.cooldown, 0)

    @property
    def world_size(self) -> int:
        """N + S − 1: one rank a component, one more for each further prediction of a round."""
        return self.components + self.stride - 1

    @property
    def in_full(self) -> StepKind:
        """The kind of the steps whose prediction is the ordinary denoiser's."""
        if self.by_tokens:
            return StepKind.DIVIDED
        return StepKind.CHAINED if self.chained else StepKind.FULL

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

    @property
    def predicting_component(self) -> int:
        """The component that yields the prediction; the last, where nothing else is said."""
        return self.components - 1 if self.predictor is None else self.predictor

    def component_of(self, rank: int) -> int:
        """The component that a rank computes; helper ranks compute the predictor's."""
        return rank if rank < self.components else self.predicting_component
