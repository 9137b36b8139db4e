"""Which of the candidates are worth looking at, and which one is taken. Pure."""

from collections.abc import Sequence
from dataclasses import replace

from asyncdiff.planning.candidates import Candidate
from asyncdiff.planning.quantity import written_bytes

CLOSE_ENOUGH = 55.0
"""Decibels on the demo models: pictures that differ by half a level of 255, as the root of the mean square."""


def mark_best(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The candidates, with those marked that fit, and that no other that fits beats in time and in decibels."""
    rated = [candidate for candidate in candidates if candidate.fits and candidate.decibels is not None]
    return tuple(
        replace(candidate, is_best=candidate in rated and not any(_beats(other, candidate) for other in rated))
        for candidate in candidates
    )


def choose(candidates: Sequence[Candidate]) -> tuple[Candidate | None, str]:
    """The candidate to take, and why in a sentence; None where nothing fits.

    The fastest that is close enough, or the closest, where none is; of equally fast ones that with the fewest devices.
    """
    best = [candidate for candidate in candidates if candidate.is_best]
    if not best:
        least = min(candidates, key=lambda candidate: candidate.missing)
        return None, (
            f"Nothing fits: {least.way} needs the least, {written_bytes(least.memory.total)} on a device, which is "
            f"{written_bytes(least.missing)} more than there is."
        )
    close = [candidate for candidate in best if (candidate.decibels or 0.0) >= CLOSE_ENOUGH]
    if not close:
        chosen = max(best, key=lambda candidate: (candidate.decibels or 0.0, -candidate.devices))
        return (
            chosen,
            f"Nothing that fits stays as close as {CLOSE_ENOUGH:g} dB on the demo models; this is the closest.",
        )
    chosen = min(close, key=lambda candidate: (candidate.seconds, candidate.devices))
    if chosen.way.is_exact:
        return chosen, "The fastest that fits, and its pictures are the ordinary ones."
    return chosen, (
        f"The fastest that fits and stays as close as {CLOSE_ENOUGH:g} dB to the ordinary pictures on the demo models "
        f"({chosen.decibels:.1f} dB; an indication: yours may differ)."
    )


def _beats(one: Candidate, other: Candidate) -> bool:
    """Whether one is at least as good in time and decibels, and better in one of these."""
    mine, others = (-one.seconds, one.decibels or 0.0), (-other.seconds, other.decibels or 0.0)
    return all(own >= its for own, its in zip(mine, others, strict=True)) and mine != others
