"""Cosmos 1, Predict 2 and Predict 2.5."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLCosmos,
    Cosmos2_5_PredictBasePipeline,
    Cosmos2TextToImagePipeline,
    Cosmos2VideoToWorldPipeline,
    CosmosTextToWorldPipeline,
    CosmosTransformer3DModel,
    CosmosVideoToWorldPipeline,
    DiffusionPipeline,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import nn

from tests.tiny.base import SIZE, TinyPipeline, assemble
from tests.tiny.pictures import picture
from tests.tiny.videos import frames, video_text
from tests.tiny.wan import tiny_wan_vae

CHANNELS = 4  # of the latents


def tiny_cosmos_transformer(**config: Any) -> CosmosTransformer3DModel:
    """Does not read the padding mask, which it would resize with torchvision: always zeros without one."""
    return CosmosTransformer3DModel(
        **dict(
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=5,
            mlp_ratio=2,
            text_embed_dim=16,
            adaln_lora_dim=4,
            max_size=(4, SIZE, SIZE),
            extra_pos_embed_type=None,
            concat_padding_mask=False,
        )
        | config
    )


def tiny_cosmos_vae() -> AutoencoderKLCosmos:
    """Halves time and size twice."""
    return AutoencoderKLCosmos(
        latent_channels=CHANNELS,
        encoder_block_out_channels=(8, 8, 8),
        decode_block_out_channels=(8, 8, 8),
        attention_resolutions=(),
        resolution=4 * SIZE,
        num_layers=1,
        patch_size=2,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
        latents_mean=None,
        latents_std=None,
    )


class Permission(nn.Module):
    """In place of the guardrail, which these pipelines insist on: it allows everything."""

    device = torch.device("cpu")
    dtype = torch.float32


def build_cosmos(pipeline: type[DiffusionPipeline], **components: Any) -> DiffusionPipeline:
    return assemble(
        pipeline,
        **dict(
            text_encoder=None,
            tokenizer=None,
            transformer=tiny_cosmos_transformer(),
            vae=tiny_wan_vae(),
            safety_checker=Permission(),
        )
        | components,
    )


def build_cosmos1(pipeline: type[DiffusionPipeline], channels: int) -> DiffusionPipeline:
    """Positions are rotary and learnt."""
    return build_cosmos(
        pipeline,
        transformer=tiny_cosmos_transformer(
            in_channels=channels, rope_scale=(2.0, 1.0, 1.0), extra_pos_embed_type="learnable"
        ),
        vae=tiny_cosmos_vae(),
        scheduler=EDMEulerScheduler(sigma_max=80.0, final_sigmas_type="sigma_min"),
    )


def build_cosmos2(pipeline: type[DiffusionPipeline], channels: int) -> DiffusionPipeline:
    return build_cosmos(
        pipeline,
        transformer=tiny_cosmos_transformer(in_channels=channels),
        scheduler=FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
    )


def build_cosmos25() -> DiffusionPipeline:
    """The text is projected at first."""
    return build_cosmos(
        Cosmos2_5_PredictBasePipeline,
        transformer=tiny_cosmos_transformer(
            in_channels=CHANNELS + 1,
            use_crossattn_projection=True,
            crossattn_proj_in_channels=16,
            encoder_hidden_states_channels=16,
        ),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            use_karras_sigmas=True,
            sigma_max=200.0,
            sigma_min=0.01,
        ),
    )


def picture_text() -> dict[str, Any]:
    return {name: value for name, value in video_text().items() if name != "num_frames"}


PIPELINES = (
    TinyPipeline(
        "cosmos",
        lambda: build_cosmos1(CosmosTextToWorldPipeline, CHANNELS),
        lambda pipe: video_text(height=2 * SIZE, width=2 * SIZE, num_frames=9),
        "transformer",
    ),
    TinyPipeline(
        "cosmos_v2w",
        lambda: build_cosmos1(CosmosVideoToWorldPipeline, CHANNELS + 1),
        lambda pipe: video_text(video=frames(5, 2 * SIZE), height=2 * SIZE, width=2 * SIZE, num_frames=9),
        "transformer",
    ),
    TinyPipeline(
        "cosmos2_t2i",
        lambda: build_cosmos2(Cosmos2TextToImagePipeline, CHANNELS),
        lambda pipe: picture_text(),
        "transformer",
    ),
    # The tokens of the given picture have a timestep of their own.
    TinyPipeline(
        "cosmos2_v2w",
        lambda: build_cosmos2(Cosmos2VideoToWorldPipeline, CHANNELS + 1),
        lambda pipe: video_text(image=picture(SIZE)),
        "transformer",
    ),
    TinyPipeline("cosmos25", build_cosmos25, lambda pipe: video_text(), "transformer"),
    TinyPipeline(
        "cosmos25_v2w",
        build_cosmos25,
        lambda pipe: video_text(video=frames(), num_latent_conditional_frames=1),
        "transformer",
    ),
)
