"""What a pipeline has made, taken from what its call returns."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from asyncdiff.errors import ConfigurationError
from asyncdiff.made.media import Made, Sound

# Where the parts of pipelines say how many samples of sound there are in a second.
_RATES = ("output_sampling_rate", "sampling_rate", "sample_rate")


def made_by(pipe: Any, output: Any) -> Made:
    """What a pipeline has made, from what its call has returned.

    Raises:
        ConfigurationError: it is nothing that can be seen or heard.
    """
    pictures, videos = getattr(output, "images", None), getattr(output, "frames", None)
    sounds = getattr(output, "audios", None)
    sounds = getattr(output, "audio", None) if sounds is None else sounds
    made = Made(
        pictures=() if pictures is None else tuple(_pictures(pictures)),
        videos=() if videos is None else tuple(tuple(_pictures(video)) for video in videos),
        sounds=() if sounds is None else tuple(Sound(_samples(sound), _rate(pipe)) for sound in sounds),
    )
    if not (made.pictures or made.videos or made.sounds):
        raise ConfigurationError(
            f"{type(pipe).__name__} makes no pictures, videos or sound; use AsyncDiff from Python for it"
        )
    return made


def _pictures(found: Any) -> Iterator[Image.Image]:
    """The pictures in a list, in a list of lists, or in numbers from 0 to 1."""
    for each in found:
        if isinstance(each, Image.Image):
            yield each
        elif isinstance(each, (list, tuple)):
            yield from _pictures(each)
        else:
            yield _picture(each)


def _picture(values: Any) -> Image.Image:
    """A picture of numbers: a tensor has its channels first, an array last."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().float()
        values = (values.movedim(0, -1) if values.ndim == 3 else values).numpy()
    numbers = np.asarray(values, dtype=np.float32)
    if numbers.ndim != 3 or numbers.shape[-1] not in (1, 3, 4) or not np.isfinite(numbers).all():
        raise ConfigurationError(f"what the pipeline makes is no picture: numbers of shape {numbers.shape}")
    return Image.fromarray(
        np.round(numbers.clip(0, 1) * 255).astype(np.uint8).squeeze(-1 if numbers.shape[-1] == 1 else ())
    )


def _samples(sound: Any) -> npt.NDArray[np.float32]:
    numbers = sound.detach().cpu().float().numpy() if isinstance(sound, torch.Tensor) else np.asarray(sound, np.float32)
    if numbers.ndim not in (1, 2) or not np.isfinite(numbers).all():
        raise ConfigurationError(f"what the pipeline makes is no sound: numbers of shape {numbers.shape}")
    return numbers.reshape(-1, numbers.shape[-1])


def _rate(pipe: Any) -> int:
    """Samples per second: what the last part says that makes sound."""
    parts = list(getattr(pipe, "components", {}).values())
    places = [place for part in reversed(parts) for place in (part, getattr(part, "config", None))]
    for name in _RATES:
        for place in places:
            found = getattr(place, name, None)
            if isinstance(found, int) and found > 0:
                return found
    raise ConfigurationError(f"{type(pipe).__name__} does not say how many samples of sound there are in a second")
