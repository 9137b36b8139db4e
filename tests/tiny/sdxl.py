"""Stable Diffusion XL and what was made of it."""

from typing import Any

from diffusers import (
    ControlNetModel,
    DiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from tests.tiny.base import TinyPipeline, assemble, euler, image, mask, pooled_text, tiny_vae
from tests.tiny.stable_diffusion import tiny_unet

TEXT_FREE_SDXL: dict[str, Any] = dict(
    text_encoder=None,
    text_encoder_2=None,
    tokenizer=None,
    tokenizer_2=None,
    add_watermarker=False,
)


def tiny_sdxl_unet(**config: Any) -> UNet2DConditionModel:
    """As in SDXL: three levels, attention on the lower two, deeper below; size and pooled text are conditions."""
    return tiny_unet(
        **dict(
            block_out_channels=(16, 32, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 2),
            attention_head_dim=(2, 4, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 16,
        )
        | config
    )


def build_sdxl() -> DiffusionPipeline:
    return assemble(
        StableDiffusionXLPipeline, vae=tiny_vae(), unet=tiny_sdxl_unet(), scheduler=euler(), **TEXT_FREE_SDXL
    )


def build_sdxl_inpaint() -> DiffusionPipeline:
    unet = tiny_sdxl_unet(in_channels=9)  # latents, mask and masked picture
    return assemble(StableDiffusionXLInpaintPipeline, vae=tiny_vae(), unet=unet, scheduler=euler(), **TEXT_FREE_SDXL)


def build_sdxl_controlnet() -> DiffusionPipeline:
    unet = tiny_sdxl_unet()
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16))
    return assemble(
        StableDiffusionXLControlNetPipeline,
        vae=tiny_vae(),
        unet=unet,
        controlnet=controlnet,
        scheduler=euler(),
        **TEXT_FREE_SDXL,
    )


PIPELINES = (
    TinyPipeline("sdxl", build_sdxl, lambda pipe: pooled_text(), "unet"),
    TinyPipeline(
        "sdxl_inpaint",
        build_sdxl_inpaint,
        lambda pipe: pooled_text(image=image(), mask_image=mask(), strength=0.99),
        "unet",
    ),
    TinyPipeline("sdxl_controlnet", build_sdxl_controlnet, lambda pipe: pooled_text(image=image()), "unet"),
)
