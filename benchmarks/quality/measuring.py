"""Compares the pictures of a point with those of the plain pipeline, and both with what they should show."""

import functools
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from asyncdiff.demo import demo_prompts, prompt_agreement
from asyncdiff.evaluation.compare import ssim
from benchmarks.machine import machine
from benchmarks.quality.drawing import Drawn, draw, prompt_numbers, reference
from benchmarks.quality.settings import Setting
from demo_models.classifier import load_classifier, truth

Array = npt.NDArray[np.float64]

_DIGITS = 4
_SMALLEST_ERROR = 1e-12  # a mean square below it counts as this: 120 dB


@dataclass(frozen=True)
class Record:
    """What was measured at one point. The lists have one number for each picture.

    Attributes:
        setting: the point.
        modelled_speedup: of the denoising loop, without communication.
        full_steps: denoiser calls in full by reason, over all generations.
        squared_error: mean square of the decoded picture's difference from the plain pipeline's, values from 0 to 1.
        latent_error: the same of the last latents, over their own mean square.
        similarity: SSIM.
        distance: between the classifier's features, over the usual distance of two different training pictures.
        agreement: in per cent, and that of the plain pipeline.
        frechet: distance between the features of the pictures and those of the training pictures that were prompted,
            and that of the plain pipeline.
        step_error: for each step, RMS of the latents' difference over their RMS; of the first pictures.
        seconds: what drawing took here; all ranks are computed one after the other.
        machine: where.
    """

    setting: Setting
    modelled_speedup: float
    full_steps: dict[str, int]
    squared_error: list[float]
    latent_error: list[float]
    similarity: list[float]
    distance: list[float]
    agreement: float
    agreement_sequential: float
    frechet: float
    frechet_sequential: float
    step_error: list[float]
    seconds: float
    machine: dict[str, Any] = field(repr=False)

    @property
    def decibels(self) -> Array:
        """The PSNR of every picture."""
        return decibels(self.squared_error)

    @classmethod
    def read(cls, fields: dict[str, Any]) -> "Record":
        """What `written` has made of a record."""
        return cls(**(fields | {"setting": Setting.read(fields["setting"])}))

    def written(self) -> dict[str, Any]:
        """As plain data, with few digits."""
        return {name: _rounded(value) for name, value in vars(self).items()} | {"setting": self.setting.written()}


def measure(setting: Setting, folder: Path, device: str = "cpu") -> Record:
    """Draw a point and compare it; `folder` keeps the plain pipeline's pictures."""
    expected = reference(setting, folder, device)
    begin = time.perf_counter()
    drawn, account = draw(setting, device=device)
    seconds = time.perf_counter() - begin
    numbers = prompt_numbers(setting.prompts)
    goal = features(truth()[numbers])
    seen, seen_sequential = features(drawn.pictures), features(expected.pictures)
    return Record(
        setting=setting,
        modelled_speedup=account.modelled_speedup,
        full_steps=dict(account.full),
        squared_error=mean_squares(drawn.pictures - expected.pictures),
        latent_error=_ratios(mean_squares(drawn.latents - expected.latents), mean_squares(expected.latents)),
        similarity=similarities(drawn.pictures, expected.pictures),
        distance=distances(seen, seen_sequential),
        agreement=_agreement(drawn.pictures, numbers),
        agreement_sequential=_agreement(expected.pictures, numbers),
        frechet=frechet(seen, goal),
        frechet_sequential=frechet(seen_sequential, goal),
        step_error=step_errors(drawn, expected),
        seconds=seconds,
        machine=machine(),
    )


def decibels(squares: list[float] | Array) -> Array:
    """Mean squares as signal-to-noise ratio; where there is no error, 120 dB."""
    return -10 * np.log10(np.maximum(np.asarray(squares, dtype=np.float64), _SMALLEST_ERROR))


def mean_squares(difference: Tensor) -> list[float]:
    """The mean square of every picture."""
    squares: list[float] = difference.double().square().flatten(1).mean(dim=1).tolist()
    return squares


def similarities(first: Tensor, second: Tensor) -> list[float]:
    """SSIM of every pair of pictures."""
    pairs = zip(first.double().permute(0, 2, 3, 1).numpy(), second.double().permute(0, 2, 3, 1).numpy(), strict=True)
    return [ssim(one, other) for one, other in pairs]


def features(pictures: Tensor) -> Array:
    """What the classifier sees in the pictures; two different training pictures are usually 1 apart."""
    return _seen(pictures) / _usual_distance()


def distances(first: Array, second: Array) -> list[float]:
    """Between the features of every pair of pictures."""
    apart: list[float] = np.linalg.norm(first - second, axis=1).tolist()
    return apart


def frechet(first: Array, second: Array) -> float:
    """The Fréchet distance between two normal distributions fitted to the features."""
    covariance_1, covariance_2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    offset = first.mean(axis=0) - second.mean(axis=0)
    # The trace of a product's root, from the eigenvalues that the product shares with a positive matrix.
    roots = np.sqrt(np.maximum(np.linalg.eigvals(covariance_1 @ covariance_2).real, 0))
    return max(0.0, float(offset @ offset + np.trace(covariance_1 + covariance_2) - 2 * roots.sum()))


def step_errors(drawn: Drawn, expected: Drawn) -> list[float]:
    """The latents' relative error after every step."""
    difference = (drawn.traced - expected.traced).double().square().flatten(1).mean(dim=1)
    errors: list[float] = (difference / expected.traced.double().square().flatten(1).mean(dim=1)).sqrt().tolist()
    return errors


def to_pil(picture: Tensor) -> Image.Image:
    """A picture of values from 0 to 1."""
    return Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy())


def _seen(pictures: Tensor) -> Array:
    seen: Array = load_classifier().features(pictures).double().numpy()
    return seen


@functools.cache
def _usual_distance() -> float:
    """The mean distance between the features of two different training pictures."""
    return float(torch.pdist(torch.from_numpy(_seen(truth()))).mean())


def _agreement(pictures: Tensor, numbers: list[int]) -> float:
    prompts = demo_prompts()
    return prompt_agreement([to_pil(picture) for picture in pictures], [prompts[number] for number in numbers])


def _ratios(above: list[float], below: list[float]) -> list[float]:
    return [one / other for one, other in zip(above, below, strict=True)]


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(member) for member in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) and math.isfinite(value) else value
