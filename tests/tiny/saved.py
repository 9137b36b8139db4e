"""Tiny pipelines with encoders of words, saved to folders as users have them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from diffusers.utils import logging
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.tiny.base import PIXELS, SIZE
from tests.tiny.pictures import picture
from tests.tiny.stable_diffusion import build_sd15, build_sd15_controlnet, tiny_unet
from tests.tiny.text_encoders import tiny_text_encoder, tiny_tokenizer
from tests.tiny.transformer_audio import build_stable_audio
from tests.tiny.unet_video import build_animatediff, build_svd
from tests.tiny.wan import build_wan

_T5: dict[str, Any] = dict(vocab_size=60, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)


def _clip() -> dict[str, Any]:
    return {"text_encoder": tiny_text_encoder(), "tokenizer": tiny_tokenizer()}


def _with_words(pipe: DiffusionPipeline, encoder: torch.nn.Module) -> DiffusionPipeline:
    pipe.register_modules(text_encoder=encoder.eval(), tokenizer=tiny_tokenizer())
    return pipe


def _svd() -> DiffusionPipeline:
    """Pictures from files are shown to an encoder of the usual size."""
    pipe = build_svd()
    config = pipe.image_encoder.config.to_dict() | {"image_size": 224, "patch_size": 112}
    pipe.register_modules(image_encoder=CLIPVisionModelWithProjection(CLIPVisionConfig(**config)).eval())
    return pipe


SAVED: dict[str, Callable[[], DiffusionPipeline]] = {
    "svd": _svd,
    "animatediff": lambda: build_animatediff(**_clip()),
    "wan": lambda: _with_words(build_wan(), UMT5EncoderModel(UMT5Config(**_T5))),
    "img2img": lambda: build_sd15(StableDiffusionImg2ImgPipeline, **_clip()),
    "inpaint": lambda: build_sd15(StableDiffusionInpaintPipeline, unet=tiny_unet(in_channels=9), **_clip()),
    "controlnet": lambda: _with_words(build_sd15_controlnet(), tiny_text_encoder()),
    "stable_audio": lambda: _with_words(build_stable_audio(), T5EncoderModel(T5Config(**_T5))),
}


def save(name: str, folder: Path) -> Path:
    """Save one of them, the same whenever it is built."""
    torch.manual_seed(0)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    SAVED[name]().save_pretrained(folder)
    logging.set_verbosity(verbosity)
    return folder


def save_pictures(folder: Path) -> None:
    """`dog.png`, `edges.png`, `mask.png` (its left half white), `film.gif`."""
    picture(PIXELS, 1).save(folder / "dog.png")
    picture(PIXELS, 2).save(folder / "edges.png")
    white = np.zeros((PIXELS, PIXELS), np.uint8)
    white[:, : PIXELS // 2] = 255
    Image.fromarray(white).save(folder / "mask.png")
    first, *others = (picture(SIZE, seed) for seed in range(4))
    first.save(folder / "film.gif", save_all=True, append_images=others)
