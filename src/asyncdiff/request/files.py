"""Pictures, videos and other values that are read from files.

Most requests name none but pictures: the libraries for the others are imported where such a file is read.
"""

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from safetensors import SafetensorError

from asyncdiff.errors import ConfigurationError

VIDEOS = (".gif", ".mp4", ".webm", ".mov", ".avi", ".mkv")
NEEDS_VIDEO = "pip install asyncdiff[video]"


def read_pictures(name: str, file: Path) -> tuple[Image.Image, ...]:
    """The picture in a file, or the frames of the video in it, as RGB, turned as its camera says.

    Args:
        name: what an error calls the file.

    Raises:
        ConfigurationError: there is no file, or it holds no picture.
    """
    if file.suffix.lower() in VIDEOS:
        return _frames(name, file)
    try:
        with Image.open(file) as opened:
            return (rgb_of(f"{name} {file}", opened),)
    except ConfigurationError:
        raise
    except UnidentifiedImageError as error:
        raise ConfigurationError(f"{name} {file} is no picture that Pillow can read") from error
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ConfigurationError(f"{name} {file} cannot be read: {error}") from error


def read_picture(name: str, file: Path) -> Image.Image:
    """The one picture in a file.

    Raises:
        ConfigurationError: there is no file, or it does not hold one picture.
    """
    pictures = read_pictures(name, file)
    if len(pictures) != 1:
        raise ConfigurationError(f"{name} {file} must hold one picture, not {len(pictures)}")
    return pictures[0]


def read_value(name: str, file: Path) -> Any:
    """What a file holds, by its ending: text, JSON, numbers, tensors, a video, or else a picture.

    Raises:
        ConfigurationError: there is no file, or it does not hold what its ending says.
    """
    read = _READERS.get(file.suffix.lower())
    if read is None:
        pictures = read_pictures(name, file)
        return list(pictures) if file.suffix.lower() in VIDEOS else pictures[0]
    try:
        return read(file)
    except (OSError, ValueError, TypeError, EOFError, RecursionError, SafetensorError) as error:
        raise ConfigurationError(f"{name} {file} cannot be read: {error}") from error


def rgb_of(name: str, picture: Image.Image) -> Image.Image:
    """A picture as RGB, turned as its camera says; of 16 bits the upper half.

    Raises:
        ConfigurationError: it holds numbers of which nobody knows what is white.
    """
    if picture.mode == "F":
        raise ConfigurationError(f"{name} holds fractions; save it with 8 or 16 bits")
    if picture.mode.startswith("I"):
        numbers = np.asarray(picture, dtype=np.int64)
        if numbers.min() < 0 or numbers.max() > 2**16 - 1:
            raise ConfigurationError(f"{name} holds numbers of 32 bits; save it with 8 or 16 bits")
        picture = Image.fromarray((numbers >> 8).astype(np.uint8))
    return ImageOps.exif_transpose(picture).convert("RGB")


def _frames(name: str, file: Path) -> tuple[Image.Image, ...]:
    if not file.is_file():
        raise ConfigurationError(f"{name} {file} cannot be read: there is no such file")
    is_animation = file.suffix.lower() == ".gif"
    if not is_animation and importlib.util.find_spec("imageio") is None:
        raise ConfigurationError(f"{name} {file} is a video, which imageio reads: {NEEDS_VIDEO}")
    from diffusers.utils import load_video

    try:
        return tuple(frame.convert("RGB") for frame in load_video(str(file)))
    except Exception as error:  # whatever the decoders stumble over
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigurationError(f"{name} {file} is no video that can be read: {said}") from error


def _tensors(file: Path) -> Any:
    from safetensors.torch import load_file

    held = load_file(file)
    return next(iter(held.values())) if len(held) == 1 else held


def _array(file: Path) -> Any:
    import torch

    with file.open("rb") as opened:
        return torch.from_numpy(np.lib.format.read_array(opened, allow_pickle=False))


_READERS: Mapping[str, Callable[[Path], Any]] = {
    ".json": lambda file: json.loads(file.read_text(encoding="utf-8")),
    ".txt": lambda file: file.read_text(encoding="utf-8").strip(),
    ".npy": _array,
    ".safetensors": _tensors,
}
