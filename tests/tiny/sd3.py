"""Stable Diffusion 3 and what was made of it."""

from typing import Any

from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusion3ControlNetInpaintingPipeline,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3PAGImg2ImgPipeline,
    StableDiffusion3PAGPipeline,
    StableDiffusion3Pipeline,
)

from tests.tiny.base import SIZE, TinyPipeline, assemble, image, mask, pooled_text, tiny_vae
from tests.tiny.pictures import seeded

TEXT_FREE_SD3: dict[str, Any] = dict(
    text_encoder=None,
    text_encoder_2=None,
    text_encoder_3=None,
    tokenizer=None,
    tokenizer_2=None,
    tokenizer_3=None,
)

SD3_WIDTHS: dict[str, Any] = dict(
    sample_size=SIZE,
    attention_head_dim=8,
    num_attention_heads=4,
    joint_attention_dim=16,
    caption_projection_dim=32,
    pooled_projection_dim=16,
    pos_embed_max_size=SIZE,
)


def tiny_sd3_transformer(**config: Any) -> SD3Transformer2DModel:
    return SD3Transformer2DModel(**SD3_WIDTHS | dict(in_channels=4, out_channels=4, num_layers=4) | config)


def tiny_sd3_controlnet(**config: Any) -> SD3ControlNetModel:
    """Half as deep as the denoiser: each of its outputs is added after two of the denoiser's blocks."""
    return SD3ControlNetModel(**SD3_WIDTHS | dict(in_channels=4, out_channels=4, num_layers=2) | config)


def build_sd3(pipeline: type[DiffusionPipeline] = StableDiffusion3Pipeline, **components: Any) -> DiffusionPipeline:
    return assemble(
        pipeline,
        **dict(
            vae=tiny_vae(shift_factor=0.06),
            transformer=tiny_sd3_transformer(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        )
        | TEXT_FREE_SD3
        | components,
    )


def build_sd35() -> DiffusionPipeline:
    """As the medium model of version 3.5: a second attention in some blocks, normalised queries and keys."""
    return build_sd3(transformer=tiny_sd3_transformer(dual_attention_layers=(0, 1), qk_norm="rms_norm"))


def build_sd3_inpaint() -> DiffusionPipeline:
    """The pipeline knows by the 16 channels that the denoiser does not read the mask."""
    return build_sd3(
        StableDiffusion3InpaintPipeline,
        vae=tiny_vae(16, shift_factor=0.06),
        transformer=tiny_sd3_transformer(in_channels=16, out_channels=16),
    )


def build_sd3_controlnet_inpaint() -> DiffusionPipeline:
    """The ControlNet reads the picture, with the mask as a further channel."""
    return build_sd3(
        StableDiffusion3ControlNetInpaintingPipeline,
        controlnet=tiny_sd3_controlnet(extra_conditioning_channels=1),
    )


PIPELINES = (
    TinyPipeline("sd3", build_sd3, lambda pipe: pooled_text(), "transformer"),
    TinyPipeline("sd35", build_sd35, lambda pipe: pooled_text(), "transformer"),
    TinyPipeline(
        "sd35_skip_layer_guidance",
        build_sd35,
        # A call more in each of the steps in the middle.
        lambda pipe: pooled_text(
            skip_guidance_layers=[1, 2], skip_layer_guidance_start=0.01, skip_layer_guidance_stop=0.8
        ),
        "transformer",
    ),
    TinyPipeline(
        "sd3_img2img",
        lambda: build_sd3(StableDiffusion3Img2ImgPipeline),
        lambda pipe: pooled_text(image=image(), strength=0.8),
        "transformer",
    ),
    TinyPipeline(
        "sd3_inpaint",
        build_sd3_inpaint,
        lambda pipe: pooled_text(image=image(), mask_image=mask(), strength=0.8),
        "transformer",
    ),
    TinyPipeline(
        "sd3_controlnet",
        lambda: build_sd3(StableDiffusion3ControlNetPipeline, controlnet=tiny_sd3_controlnet()),
        lambda pipe: seeded(pooled_text(control_image=image())),
        "transformer",
    ),
    TinyPipeline(
        "sd3_controlnet_inpaint",
        build_sd3_controlnet_inpaint,
        lambda pipe: seeded(pooled_text(control_image=image(), control_mask=mask())),
        "transformer",
    ),
    TinyPipeline(
        "sd3_pag",
        lambda: build_sd3(StableDiffusion3PAGPipeline, pag_applied_layers=["blocks.1"]),
        lambda pipe: pooled_text(pag_scale=3.0),
        "transformer",
    ),
    TinyPipeline(
        "sd3_pag_img2img",
        lambda: build_sd3(StableDiffusion3PAGImg2ImgPipeline, pag_applied_layers=["blocks.1"]),
        lambda pipe: pooled_text(image=image(), strength=0.8, pag_scale=3.0),
        "transformer",
    ),
)
