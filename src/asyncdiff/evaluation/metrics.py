"""Means with their uncertainty, and the measures of likeness that need torchmetrics and downloaded weights."""

import contextlib
import math
import socket
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from asyncdiff.errors import AsyncDiffError
from asyncdiff.evaluation.written import METRIC_NAMES

Images = Sequence[Image.Image]
Measure = Callable[[Images, Images, Sequence[str]], float]

# Two-sided 95 % quantiles of Student's t for 1 to 10 degrees of freedom; beyond, the expansion below is exact to 0.1 %.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_NORMAL = 1.959964

_CLIP = "openai/clip-vit-base-patch16"
_SECONDS_TO_CONNECT = 60.0
_REHEARSAL_SIZE = 64


class MetricError(AsyncDiffError, RuntimeError):
    """A metric that was asked for cannot be had here."""


@dataclass(frozen=True)
class Metric:
    """A measure over all pictures of a setting.

    Attributes:
        name: as it is asked for.
        title: as it is shown.
        meaning: one sentence for who reads its numbers.
        is_of_sequential: whether it looks at a picture and its prompt alone, so that the sequential pictures have it.
        measure: from the originals, the pictures and their prompts, in the same order.
    """

    name: str
    title: str
    meaning: str
    is_of_sequential: bool
    measure: Measure


def load_metrics(names: Sequence[str], device: torch.device) -> list[Metric]:
    """The named metrics, with their weights loaded and tried on two pictures, so that they work when they are needed.

    Raises:
        MetricError: no such metric, a package or weights are missing.
    """
    for name in names:
        if name not in METRICS:
            raise MetricError(f"there is no metric {name!r}; choose among {', '.join(METRICS)}")
    return [_load(name, device) for name in names]


def mean_and_half_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean of finite values, and half of its 95 % interval (Student's t); None for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    return mean, _student(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def _student(freedom: int) -> float:
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    # Abramowitz and Stegun, 26.7.5.
    z = _NORMAL
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _load(name: str, device: torch.device) -> Metric:
    try:
        with _limited_waiting():
            metric = METRICS[name](device)
    except ImportError as error:
        raise MetricError(f"{name} needs more packages: pip install 'asyncdiff[evaluate]' ({error})") from error
    except OSError as error:
        raise MetricError(f"the weights for {name} could not be loaded, is there a network? ({error})") from error
    noise = np.random.default_rng(0).integers(0, 256, (2, _REHEARSAL_SIZE, _REHEARSAL_SIZE, 3), dtype=np.uint8)
    pictures = [Image.fromarray(values) for values in noise]
    metric.measure(pictures, pictures[::-1], ["a", "b"])
    return metric


def _lpips(device: torch.device) -> Metric:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    network = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).to(device)

    @torch.no_grad()
    def measure(originals: Images, pictures: Images, prompts: Sequence[str]) -> float:
        network.reset()
        for original, picture in zip(originals, pictures, strict=True):
            network.update(_tensor(picture, device) / 255, _tensor(original, device) / 255)
        return float(network.compute())

    meaning = "perceptual distance to the sequential picture (AlexNet), mean; 0 is equal, lower is closer"
    return Metric("lpips", "LPIPS", meaning, False, measure)


def _clip(device: torch.device) -> Metric:
    from torchmetrics.multimodal.clip_score import CLIPScore
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(_CLIP, use_safetensors=True)
    processor = CLIPProcessor.from_pretrained(_CLIP)
    score = CLIPScore(model_name_or_path=lambda: (ClipFeatures(model), processor)).to(device)

    @torch.no_grad()
    def measure(originals: Images, pictures: Images, prompts: Sequence[str]) -> float:
        score.reset()
        for picture, prompt in zip(pictures, prompts, strict=True):
            score.update(_tensor(picture, device), [prompt])
        return float(score.compute())

    meaning = f"how well the pictures fit their prompts ({_CLIP}, 0 to 100), mean; higher fits better"
    return Metric("clip", "CLIP score", meaning, True, measure)


def _fid(device: torch.device) -> Metric:
    from torchmetrics.image.fid import FrechetInceptionDistance

    distance = FrechetInceptionDistance().to(device)

    @torch.no_grad()
    def measure(originals: Images, pictures: Images, prompts: Sequence[str]) -> float:
        distance.reset()
        for original, picture in zip(originals, pictures, strict=True):
            distance.update(_tensor(original, device), real=True)
            distance.update(_tensor(picture, device), real=False)
        return float(distance.compute())

    meaning = (
        "distance between the distributions of the sequential pictures and these; lower is closer. "
        "It needs thousands of pictures to say much"
    )
    return Metric("fid", "FID", meaning, False, measure)


METRICS: dict[str, Callable[[torch.device], Metric]] = dict(zip(METRIC_NAMES, (_lpips, _clip, _fid), strict=True))


class ClipFeatures(nn.Module):
    """A CLIP model whose features are plain tensors, as torchmetrics 1.9 expects; transformers 5 wraps them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    def get_image_features(self, *args: Any) -> torch.Tensor:
        """Features of pictures."""
        return _pooled(self.model.get_image_features(*args))

    def get_text_features(self, *args: Any) -> torch.Tensor:
        """Features of prompts."""
        return _pooled(self.model.get_text_features(*args))


def _pooled(features: Any) -> torch.Tensor:
    return features if isinstance(features, torch.Tensor) else features.pooler_output


def _tensor(picture: Image.Image, device: torch.device) -> torch.Tensor:
    """A picture as a batch of one, 0 to 255."""
    values = np.array(picture.convert("RGB"))
    return torch.from_numpy(values).permute(2, 0, 1)[None].to(device)


@contextlib.contextmanager
def _limited_waiting() -> Iterator[None]:
    """Downloads that get no answer fail."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS_TO_CONNECT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
