"""The timestep labels of earlier and later steps, in the form in which the pipeline gives them to the denoiser."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asyncdiff.errors import LabelError

_EXACT = 1e-6  # of Python numbers and of integers


@dataclass(frozen=True)
class Timetable:
    """A generation as the scheduler has set it up: for every noise prediction its timestep and, if known, its sigma."""

    timesteps: tuple[float, ...] = ()
    sigmas: tuple[float, ...] = ()

    def series(self) -> Iterator[tuple[float, ...]]:
        """What a label may be a function of; most are one of the timestep, some one of the noise level."""
        yield self.timesteps
        if self.sigmas:
            yield self.sigmas
            yield tuple(math.log(sigma) if sigma > 0 else -math.inf for sigma in self.sigmas)
            yield tuple(sigma / (1 + sigma) for sigma in self.sigmas)  # the flow time of a noise level
        if all(0 <= timestep < 1.571 for timestep in self.timesteps):
            # Angles between picture and noise (TrigFlow), which models trained on flow times are given as such.
            yield tuple(math.sin(angle) / (math.sin(angle) + math.cos(angle)) for angle in self.timesteps)


class Labels:
    """Learns in the warm-up how a pipeline turns the scheduler's timesteps into the denoiser's argument.

    A pipeline may scale, shift or expand a timestep before the denoiser sees it, and may give some tokens another
    one: none at all to the tokens of a given picture, say. The pairs of both, seen in the warm-up, give the (affine)
    transformation with which later labels are made, number by number where they differ.
    """

    def __init__(self, timetable: Timetable) -> None:
        self._timetable = timetable
        self._arguments: dict[int, Any] = {}
        self._learnt: dict[int, tuple[float, Any]] = {}
        self._found: tuple[int | None] | None = None  # where the pipeline began, as far as that was learnt

    def given(self, index: int, argument: Any) -> None:
        """The pipeline gave `argument` to the denoiser at step `index`."""
        self._arguments = {step: old for step, old in self._arguments.items() if step >= index - 1}
        self._arguments[index] = argument

    def learn(self, index: int, timestep: Any) -> None:
        """Step `index` is over; the scheduler was told that its timestep was `timestep`."""
        values = set() if timestep is None else set(numbers_of(timestep).tolist())
        if len(values) == 1:
            self._learnt[index] = (values.pop(), self._arguments[index])
            self._found = None

    def last(self) -> int | None:
        """The index of the generation's last step, where it is known."""
        first = self._first_position()
        return None if first is None else len(self._timetable.timesteps) - 1 - first

    def moment(self, step: int) -> float:
        """The place of a step in the scheduler's own time: its timestep; its number, where that cannot be told."""
        first = self._first_position()
        timesteps = self._timetable.timesteps
        return float(step) if first is None else timesteps[min(first + step, len(timesteps) - 1)]

    def argument(self, step: int, current: int) -> Any:
        """The denoiser's timestep argument for `step`, at the step `current`.

        Raises:
            LabelError: `step` lies ahead and the pipeline's transformation is not an affine one.
        """
        if step in self._arguments:
            return self._arguments[step]
        first = self._first_position()
        if first is None:
            raise LabelError(
                "the labels of later steps cannot be derived: the timesteps that the pipeline gives to "
                "scheduler.step are none of scheduler.timesteps; use stride=1"
            )
        like = self._arguments[current]
        seen = {**{index: argument for index, (_, argument) in self._learnt.items()}, current: like}
        rows = [numbers_of(argument) for argument in seen.values()]
        if any(row.shape != rows[0].shape for row in rows):
            raise LabelError(
                "the labels of later steps cannot be derived: the shape of the denoiser's timestep argument changes "
                "from step to step; use stride=1"
            )
        if len(rows) > 1 and all(torch.equal(row, rows[0]) for row in rows):
            return like  # a time that does not go with the steps
        # Most timestep arguments hold one number many times: each different course of numbers is derived once.
        numbers, which = torch.unique(torch.stack(rows), dim=1, return_inverse=True)
        positions = [first + index for index in seen]
        derived = [self._derive(positions, labels.tolist(), first + step, like) for labels in numbers.T]
        if not isinstance(like, Tensor):
            return type(like)(derived[0])
        return torch.tensor(derived, dtype=torch.float64)[which].reshape(like.shape).to(like.dtype).to(like.device)

    def _derive(self, positions: Sequence[int], labels: Sequence[float], position: int, like: Any) -> float:
        """One number of a later label, from what it was at some positions of the timetable."""
        exact = self._derive_quotient(positions, labels, position, like)
        if exact is not None:
            return exact
        for fit in (_identity, _proportion, _constant, _affine):
            for series in self._timetable.series():
                seen = [series[at] for at in positions]
                slope, offset = fit(seen, labels)
                limit = _tolerance(like) * max(abs(label) for label in labels)
                if all(abs(slope * value + offset - label) <= limit for value, label in zip(seen, labels, strict=True)):
                    return slope * series[position] + offset
        pairs = zip((self._timetable.timesteps[at] for at in positions), labels, strict=True)
        raise LabelError(
            "the labels of later steps cannot be derived: the pipeline gives the denoiser "
            + ", ".join(f"{label:g} for {timestep:g}" for timestep, label in pairs)
            + ", which is no affine function of the scheduler's timestep or noise level that could be told from "
            f"{len(labels)} of them; use stride=1 or a longer warm-up"
        )

    def _derive_quotient(
        self, positions: Sequence[int], labels: Sequence[float], position: int, like: Any
    ) -> float | None:
        """The timestep, or a whole part of it, rounded as the pipeline rounds it: first to the type, then once more."""
        divisor = round(self._timetable.timesteps[positions[0]] / labels[0]) if labels[0] else 0
        if divisor < 1 or not isinstance(like, Tensor) or not like.is_floating_point():
            return None
        timesteps = torch.tensor(self._timetable.timesteps, dtype=torch.float64).to(like.dtype) / divisor
        seen = torch.tensor(labels, dtype=torch.float64).to(like.dtype)
        return float(timesteps[position]) if torch.equal(timesteps[list(positions)].cpu(), seen) else None

    def _first_position(self) -> int | None:
        """Where in the scheduler's timesteps the pipeline began: image-to-image leaves the first ones out."""
        if self._found is None:
            self._found = (self._look_for_first_position(),)
        return self._found[0]

    def _look_for_first_position(self) -> int | None:
        timesteps = self._timetable.timesteps
        for first in range(len(timesteps) - max(self._learnt, default=len(timesteps))):
            if all(
                math.isclose(timesteps[first + step], timestep, rel_tol=1e-6)
                for step, (timestep, _) in self._learnt.items()
            ):
                return first
        return None


def _identity(seen: Sequence[float], labels: Sequence[float]) -> tuple[float, float]:
    return 1.0, 0.0


def _proportion(seen: Sequence[float], labels: Sequence[float]) -> tuple[float, float]:
    return (labels[0] / seen[0] if seen[0] else math.nan), 0.0


def _constant(seen: Sequence[float], labels: Sequence[float]) -> tuple[float, float]:
    return 0.0, labels[0]


def _affine(seen: Sequence[float], labels: Sequence[float]) -> tuple[float, float]:
    """The line through the two points that are farthest apart; two points alone would be on some line always."""
    far = max(range(len(seen)), key=lambda number: abs(seen[number] - seen[0]))
    if len(set(seen)) < 3:
        return math.nan, math.nan
    slope = (labels[far] - labels[0]) / (seen[far] - seen[0])
    return slope, labels[0] - slope * seen[0]


def _tolerance(argument: Any) -> float:
    is_rounded = isinstance(argument, Tensor) and argument.is_floating_point()
    return 4 * torch.finfo(argument.dtype).eps if is_rounded else _EXACT


def numbers_of(argument: Any) -> Tensor:
    """All numbers of an argument, on the host."""
    return torch.as_tensor(argument).detach().cpu().double().flatten()  # not every device has double precision
