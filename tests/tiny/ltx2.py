"""LTX-2: video and sound, denoised together."""

from typing import Any

from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    LTX2ImageToVideoPipeline,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors

from tests.tiny.base import SIZE, TEXT_LENGTH, TinyPipeline, assemble, words
from tests.tiny.pictures import picture
from tests.tiny.videos import video_text

CHANNELS = 4  # of the video's latents

SOUND_CHANNELS, SOUND_BINS = 2, 4  # of the sound's latents

SOUND_WIDTH = SOUND_CHANNELS * SOUND_BINS


def tiny_ltx2_transformer(**config: Any) -> LTX2VideoTransformer3DModel:
    return LTX2VideoTransformer3DModel(
        **dict(
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_attention_heads=2,
            attention_head_dim=16,
            cross_attention_dim=32,
            vae_scale_factors=(2, 8, 8),
            audio_in_channels=SOUND_WIDTH,
            audio_out_channels=SOUND_WIDTH,
            audio_num_attention_heads=2,
            audio_attention_head_dim=8,
            audio_cross_attention_dim=16,
            num_layers=5,
            caption_channels=16,
            rope_type="split",
        )
        | config
    )


def tiny_ltx2_vae() -> AutoencoderKLLTX2Video:
    """Halves time once and size three times."""
    return AutoencoderKLLTX2Video(
        latent_channels=CHANNELS,
        block_out_channels=(8,),
        down_block_types=("LTX2VideoDownBlock3D",),
        decoder_block_out_channels=(8,),
        layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatiotemporal",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        patch_size=4,
    )


def tiny_ltx2_audio_vae() -> AutoencoderKLLTX2Audio:
    return AutoencoderKLLTX2Audio(
        base_channels=SOUND_WIDTH,
        ch_mult=(1,),
        num_res_blocks=1,
        resolution=32,
        latent_channels=SOUND_CHANNELS,
        mel_bins=4 * SOUND_BINS,
    )


def tiny_connectors() -> LTX2TextConnectors:
    """From one text to that of the video and that of the sound."""
    return LTX2TextConnectors(
        caption_channels=16,
        text_proj_in_factor=1,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=8,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=TEXT_LENGTH,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=TEXT_LENGTH,
        rope_type="split",
    )


def build_ltx2(pipeline: type[DiffusionPipeline] = LTX2Pipeline, **config: Any) -> DiffusionPipeline:
    return assemble(
        pipeline,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1),
        vae=tiny_ltx2_vae(),
        audio_vae=tiny_ltx2_audio_vae(),
        text_encoder=None,
        tokenizer=None,
        connectors=tiny_connectors(),
        transformer=tiny_ltx2_transformer(**config),
        vocoder=None,
    )


def build_ltx23() -> DiffusionPipeline:
    """Gates in attention; the text is modulated with the time."""
    return build_ltx2(
        gated_attn=True, cross_attn_mod=True, audio_gated_attn=True, audio_cross_attn_mod=True, perturbed_attn=True
    )


def ltx2_text(**extra: Any) -> dict[str, Any]:
    return video_text(
        height=2 * SIZE,
        width=2 * SIZE,
        prompt_attention_mask=words(),
        negative_prompt_attention_mask=words(),
        **extra,
    )


PIPELINES = (
    TinyPipeline("ltx2", build_ltx2, lambda pipe: ltx2_text(), "transformer"),
    # Three calls in every step, two of which are guided by their own lack: of attention, and of the other's sound.
    TinyPipeline(
        "ltx23_guidance",
        build_ltx23,
        lambda pipe: ltx2_text(stg_scale=1.0, modality_scale=2.0, spatio_temporal_guidance_blocks=[2]),
        "transformer",
    ),
    # The tokens of the given picture have timestep 0.
    TinyPipeline(
        "ltx2_i2v",
        lambda: build_ltx2(LTX2ImageToVideoPipeline),
        lambda pipe: ltx2_text(image=picture(2 * SIZE), image_crf=0),
        "transformer",
    ),
)
