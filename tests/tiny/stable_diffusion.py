"""Stable Diffusion 1.5 and 2.1 and what was made of them."""

from typing import Any

from diffusers import (
    DDPMScheduler,
    DiffusionPipeline,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
)

from tests.tiny.base import SIZE, STABLE_DIFFUSION_NOISE, TinyPipeline, assemble, ddim, image, text, tiny_vae

TEXT_FREE_SD: dict[str, Any] = dict(
    text_encoder=None,
    tokenizer=None,
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
)


def tiny_unet(**config: Any) -> UNet2DConditionModel:
    """As in SD 1.5: four levels, attention on all but the lowest; `config` makes another one of it."""
    return UNet2DConditionModel(
        **dict(
            sample_size=SIZE,
            block_out_channels=(16, 32, 32, 32),
            norm_num_groups=8,
            attention_head_dim=2,  # the number of heads, by its historical name
            cross_attention_dim=16,
        )
        | config
    )


def build_sd15() -> DiffusionPipeline:
    scheduler = PNDMScheduler(**STABLE_DIFFUSION_NOISE, skip_prk_steps=True)
    return assemble(StableDiffusionPipeline, vae=tiny_vae(), unet=tiny_unet(), scheduler=scheduler, **TEXT_FREE_SD)


def build_sd21() -> DiffusionPipeline:
    unet = tiny_unet(attention_head_dim=(2, 4, 4, 4), use_linear_projection=True)
    scheduler = ddim(prediction_type="v_prediction")
    return assemble(StableDiffusionPipeline, vae=tiny_vae(), unet=unet, scheduler=scheduler, **TEXT_FREE_SD)


def build_x4_upscaler() -> DiffusionPipeline:
    unet = tiny_unet(
        in_channels=7,  # latents and the small picture
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
        only_cross_attention=(True, True, True, False),
        use_linear_projection=True,
        num_class_embeds=1000,  # noise levels
    )
    return assemble(
        StableDiffusionUpscalePipeline,
        vae=tiny_vae(scaling_factor=0.08333),
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        low_res_scheduler=DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.0001, beta_end=0.02),
        scheduler=ddim(prediction_type="v_prediction"),
    )


PIPELINES = (
    TinyPipeline("sd15", build_sd15, lambda pipe: text(), "unet"),
    TinyPipeline("sd21", build_sd21, lambda pipe: text(), "unet"),
    TinyPipeline("x4_upscaler", build_x4_upscaler, lambda pipe: text(image=image(SIZE)), "unet"),
)
