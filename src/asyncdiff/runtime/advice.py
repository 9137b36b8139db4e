"""What a user is told that is no error: once, and in a way that ends no call."""

import logging
import warnings

from asyncdiff.report import GUARD, RESYNC, WARM_UP, Report
from asyncdiff.settings import Settings

logger = logging.getLogger(__name__)


def advise(message: str) -> None:
    """Warn; where warnings are made errors, write to the log: a pipeline's call never fails because of advice."""
    try:
        warnings.warn(message, UserWarning, stacklevel=2)
    except UserWarning:
        logger.warning(message)


# From how many rounds on, and how many seconds of one, they are compared with steps in full; and how much longer they
# must take.
_ENOUGH_ROUNDS = 4
_LONG = 0.05
_CLEARLY = 1.1


class Advice:
    """On generations in which nothing was accelerated, and on calls that are part of none."""

    def __init__(self, settings: Settings) -> None:
        self._schedule = settings.schedule()
        self._told: set[str] = set()

    def on_generation(self, report: Report, steps: int) -> None:
        """A generation of so many steps is over."""
        counts = [denoiser.counts for denoiser in report.denoisers]
        # With one component and all tokens a round is a step in full, shared out among groups.
        if report.executor == "distributed" and max(report.components, report.tokens) > 1:
            self._say_if_slower(report)
        if report.accelerated or not any(count.steps for count in counts):
            return
        reasons = {reason for count in counts for reason in count.full} - {WARM_UP, RESYNC, GUARD}
        if reasons and steps > self._schedule.warmup + self._schedule.cooldown:
            advise(
                "asyncdiff accelerated nothing in this generation: no step was a parallel round, because the calls of "
                f"the denoiser do not go on from step to step ({', '.join(sorted(reasons))}); see report()"
            )
        else:
            parts = "one component, " if report.components == report.tokens == 1 else ""
            generation = f"generation of {steps} step{'s' * (steps != 1)}"
            advise(
                f"asyncdiff accelerates nothing in this {generation}: no step is a parallel round "
                f"({parts}warmup={self._schedule.warmup}, cooldown={self._schedule.cooldown}); see report()"
            )

    def _say_if_slower(self, report: Report) -> None:
        """Where a round, with all that is waited for, takes longer than a step in full."""
        for denoiser in report.denoisers:
            counts = denoiser.counts
            if "slower" in self._told or counts.rounds < _ENOUGH_ROUNDS or not counts.full:
                continue
            full, rounds = counts.seconds_full / counts.full.total(), counts.seconds_rounds / counts.rounds
            if rounds > max(_CLEARLY * full, _LONG):
                self._told.add("slower")
                remedy = (
                    "with fresh=True, as tokens alone have it by default, every step takes as long as those"
                    if report.tokens > 1
                    else "nothing becomes faster so: try bridge=2, or fewer devices"
                )
                advise(
                    f"on this device parallel rounds of the denoiser {denoiser.name!r} took longer ({rounds:.3g} s) "
                    f"than its steps in full ({full:.3g} s); {remedy}"
                )

    def on_call_outside(self, name: str, why: str) -> None:
        """A call of a denoiser is computed in full, because it is part of no generation."""
        if why not in self._told:
            self._told.add(why)
            advise(
                f"a call of the {name!r} is part of no generation ({why}), and is computed in full on this device, as "
                "if asyncdiff were not there; to say so beforehand: with async_diff.paused(): ..."
            )
