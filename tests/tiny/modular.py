"""diffusers' modular pipelines whose denoiser is a UNet: each guidance branch is a call of its own."""

from typing import Any

from diffusers import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    ModularPipeline,
    StableDiffusionXLAutoBlocks,
)
from diffusers.guiders import BaseGuidance

from tests.tiny.base import PIXELS, TinyPipeline, euler, image, mask, tiny_vae
from tests.tiny.modular_transformers import build, pooled_guided
from tests.tiny.sdxl import tiny_sdxl_unet
from tests.tiny.stable_diffusion import tiny_controlnet


def build_sdxl(guider: BaseGuidance | None = None, **components: Any) -> ModularPipeline:
    parts = dict(vae=tiny_vae(), unet=tiny_sdxl_unet(), scheduler=euler(), guider=guider or ClassifierFreeGuidance(5.0))
    return build(StableDiffusionXLAutoBlocks, **parts | components)


def build_sdxl_inpaint() -> ModularPipeline:
    return build_sdxl(unet=tiny_sdxl_unet(in_channels=9))  # latents, mask and masked picture


def build_sdxl_controlnet() -> ModularPipeline:
    unet = tiny_sdxl_unet()
    return build_sdxl(unet=unet, controlnet=tiny_controlnet(unet))


PIPELINES = (
    TinyPipeline("modular_sdxl", build_sdxl, lambda pipe: pooled_guided(), "unet"),
    TinyPipeline(
        "modular_sdxl_img2img",
        build_sdxl,
        lambda pipe: pooled_guided(image=image(), strength=0.8),
        "unet",
        steps=8,
    ),
    TinyPipeline(
        "modular_sdxl_inpaint",
        build_sdxl_inpaint,
        lambda pipe: pooled_guided(image=image(), mask_image=mask(), strength=0.99),
        "unet",
    ),
    TinyPipeline(
        "modular_sdxl_controlnet",
        build_sdxl_controlnet,
        lambda pipe: pooled_guided(control_image=image(PIXELS, seed=1)),
        "unet",
    ),
    TinyPipeline(
        # One call in the first step, two in the middle, one in the last.
        "modular_sdxl_interval",
        lambda: build_sdxl(ClassifierFreeGuidance(5.0, start=0.1, stop=0.9)),
        lambda pipe: pooled_guided(),
        "unet",
    ),
    TinyPipeline(
        "modular_sdxl_projected",
        lambda: build_sdxl(AdaptiveProjectedGuidance(5.0, adaptive_projected_guidance_momentum=-0.5)),
        lambda pipe: pooled_guided(),
        "unet",
    ),
)
