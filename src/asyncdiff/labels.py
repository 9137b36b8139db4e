"""The timestep labels of earlier and later steps, in the form in which the pipeline gives them to the denoiser."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from asyncdiff.errors import LabelError

_EXACT = 1e-6  # of Python numbers and of integers


class Labels:
    """Learns in the warm-up how a pipeline turns the scheduler's timesteps into the denoiser's argument.

    A pipeline may scale, shift or expand a timestep before the denoiser sees it. The pairs of both,
    seen in the warm-up, give the (affine) transformation with which later labels are made.
    """

    def __init__(self, timesteps: Sequence[float]) -> None:
        self._timesteps = list(timesteps)
        self._arguments: dict[int, Any] = {}
        self._pairs: list[tuple[float, float]] = []
        self._first_position: int | None = None
        self._tolerance = _EXACT

    def given(self, index: int, argument: Any) -> None:
        """The pipeline gave `argument` to the denoiser at step `index`."""
        self._arguments = {step: old for step, old in self._arguments.items() if step >= index - 1}
        self._arguments[index] = argument

    def learn(self, index: int, timestep: Any) -> None:
        """Step `index` is over; the scheduler was told that its timestep was `timestep`."""
        timestep = _uniform_value(timestep)
        if self._first_position is None:
            matches = [k for k, value in enumerate(self._timesteps) if math.isclose(value, timestep, rel_tol=1e-6)]
            if not matches:
                return
            self._first_position = matches[0] - index
        argument = self._arguments[index]
        self._pairs.append((timestep, _uniform_value(argument)))
        if isinstance(argument, Tensor) and argument.is_floating_point():
            self._tolerance = 4 * torch.finfo(argument.dtype).eps

    def last(self) -> int | None:
        """The index of the generation's last step, where it is known."""
        if self._first_position is None:
            return None
        return len(self._timesteps) - 1 - self._first_position

    def argument(self, step: int, current: int) -> Any:
        """The denoiser's timestep argument for `step`, at the step `current`.

        Raises:
            LabelError: `step` lies ahead and the pipeline's transformation is not an affine one.
        """
        if step in self._arguments:
            return self._arguments[step]
        if self._first_position is None:
            raise LabelError(
                "the labels of later steps cannot be derived: the timestep that the pipeline gives to "
                "scheduler.step is none of scheduler.timesteps; use stride=1"
            )
        value = self._transform(self._timesteps[self._first_position + step])
        like = self._arguments[current]
        return torch.full_like(like, value) if isinstance(like, Tensor) else type(like)(value)

    def _transform(self, timestep: float) -> float:
        """The simplest of identity, proportion and affine function that made the labels seen so far."""
        (first, made), (other, made_other) = self._pairs[0], self._pairs[-1]
        proportion = made / first if first else 1.0
        candidates = [(1.0, 0.0), (proportion, 0.0)]
        if first != other:
            slope = (made_other - made) / (other - first)
            candidates.append((slope, made - slope * first))
        for slope, offset in candidates:
            if all(self._is_close(slope * seen + offset, label) for seen, label in self._pairs):
                return slope * timestep + offset
        raise LabelError(
            "the labels of later steps cannot be derived: the pipeline gives the denoiser "
            + ", ".join(f"{label:g} for {seen:g}" for seen, label in self._pairs)
            + ", which is no affine function of the scheduler's timestep; use stride=1"
        )

    def _is_close(self, derived: float, label: float) -> bool:
        scale = max(abs(seen) for _, seen in self._pairs)
        return abs(derived - label) <= self._tolerance * scale


def _uniform_value(argument: Any) -> float:
    """The one number in a timestep argument."""
    if not isinstance(argument, Tensor):
        return float(argument)
    low, high = float(argument.min()), float(argument.max())
    if low != high:
        raise LabelError(
            f"the labels of later steps cannot be derived: the denoiser is given different timesteps at once "
            f"({low:g} to {high:g}); use stride=1"
        )
    return low
