"""HunyuanVideo and what was made of it."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    HunyuanSkyreelsImageToVideoPipeline,
    HunyuanVideoFramepackPipeline,
    HunyuanVideoFramepackTransformer3DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from transformers import SiglipVisionConfig, SiglipVisionModel

from tests.tiny.base import PIXELS, SIZE, TEXT_LENGTH, TinyPipeline, assemble, noise, pillow_processor
from tests.tiny.pictures import picture
from tests.tiny.videos import video_sampling

CHANNELS = 4  # of the latents

TEXT_FREE: dict[str, Any] = dict(text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None)

WIDTHS: dict[str, Any] = dict(
    in_channels=CHANNELS,
    out_channels=CHANNELS,
    num_attention_heads=2,
    attention_head_dim=16,
    num_layers=3,
    num_single_layers=4,
    num_refiner_layers=1,
    text_embed_dim=16,
    pooled_projection_dim=16,
    rope_axes_dim=(4, 6, 6),
)


def tiny_hunyuan_video_transformer(**config: Any) -> HunyuanVideoTransformer3DModel:
    return HunyuanVideoTransformer3DModel(**WIDTHS | config)


def tiny_hunyuan_video_vae() -> AutoencoderKLHunyuanVideo:
    """Halves time twice and size once."""
    return AutoencoderKLHunyuanVideo(
        latent_channels=CHANNELS,
        down_block_types=("HunyuanVideoDownBlock3D",) * 3,
        up_block_types=("HunyuanVideoUpBlock3D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        spatial_compression_ratio=2,
        temporal_compression_ratio=4,
    )


def build_hunyuan_video(
    pipeline: type[DiffusionPipeline] = HunyuanVideoPipeline, **components: Any
) -> DiffusionPipeline:
    return assemble(
        pipeline,
        **dict(
            vae=tiny_hunyuan_video_vae(),
            transformer=tiny_hunyuan_video_transformer(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        )
        | TEXT_FREE
        | components,
    )


def build_skyreels_i2v() -> DiffusionPipeline:
    """The denoiser reads the picture's latents beside its own; guidance calls it once for both prompts."""
    return build_hunyuan_video(
        HunyuanSkyreelsImageToVideoPipeline,
        transformer=tiny_hunyuan_video_transformer(in_channels=2 * CHANNELS, guidance_embeds=False),
    )


def build_framepack() -> DiffusionPipeline:
    """The denoiser reads what was generated before, the older the coarser."""
    image_encoder = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=PIXELS,
            patch_size=8,
        )
    )
    return build_hunyuan_video(
        HunyuanVideoFramepackPipeline,
        transformer=HunyuanVideoFramepackTransformer3DModel(
            **WIDTHS, has_image_proj=True, image_proj_dim=16, has_clean_x_embedder=True
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0, use_dynamic_shifting=True),
        image_encoder=image_encoder,
        feature_extractor=pillow_processor("Siglip", size={"height": PIXELS, "width": PIXELS}),
    )


def words(count: int) -> torch.Tensor:
    """The attention mask that tells so many words from padding."""
    return (torch.arange(TEXT_LENGTH) < count).long()[None]


def prompt(**extra: Any) -> dict[str, Any]:
    """A prompt alone: the guidance scale is an input of the denoiser."""
    return video_sampling(
        prompt_embeds=noise(1, TEXT_LENGTH, 16, seed=1),
        pooled_prompt_embeds=noise(1, 16, seed=3),
        prompt_attention_mask=words(5),
        guidance_scale=6.0,
        **dict(num_frames=9) | extra,
    )


def prompts(**extra: Any) -> dict[str, Any]:
    """A prompt and a negative prompt with fewer words: two calls in every step."""
    return prompt(
        negative_prompt_embeds=noise(1, TEXT_LENGTH, 16, seed=2),
        negative_pooled_prompt_embeds=noise(1, 16, seed=4),
        negative_prompt_attention_mask=words(3),
        **extra,
    )


PIPELINES = (
    TinyPipeline("hunyuan_video", build_hunyuan_video, lambda pipe: prompt(), "transformer"),
    TinyPipeline(
        "hunyuan_video_true_cfg", build_hunyuan_video, lambda pipe: prompts(true_cfg_scale=4.0), "transformer"
    ),
    TinyPipeline("hunyuan_skyreels_i2v", build_skyreels_i2v, lambda pipe: prompts(image=picture(SIZE)), "transformer"),
    TinyPipeline(
        # Three windows of frames, each a generation with timesteps of its own.
        "framepack",
        build_framepack,
        lambda pipe: prompt(image=picture(SIZE), latent_window_size=3, num_frames=27, output_type="pt"),
        "transformer",
    ),
    TinyPipeline(
        # Two calls in every step, which differ in the number of words that the denoiser does not cut off.
        "framepack_true_cfg",
        build_framepack,
        lambda pipe: prompts(
            image=picture(SIZE),
            latent_window_size=3,
            num_frames=18,
            output_type="pt",
            sampling_type="vanilla",
            true_cfg_scale=4.0,
        ),
        "transformer",
    ),
)
