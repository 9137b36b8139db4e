"""FLUX.2 and its distilled kin."""

from typing import Any

from diffusers import (
    AutoencoderKLFlux2,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinKVPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)

from tests.tiny.base import PIXELS, TEXT_LENGTH, TinyPipeline, assemble, noise, sampling
from tests.tiny.pictures import picture


def tiny_flux2_transformer(**config: Any) -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        **dict(
            in_channels=16,
            num_layers=2,
            num_single_layers=4,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
        )
        | config
    )


def tiny_flux2_vae() -> AutoencoderKLFlux2:
    return AutoencoderKLFlux2(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=PIXELS,
    )


def build_flux2(pipeline: type[DiffusionPipeline] = Flux2Pipeline, **config: Any) -> DiffusionPipeline:
    return assemble(
        pipeline,
        vae=tiny_flux2_vae(),
        transformer=tiny_flux2_transformer(**config),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        text_encoder=None,
        tokenizer=None,
    )


def flux2_text(**extra: Any) -> dict[str, Any]:
    return sampling(prompt_embeds=noise(1, TEXT_LENGTH, 16, seed=1), height=PIXELS, width=PIXELS, **extra)


PIPELINES = (
    TinyPipeline("flux2", build_flux2, lambda pipe: flux2_text(guidance_scale=4.0), "transformer"),
    TinyPipeline(
        "flux2_edit", build_flux2, lambda pipe: flux2_text(guidance_scale=4.0, image=picture(2 * PIXELS)), "transformer"
    ),
    TinyPipeline(
        "flux2_klein",
        lambda: build_flux2(Flux2KleinPipeline, guidance_embeds=False),
        lambda pipe: flux2_text(guidance_scale=4.0, negative_prompt_embeds=noise(1, TEXT_LENGTH, 16, seed=2)),
        "transformer",
    ),
    TinyPipeline(
        # The first call keeps what the given picture's tokens say to the others; the calls after it read that.
        "flux2_klein_kv",
        lambda: build_flux2(Flux2KleinKVPipeline, guidance_embeds=False),
        lambda pipe: flux2_text(image=picture(2 * PIXELS)),
        "transformer",
    ),
)
