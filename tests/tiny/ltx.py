"""LTX-Video and what was made of it."""

from typing import Any

from diffusers import (
    AutoencoderKLLTXVideo,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    LTXConditionPipeline,
    LTXImageToVideoPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

from tests.tiny.base import SIZE, TinyPipeline, assemble, words
from tests.tiny.pictures import picture
from tests.tiny.videos import frames, video_text

CHANNELS = 8  # of the latents


def tiny_ltx_transformer() -> LTXVideoTransformer3DModel:
    return LTXVideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=5,
        caption_channels=16,
    )


def tiny_ltx_vae() -> AutoencoderKLLTXVideo:
    """Halves time once and size three times."""
    return AutoencoderKLLTXVideo(
        latent_channels=CHANNELS,
        block_out_channels=(8, 8),
        down_block_types=("LTXVideoDownBlock3D",) * 2,
        decoder_block_out_channels=(8, 8),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, False),
        decoder_spatio_temporal_scaling=(True, False),
        decoder_inject_noise=(False,) * 3,
        downsample_type=("conv",) * 2,
        upsample_residual=(False,) * 2,
        upsample_factor=(1,) * 2,
        patch_size=4,
    )


def build_ltx(pipeline: type[DiffusionPipeline] = LTXPipeline, shifts: bool = True) -> DiffusionPipeline:
    return assemble(
        pipeline,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=shifts, shift_terminal=0.1 if shifts else None),
        vae=tiny_ltx_vae(),
        text_encoder=None,
        tokenizer=None,
        transformer=tiny_ltx_transformer(),
    )


def ltx_text(**extra: Any) -> dict[str, Any]:
    return video_text(
        height=2 * SIZE,
        width=2 * SIZE,
        prompt_attention_mask=words(),
        negative_prompt_attention_mask=words(),
        **extra,
    )


PIPELINES = (
    TinyPipeline("ltx", build_ltx, lambda pipe: ltx_text(guidance_rescale=0.5), "transformer"),
    # The tokens of the given picture have timestep 0.
    TinyPipeline(
        "ltx_i2v",
        lambda: build_ltx(LTXImageToVideoPipeline),
        lambda pipe: ltx_text(image=picture(2 * SIZE)),
        "transformer",
    ),
    # Tokens of given pictures keep some noise while the others are noisier.
    TinyPipeline(
        "ltx_condition",
        lambda: build_ltx(LTXConditionPipeline, shifts=False),
        lambda pipe: ltx_text(
            conditions=[
                LTXVideoCondition(image=picture(2 * SIZE), frame_index=0, strength=0.6),
                LTXVideoCondition(video=frames(3, 2 * SIZE), frame_index=2, strength=0.9),
            ],
        ),
        "transformer",
    ),
)
