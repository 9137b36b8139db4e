"""Goldens of the reference implementation and the pipeline that they belong to (`goldens/README.md`)."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

GOLDENS = Path(__file__).parent / "goldens"
STEPS = 12


def golden_pipeline() -> tuple[StableDiffusionPipeline, dict[str, Any]]:
    """The goldens' pipeline, and fresh arguments for its call."""
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(GOLDENS / "unet_config.json"))
    unet.load_state_dict(load_file(GOLDENS / "unet.safetensors"))
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(4,), norm_num_groups=2),  # never runs: the goldens are latents
        text_encoder=None,
        tokenizer=None,
        unet=unet.eval(),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    kwargs = {
        **load_file(GOLDENS / "inputs.safetensors"),
        "num_inference_steps": STEPS,
        "guidance_scale": 5.0,
        "output_type": "latent",
    }
    return pipe, kwargs


def golden_split(n: int) -> list[list[str]]:
    """The reference's split into `n` components; a module's name stands for all in it."""
    return json.loads((GOLDENS / "splits.json").read_text())[f"n{n}"]


def golden_latents(n: int, s: int, warmup: int, time_shift: bool) -> torch.Tensor:
    """Final latents of `n` components at stride `s`."""
    return load_file(GOLDENS / f"n{n}_s{s}.safetensors")[f"warmup{warmup}_shift{int(time_shift)}"]


def golden_sequential() -> torch.Tensor:
    """Final latents of the untouched pipeline."""
    return load_file(GOLDENS / "sequential.safetensors")["sequential"]
