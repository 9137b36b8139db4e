"""Qwen-Image and what was made of it."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    QwenImageControlNetModel,
    QwenImageControlNetPipeline,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageImg2ImgPipeline,
    QwenImageInpaintPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)

from tests.tiny.base import PIXELS, TEXT_LENGTH, TinyPipeline, assemble, image, mask, noise, sampling
from tests.tiny.pictures import picture

CHANNELS = 4  # of the latents

QWEN_WIDTHS: dict[str, Any] = dict(
    in_channels=4 * CHANNELS,
    out_channels=CHANNELS,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=16,
    axes_dims_rope=(4, 6, 6),
)


def tiny_qwen_transformer(**config: Any) -> QwenImageTransformer2DModel:
    return QwenImageTransformer2DModel(**QWEN_WIDTHS | dict(num_layers=4) | config)


def tiny_qwen_vae(downsamplings: int = 1) -> AutoencoderKLQwenImage:
    return AutoencoderKLQwenImage(
        base_dim=2,
        z_dim=CHANNELS,
        dim_mult=[1] * (downsamplings + 1),
        num_res_blocks=1,
        temperal_downsample=[False] * downsamplings,
        latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS,
    )


def build_qwen_image(pipeline: type[DiffusionPipeline] = QwenImagePipeline, **components: Any) -> DiffusionPipeline:
    return assemble(
        pipeline,
        **dict(
            vae=tiny_qwen_vae(),
            transformer=tiny_qwen_transformer(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            text_encoder=None,
            tokenizer=None,
        )
        | components,
    )


def build_qwen_controlnet() -> DiffusionPipeline:
    controlnet = QwenImageControlNetModel(**QWEN_WIDTHS | dict(num_layers=2))
    return build_qwen_image(QwenImageControlNetPipeline, controlnet=controlnet)


def build_qwen_edit(pipeline: type[DiffusionPipeline] = QwenImageEditPipeline) -> DiffusionPipeline:
    """The given picture always comes to a megapixel, so the VAE makes it as small as it can: 16 by 16 tokens."""
    return build_qwen_image(pipeline, vae=tiny_qwen_vae(5), processor=None)


def qwen_text(**extra: Any) -> dict[str, Any]:
    """A prompt and a negative prompt of another length: two calls in every step."""
    return sampling(
        prompt_embeds=noise(1, TEXT_LENGTH, 16, seed=1),
        prompt_embeds_mask=torch.ones(1, TEXT_LENGTH, dtype=torch.int64),
        negative_prompt_embeds=noise(1, 5, 16, seed=2),
        negative_prompt_embeds_mask=torch.ones(1, 5, dtype=torch.int64),
        true_cfg_scale=4.0,
        **extra,
    )


def sized_qwen_text(size: int = PIXELS, **extra: Any) -> dict[str, Any]:
    return qwen_text(height=size, width=size, **extra)


PIPELINES = (
    TinyPipeline("qwen_image", build_qwen_image, lambda pipe: sized_qwen_text(), "transformer"),
    TinyPipeline(
        "qwen_image_img2img",
        lambda: build_qwen_image(QwenImageImg2ImgPipeline),
        lambda pipe: sized_qwen_text(image=image(), strength=0.8),
        "transformer",
    ),
    TinyPipeline(
        "qwen_image_inpaint",
        lambda: build_qwen_image(QwenImageInpaintPipeline),
        lambda pipe: sized_qwen_text(image=image(), mask_image=mask(), strength=0.8),
        "transformer",
    ),
    TinyPipeline(
        "qwen_image_controlnet",
        build_qwen_controlnet,
        lambda pipe: sized_qwen_text(control_image=image()),
        "transformer",
    ),
    TinyPipeline(
        "qwen_image_edit",
        build_qwen_edit,
        lambda pipe: sized_qwen_text(512, image=picture(PIXELS)),
        "transformer",
    ),
    TinyPipeline(
        "qwen_image_edit_plus",
        lambda: build_qwen_edit(QwenImageEditPlusPipeline),
        lambda pipe: sized_qwen_text(512, image=[picture(PIXELS), picture(PIXELS, seed=1)]),
        "transformer",
    ),
)
