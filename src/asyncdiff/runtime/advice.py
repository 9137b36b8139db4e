"""What a user is told of a generation in which nothing is accelerated: once, as a warning."""

import warnings
from collections.abc import Sequence

from asyncdiff.report import GUARD, RESYNC, WARM_UP, Counts
from asyncdiff.runtime.clock import Clock
from asyncdiff.settings import Settings


class Advice:
    """Warns at most once for each generation."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._schedule = settings.schedule()
        self._clock = clock
        self._warned_of = -1

    def on_length(self) -> None:
        """Whether the generation that begins has any step between warm-up and cool-down."""
        if 0 < len(self._clock.timetable.timesteps) <= self._schedule.warmup + self._schedule.cooldown:
            self.not_accelerated()

    def not_accelerated(self) -> None:
        """No step of this generation is a parallel round."""
        self._warn(
            self._clock.generation,
            f"asyncdiff accelerates nothing in this generation of {len(self._clock.timetable.timesteps)} steps: "
            f"no step is a parallel round (warmup={self._schedule.warmup}, cooldown={self._schedule.cooldown}); "
            "see report()",
        )

    def on_reasons(self, generation: int, counts: Sequence[Counts]) -> None:
        """Whether all steps of a generation were computed in full, although the warm-up was over."""
        reasons = {reason for count in counts for reason in count.full}
        if reasons - {WARM_UP, RESYNC, GUARD} and not any(count.rounds for count in counts):
            self._warn(
                generation,
                "asyncdiff accelerated nothing in this generation: no step was a parallel round, because the calls of "
                f"the denoiser do not go on from step to step ({', '.join(sorted(reasons))}); see report()",
            )

    def _warn(self, generation: int, message: str) -> None:
        if self._warned_of < generation:
            self._warned_of = generation
            warnings.warn(message, stacklevel=5)
