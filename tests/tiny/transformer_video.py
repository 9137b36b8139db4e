"""Further video pipelines whose denoiser is a transformer: Mochi, Allegro, Latte, EasyAnimate, Sana-Video."""

from typing import Any

from diffusers import (
    AllegroPipeline,
    AllegroTransformer3DModel,
    AutoencoderKLMagvit,
    DDIMScheduler,
    DiffusionPipeline,
    EasyAnimatePipeline,
    EasyAnimateTransformer3DModel,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LattePipeline,
    LatteTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    SanaImageToVideoPipeline,
    SanaVideoPipeline,
    SanaVideoTransformer3DModel,
)

from tests.tiny.base import SIZE, TEXT_LENGTH, TinyPipeline, assemble, tiny_vae, words
from tests.tiny.pictures import picture
from tests.tiny.videos import FRAMES, video_text
from tests.tiny.wan import CHANNELS as WAN_CHANNELS
from tests.tiny.wan import flow_unipc, tiny_wan_vae

CHANNELS = 4  # of the latents

TEXT_FREE: dict[str, Any] = dict(text_encoder=None, tokenizer=None)


def build_mochi() -> DiffusionPipeline:
    return assemble(
        MochiPipeline,
        **TEXT_FREE,
        vae=None,
        transformer=MochiTransformer3DModel(
            patch_size=2,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=5,
            pooled_projection_dim=16,
            in_channels=CHANNELS,
            text_embed_dim=16,
            time_embed_dim=8,
            max_sequence_length=TEXT_LENGTH,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    )


def build_allegro() -> DiffusionPipeline:
    return assemble(
        AllegroPipeline,
        **TEXT_FREE,
        vae=None,
        transformer=AllegroTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=24,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_layers=5,
            cross_attention_dim=48,
            sample_width=SIZE // 2,
            sample_height=SIZE // 2,
            sample_frames=3,
            caption_channels=16,
        ),
        scheduler=EulerAncestralDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    )


def build_latte() -> DiffusionPipeline:
    """The denoiser's blocks attend in turns within frames and between them; it predicts a variance too."""
    return assemble(
        LattePipeline,
        **TEXT_FREE,
        vae=tiny_vae(),
        transformer=LatteTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=CHANNELS,
            out_channels=2 * CHANNELS,
            num_layers=3,
            cross_attention_dim=32,
            attention_bias=True,
            sample_size=SIZE // 2,
            patch_size=2,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
            caption_channels=16,
            video_length=3,
        ),
        scheduler=DDIMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear", clip_sample=False),
    )


def build_easyanimate() -> DiffusionPipeline:
    """The first blocks keep text and frames apart, the others do not."""
    return assemble(
        EasyAnimatePipeline,
        **TEXT_FREE,
        vae=AutoencoderKLMagvit(
            latent_channels=CHANNELS,
            block_out_channels=[8, 8],
            down_block_types=["SpatialDownBlock3D", "SpatialTemporalDownBlock3D"],
            up_block_types=["SpatialUpBlock3D", "SpatialTemporalUpBlock3D"],
            layers_per_block=1,
            norm_num_groups=4,
        ),
        transformer=EasyAnimateTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            patch_size=2,
            sample_width=SIZE // 2,
            sample_height=SIZE // 2,
            num_layers=5,
            mmdit_layers=3,
            time_embed_dim=16,
            text_embed_dim=16,
            add_norm_text_encoder=True,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def build_sana_video(pipeline: type[DiffusionPipeline] = SanaVideoPipeline) -> DiffusionPipeline:
    return assemble(
        pipeline,
        **TEXT_FREE,
        vae=tiny_wan_vae(downsamplings=2),
        transformer=SanaVideoTransformer3DModel(
            in_channels=WAN_CHANNELS,
            out_channels=WAN_CHANNELS,
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=5,
            num_cross_attention_heads=2,
            cross_attention_head_dim=12,
            cross_attention_dim=24,
            caption_channels=16,
            rope_max_seq_len=32,
        ),
        scheduler=flow_unipc(),
    )


def masked_video_text(**extra: Any) -> dict[str, Any]:
    return video_text(prompt_attention_mask=words(), negative_prompt_attention_mask=words()) | extra


def sana_video_text(**extra: Any) -> dict[str, Any]:
    inputs = masked_video_text(height=2 * SIZE, width=2 * SIZE, frames=FRAMES, use_resolution_binning=False, **extra)
    return {name: value for name, value in inputs.items() if name != "num_frames"}


def latte_text() -> dict[str, Any]:
    inputs = video_text(video_length=3, negative_prompt=None)
    return {name: value for name, value in inputs.items() if name != "num_frames"}


PIPELINES = (
    TinyPipeline(
        # The noise level falls slowly in the first half of the steps, fast in the second.
        "mochi",
        build_mochi,
        lambda pipe: masked_video_text(height=64, width=64, num_frames=13, guidance_scale=2.0),
        "transformer",
        steps=12,
    ),
    TinyPipeline(
        "allegro",
        build_allegro,
        lambda pipe: masked_video_text(height=64, width=64, num_frames=9, negative_prompt=None),
        "transformer",
    ),
    TinyPipeline("latte", build_latte, lambda pipe: latte_text(), "transformer"),
    TinyPipeline(
        "easyanimate",
        build_easyanimate,
        lambda pipe: masked_video_text(num_frames=3, guidance_rescale=0.5),
        "transformer",
    ),
    TinyPipeline("sana_video", build_sana_video, lambda pipe: sana_video_text(negative_prompt=None), "transformer"),
    # The tokens of the given picture have timestep 0.
    TinyPipeline(
        "sana_i2v",
        lambda: build_sana_video(SanaImageToVideoPipeline),
        lambda pipe: sana_video_text(image=picture(2 * SIZE), negative_prompt=None),
        "transformer",
    ),
)
