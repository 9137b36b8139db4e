"""Tiny random-weight pipelines, built offline: checkpoints' structure and schedulers, small widths.

Prompts are embeddings, guidance is on. `PIPELINES` holds all of them by name; each test says which of them
`make test` goes through.
"""

from typing import Any

import pytest

from tests.tiny import (
    cogvideox,
    cosmos,
    deepfloyd,
    flow_transformers,
    flux,
    flux2,
    hunyuan_video,
    image_transformers,
    kandinsky,
    ltx,
    ltx2,
    modular,
    modular_transformers,
    qwen_image,
    recent_transformers,
    sd3,
    sdxl,
    skyreels,
    stable_diffusion,
    transformer_audio,
    transformer_video,
    unconditional,
    unet_audio,
    unet_video,
    wan,
)
from tests.tiny.base import TinyPipeline, run

_FAMILIES = (
    stable_diffusion,
    sdxl,
    kandinsky,
    deepfloyd,
    unconditional,
    unet_video,
    unet_audio,
    modular,
    sd3,
    flux,
    flux2,
    qwen_image,
    image_transformers,
    flow_transformers,
    recent_transformers,
    modular_transformers,
    wan,
    cogvideox,
    hunyuan_video,
    ltx,
    ltx2,
    skyreels,
    cosmos,
    transformer_video,
    transformer_audio,
)

PIPELINES: dict[str, TinyPipeline] = {tiny.name: tiny for family in _FAMILIES for tiny in family.PIPELINES}


def every(*quick: str) -> list[Any]:
    """Parameters of a test of all pipelines, of which `make test` runs the quick ones and `make test-all` the whole."""
    unknown = set(quick) - PIPELINES.keys()
    if unknown:
        raise KeyError(f"no tiny pipelines: {unknown}")
    return [name if name in quick else pytest.param(name, marks=pytest.mark.whole) for name in PIPELINES]


__all__ = ["PIPELINES", "TinyPipeline", "every", "run"]
