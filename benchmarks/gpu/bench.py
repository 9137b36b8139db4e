"""One denoiser on the bench: stages that are measured while there is time for them, and what all of them share."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from asyncdiff.settings import Settings
from benchmarks.gpu.loop import Loop, Setting
from benchmarks.gpu.measure import Kind, Stopwatch, Timing, failures_noted
from benchmarks.gpu.models import Subject
from benchmarks.gpu.solo import SoloWorld

DEFAULT = Settings()
WARMUP = 2  # shorter than the default: a round costs the same after it

SECONDS_OF_REPEATS = 1.2
MOST_REPEATS, FEWEST_REPEATS = 10, 3
ALONE = 2
SECONDS_TO_RECORD = 2.0

Put = Callable[[str, Any], None]
"""Keeps a result by its name."""


@dataclass
class Bench:
    """One denoiser on the bench.

    Attributes:
        subject: what is measured.
        setting: where and how large.
        put: keeps a result.
        deadline: in `time.time()`'s time; what would take longer is left out.
        plain: seconds of a plain call, as soon as they are known.
    """

    subject: Subject
    setting: Setting
    put: Put
    deadline: float
    plain: float = 0.0
    found: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def stage(self, name: str, expected: float, measure: Callable[[], Any]) -> Any:
        """Measure something, if there is time for it, and keep it; None if it came to nothing.

        Args:
            expected: seconds that it will take.
        """
        left = self.deadline - time.time()
        if left < expected:
            self._failed(name, f"left out: {left:.0f} s left, {expected:.0f} s expected")
            return None
        begin, result = time.monotonic(), None
        with failures_noted(partial(self._failed, name)):
            result = measure()
        self.seconds[name] = time.monotonic() - begin
        self.put("seconds", self.seconds)
        print(f"  {name}: {self.seconds[name]:.1f} s", flush=True)
        if result is not None:
            self.found[name] = result
            self.put(name, result)
        return result

    def _failed(self, name: str, text: str) -> None:
        self.failures[name] = text
        self.put("failures", self.failures)

    @property
    def repeats(self) -> int:
        """How many calls of a kind are timed: fewer of a slow denoiser."""
        wanted = SECONDS_OF_REPEATS / self.plain if self.plain else MOST_REPEATS
        return max(FEWEST_REPEATS, min(MOST_REPEATS, int(wanted)))

    def expected(self, components: int, share: float = 1.0) -> float:
        """Seconds that all ranks of so many components take; of a part of the batch, that part of it."""
        rounds = (rounds_to_fill() + self.repeats + ALONE + 1) / components
        return SECONDS_TO_RECORD + components * (WARMUP + 1.3 * rounds) * self.plain * share


def rounds_to_fill() -> int:
    """Rounds until a rank holds as many versions as the method reads; it computes more with more of them."""
    return DEFAULT.chosen_method.versions - 1


def timed(bench: Bench) -> list[Kind]:
    """What is measured of calls that are alike."""
    return [*[Kind.STEADY] * bench.repeats, *[Kind.ALONE] * ALONE, Kind.OPERATORS]


def plan_of_round(bench: Bench) -> list[Kind]:
    """Steps in full, rounds until all is held that is forecast from, and those that are measured."""
    full = [Kind.FIRST, *[Kind.FULL] * (WARMUP - 1)]
    return [*full, *[Kind.SKIPPED] * rounds_to_fill(), *timed(bench)]


def run(loop: Loop, plan: list[Kind], world: SoloWorld | None = None) -> tuple[Timing, bool]:
    """One generation by a plan; also whether its numbers are finite."""
    watch = Stopwatch(loop.setting.device, plan)
    if world is not None:
        world.on_components_done = watch.components_done
    latents = loop(len(plan), watch)
    return watch.timing(), bool(torch.isfinite(latents).all())
