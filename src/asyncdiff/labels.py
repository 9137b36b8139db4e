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

    A pipeline may scale, shift or expand a timestep before the denoiser sees it, and may give some tokens another
    one: none at all to the tokens of a given picture, say. The pairs of both, seen in the warm-up, give the (affine)
    transformation with which later labels are made, number by number where they differ.
    """

    def __init__(self, timesteps: Sequence[float]) -> None:
        self._timesteps = list(timesteps)
        self._arguments: dict[int, Any] = {}
        self._learnt: dict[int, tuple[float, Any]] = {}

    def given(self, index: int, argument: Any) -> None:
        """The pipeline gave `argument` to the denoiser at step `index`."""
        self._arguments = {step: old for step, old in self._arguments.items() if step >= index - 1}
        self._arguments[index] = argument

    def learn(self, index: int, timestep: Any) -> None:
        """Step `index` is over; the scheduler was told that its timestep was `timestep`."""
        values = set() if timestep is None else set(_numbers(timestep).tolist())
        if len(values) == 1:
            self._learnt[index] = (values.pop(), self._arguments[index])

    def last(self) -> int | None:
        """The index of the generation's last step, where it is known."""
        first = self._first_position()
        return None if first is None else len(self._timesteps) - 1 - first

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
        seen = [*self._learnt.values(), (self._timesteps[first + current], like)]
        timestep = self._timesteps[first + step]
        rows = [_numbers(argument) for _, argument in seen]
        if any(row.shape != rows[0].shape for row in rows):
            raise LabelError(
                "the labels of later steps cannot be derived: the shape of the denoiser's timestep argument changes "
                "from step to step; use stride=1"
            )
        # Most timestep arguments hold one number many times: each different course of numbers is derived once.
        courses, which = torch.unique(torch.stack(rows), dim=1, return_inverse=True)
        timesteps = [value for value, _ in seen]
        derived = [_derive(timesteps, course.tolist(), timestep, _tolerance(like)) for course in courses.T]
        if not isinstance(like, Tensor):
            return type(like)(derived[0])
        return torch.tensor(derived, dtype=torch.float64)[which].reshape(like.shape).to(like)

    def _first_position(self) -> int | None:
        """Where in the scheduler's timesteps the pipeline began: image-to-image leaves the first ones out."""
        for first in range(len(self._timesteps) - max(self._learnt, default=len(self._timesteps))):
            if all(
                math.isclose(self._timesteps[first + step], timestep, rel_tol=1e-6)
                for step, (timestep, _) in self._learnt.items()
            ):
                return first
        return None


def _derive(timesteps: Sequence[float], labels: Sequence[float], timestep: float, tolerance: float) -> float:
    """The simplest of identity, proportion and affine function that made the labels from the timesteps."""
    first, made = timesteps[0], labels[0]
    other, made_other = max(zip(timesteps, labels, strict=True), key=lambda pair: abs(pair[0] - first))
    candidates = [(1.0, 0.0), (made / first if first else 1.0, 0.0)]
    if first != other:
        slope = (made_other - made) / (other - first)
        candidates.append((slope, made - slope * first))
    limit = tolerance * max(abs(label) for label in labels)
    for slope, offset in candidates:
        pairs = zip(timesteps, labels, strict=True)
        if all(abs(slope * seen + offset - label) <= limit for seen, label in pairs):
            return slope * timestep + offset
    raise LabelError(
        "the labels of later steps cannot be derived: the pipeline gives the denoiser "
        + ", ".join(f"{label:g} for {seen:g}" for seen, label in zip(timesteps, labels, strict=True))
        + ", which is no affine function of the scheduler's timestep; use stride=1"
    )


def _tolerance(argument: Any) -> float:
    is_rounded = isinstance(argument, Tensor) and argument.is_floating_point()
    return 4 * torch.finfo(argument.dtype).eps if is_rounded else _EXACT


def _numbers(argument: Any) -> Tensor:
    return torch.as_tensor(argument).detach().to("cpu", torch.float64).flatten()
