"""Means with intervals, and paired comparisons of two points."""

from dataclasses import dataclass

import numpy as np

from benchmarks.quality.drawing import prompt_numbers
from benchmarks.quality.measuring import Array, Record

_RESAMPLES = 4000


@dataclass(frozen=True)
class Mean:
    """A mean, and the interval that covers it with 95 per cent (bootstrap over the pictures)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"


@dataclass(frozen=True)
class Gain:
    """How much closer to the plain pipeline's pictures one point comes than another, in dB.

    Attributes:
        paired: the mean over the pictures that both have drawn from the same prompt and seed.
        pooled: of the mean squares over all these pictures; the worst pictures decide it.
        pictures: how many pairs.
    """

    paired: Mean
    pooled: float
    pictures: int

    def __str__(self) -> str:
        return f"{self.paired} dB (mean squares of all {self.pictures}: {self.pooled:.1f} dB)"


def mean(values: Array) -> Mean:
    """The mean with its interval."""
    drawn = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), (2.5, 97.5))
    return Mean(float(values.mean()), float(low), float(high))


def gain(ours: Record, theirs: Record) -> Gain:
    """What `ours` gains over `theirs`."""
    own, other = _by_prompt(ours.decibels, ours), _by_prompt(theirs.decibels, theirs)
    shared = sorted(own.keys() & other.keys())
    squares = [_by_prompt(np.asarray(record.squared_error), record) for record in (ours, theirs)]
    sums = [sum(by_prompt[number] for number in shared) for by_prompt in squares]
    pooled = float(10 * np.log10(sums[1] / sums[0])) if all(sums) else float("nan")
    return Gain(mean(np.array([own[number] - other[number] for number in shared])), pooled, len(shared))


def _by_prompt(values: Array, record: Record) -> dict[int, float]:
    return dict(zip(prompt_numbers(record.setting.prompts), values.tolist(), strict=True))
