"""FLUX and what was made of it."""

from typing import Any

from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from tests.tiny.base import PIXELS, TEXT_LENGTH, TinyPipeline, assemble, noise, sampling, tiny_vae

TEXT_FREE_FLUX: dict[str, Any] = dict(text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None)


def tiny_flux_transformer(**config: Any) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        **dict(
            in_channels=16,
            num_layers=3,
            num_single_layers=4,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        )
        | config
    )


def build_flux() -> DiffusionPipeline:
    return assemble(
        FluxPipeline,
        vae=tiny_vae(),
        transformer=tiny_flux_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        **TEXT_FREE_FLUX,
    )


def flux_text(**extra: Any) -> dict[str, Any]:
    """A prompt alone: the guidance scale is an input of the denoiser."""
    return sampling(
        prompt_embeds=noise(1, TEXT_LENGTH, 16, seed=1),
        pooled_prompt_embeds=noise(1, 16, seed=3),
        guidance_scale=3.5,
        height=PIXELS,
        width=PIXELS,
        **extra,
    )


PIPELINES = (TinyPipeline("flux", build_flux, lambda pipe: flux_text(), "transformer"),)
