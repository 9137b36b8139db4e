"""The two small text-to-image pipelines that come with asyncdiff, and how well they do what they are told."""

import contextlib
import functools
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from transformers.utils import logging as transformers_logging

from asyncdiff.model_files import CHECKPOINTS, DemoName, demo_folder

__all__ = ["DemoName", "demo_prompts", "load_demo", "prompt_agreement"]

_THUMBNAIL_SIZE = 16


def load_demo(name: DemoName, torch_dtype: torch.dtype = torch.float32, **parts: Any) -> DiffusionPipeline:
    """Load a demo pipeline from the checkpoints inside this package; nothing is downloaded.

    Both draw emoji of 128x128 pixels from prompts such as "a red apple":

    - "unet" is a `StableDiffusionPipeline` with a UNet structured like that of Stable Diffusion 2.1,
    - "dit" is a `CogView4Pipeline` with a transformer of 12 blocks.

    `demo_prompts()` lists what they know how to draw. Parts of the pipeline that are given are not loaded.
    """
    folder = demo_folder(name)
    given = {**absent_parts(folder), **parts}
    with quiet_loading():
        return DiffusionPipeline.from_pretrained(
            folder, torch_dtype=torch_dtype, local_files_only=True, use_safetensors=True, **given
        )


def absent_parts(folder: Path) -> dict[str, None]:
    """The parts that a saved pipeline does without, e.g. a third text encoder: some insist on being told of them."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    return {part: None for part, source in index.items() if source == [None, None]}


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Load a pipeline without bars and without the libraries' advice, which come back afterwards."""
    verbosity = transformers_logging.get_verbosity()
    bars = [(own, own.is_progress_bar_enabled()) for own in (diffusers_logging, transformers_logging)]
    try:
        transformers_logging.set_verbosity_error()
        for own, _ in bars:
            own.disable_progress_bar()
        with warnings.catch_warnings():
            # The name of the argument in every diffusers that this package supports.
            warnings.filterwarnings("ignore", "`torch_dtype`", FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        for own, was_shown in bars:
            if was_shown:
                own.enable_progress_bar()


def demo_prompts() -> list[str]:
    """One prompt for each picture that the demo pipelines have learnt, e.g. "red apple"."""
    return [captions[0] for captions in _captions()]


def prompt_agreement(images: Sequence[Image.Image], prompts: Sequence[str]) -> float:
    """How often, in per cent, the picture closest to an image is the one that was prompted.

    The prompts must be captions of the demo pipelines' training pictures. Closest means the smallest
    Euclidean distance between thumbnails among all the training pictures.
    """
    if not images or len(images) != len(prompts):
        raise ValueError(f"Expected as many images as prompts, not {len(images)} and {len(prompts)}.")
    picture_of = {caption: index for index, captions in enumerate(_captions()) for caption in captions}
    unknown = [prompt for prompt in prompts if prompt not in picture_of]
    if unknown:
        raise ValueError(f"The demo pipelines have not learnt {unknown[0]!r}; see demo_prompts().")
    thumbnails = np.stack([_thumbnail(image) for image in images])
    distances = ((thumbnails[:, None] - _reference_thumbnails()[None]) ** 2).sum(axis=-1)
    expected = np.array([picture_of[prompt] for prompt in prompts])
    return 100.0 * float(np.mean(distances.argmin(axis=1) == expected))


@functools.cache
def _captions() -> tuple[tuple[str, ...], ...]:
    """The captions of every training picture, its prompt first."""
    text = (CHECKPOINTS / "captions.json").read_text(encoding="utf-8")
    return tuple(tuple(captions) for captions in json.loads(text))


@functools.cache
def _reference_thumbnails() -> npt.NDArray[np.float32]:
    """The thumbnails of the training pictures, in the order of their captions."""
    with Image.open(CHECKPOINTS / "pictures.png") as column:
        size = column.width
        tiles = [column.crop((0, top, size, top + size)) for top in range(0, column.height, size)]
    return np.stack([_thumbnail(tile) for tile in tiles])


def _thumbnail(image: Image.Image) -> npt.NDArray[np.float32]:
    small = image.convert("RGB").resize((_THUMBNAIL_SIZE, _THUMBNAIL_SIZE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32).ravel() / np.float32(255)
