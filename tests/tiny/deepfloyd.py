"""DeepFloyd IF: pixels without a VAE, in stages."""

from typing import Any

from diffusers import (
    DDPMScheduler,
    DiffusionPipeline,
    IFImg2ImgPipeline,
    IFInpaintingPipeline,
    IFPipeline,
    IFSuperResolutionPipeline,
    UNet2DConditionModel,
)

from tests.tiny.base import SIZE, TinyPipeline, assemble, image, mask, text
from tests.tiny.stable_diffusion import tiny_unet


def tiny_if_unet(**config: Any) -> UNet2DConditionModel:
    """Noise and its variance; attention to pixels and words in one, and the words' summary beside the time."""
    return tiny_unet(
        **dict(
            in_channels=3,
            out_channels=6,
            block_out_channels=(16, 32, 32),
            down_block_types=("ResnetDownsampleBlock2D",) + ("SimpleCrossAttnDownBlock2D",) * 2,
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D",) * 2 + ("ResnetUpsampleBlock2D",),
            attention_head_dim=8,
            act_fn="gelu",
            resnet_time_scale_shift="scale_shift",
            cross_attention_dim=32,  # one channel for each group of its normalisation
            encoder_hid_dim=16,
            addition_embed_type="text",
            addition_embed_type_num_heads=2,
            cross_attention_norm="group_norm",
            resnet_skip_time_act=True,
            resnet_out_scale_factor=1.4,
        )
        | config
    )


def build_if(pipeline: type[DiffusionPipeline] = IFPipeline, **components: Any) -> DiffusionPipeline:
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range", clip_sample=False)
    parts = dict(
        text_encoder=None,
        tokenizer=None,
        unet=tiny_if_unet(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )
    return assemble(pipeline, **parts | components)


def build_if_super_resolution() -> DiffusionPipeline:
    """The second stage reads the first one's picture, and how much noise was put on it."""
    return build_if(
        IFSuperResolutionPipeline,
        unet=tiny_if_unet(in_channels=6, class_embed_type="timestep"),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    )


def pixels(**extra: Any) -> dict[str, Any]:
    return text(**dict(output_type="pt") | extra)


PIPELINES = (
    TinyPipeline("deepfloyd", build_if, lambda pipe: pixels(), "unet"),
    TinyPipeline(
        "deepfloyd_img2img",
        lambda: build_if(IFImg2ImgPipeline),
        lambda pipe: pixels(image=image(SIZE), strength=0.8),
        "unet",
        steps=8,
    ),
    TinyPipeline(
        "deepfloyd_inpaint",
        lambda: build_if(IFInpaintingPipeline),
        lambda pipe: pixels(image=image(SIZE), mask_image=mask(SIZE), strength=0.99),
        "unet",
    ),
    TinyPipeline(
        "deepfloyd_super_resolution",
        build_if_super_resolution,
        lambda pipe: pixels(image=image(SIZE // 4), height=SIZE, width=SIZE),
        "unet",
    ),
)
