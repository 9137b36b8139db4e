"""Pipelines that are given no prompt: the denoiser works on pixels and reads the timestep alone."""

from typing import Any

from diffusers import (
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    UNet2DModel,
)

from tests.tiny.base import SIZE, TinyPipeline, assemble, sampling


def tiny_unconditional_unet(**config: Any) -> UNet2DModel:
    """As in DDPM: attention on one of the lower levels."""
    return UNet2DModel(
        **dict(
            sample_size=SIZE,
            block_out_channels=(16, 32, 32),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
            attention_head_dim=8,
        )
        | config
    )


def build_ddpm() -> DiffusionPipeline:
    return assemble(DDPMPipeline, unet=tiny_unconditional_unet(), scheduler=DDPMScheduler())


def build_ddim() -> DiffusionPipeline:
    """Blocks of score-based models: each adds to a picture that runs beside the features."""
    unet = tiny_unconditional_unet(
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
        up_block_types=("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
        block_out_channels=(32, 32, 64),
    )
    return assemble(DDIMPipeline, unet=unet, scheduler=DDIMScheduler())


def build_consistency() -> DiffusionPipeline:
    """The kind of picture is a condition."""
    unet = tiny_unconditional_unet(
        num_class_embeds=3,
        resnet_time_scale_shift="scale_shift",
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        downsample_type="resnet",
        upsample_type="resnet",
    )
    return assemble(ConsistencyModelPipeline, unet=unet, scheduler=CMStochasticIterativeScheduler())


PIPELINES = (
    TinyPipeline("ddpm", build_ddpm, lambda pipe: sampling(output_type="pt"), "unet"),
    TinyPipeline("ddim", build_ddim, lambda pipe: sampling(output_type="pt", eta=0.5), "unet"),
    TinyPipeline("consistency", build_consistency, lambda pipe: sampling(output_type="pt", class_labels=1), "unet"),
)
