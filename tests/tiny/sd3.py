"""Stable Diffusion 3 and what was made of it."""

from typing import Any

from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

from tests.tiny.base import SIZE, TinyPipeline, assemble, pooled_text, tiny_vae

TEXT_FREE_SD3: dict[str, Any] = dict(
    text_encoder=None,
    text_encoder_2=None,
    text_encoder_3=None,
    tokenizer=None,
    tokenizer_2=None,
    tokenizer_3=None,
)


def tiny_sd3_transformer(**config: Any) -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        **dict(
            sample_size=SIZE,
            in_channels=4,
            out_channels=4,
            num_layers=6,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=16,
            caption_projection_dim=32,
            pooled_projection_dim=16,
            pos_embed_max_size=SIZE,
        )
        | config
    )


def build_sd3() -> DiffusionPipeline:
    return assemble(
        StableDiffusion3Pipeline,
        vae=tiny_vae(),
        transformer=tiny_sd3_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        **TEXT_FREE_SD3,
    )


PIPELINES = (TinyPipeline("sd3", build_sd3, lambda pipe: pooled_text(), "transformer"),)
