"""Audio pipelines whose denoiser is a transformer: Stable Audio and ACE-Step."""

from typing import Any

from diffusers import (
    AceStepPipeline,
    AceStepTransformer1DModel,
    AutoencoderOobleck,
    DiffusionPipeline,
    EDMDPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
)
from diffusers.pipelines.ace_step import AceStepConditionEncoder

from tests.tiny.base import TEXT_LENGTH, TinyPipeline, assemble, sampling, text
from tests.tiny.text_encoders import tiny_text_encoder, tiny_tokenizer

CHANNELS = 4  # of the latents

LENGTH = 16  # of the latents


def tiny_oobleck() -> AutoencoderOobleck:
    """Two latents a second."""
    return AutoencoderOobleck(
        encoder_hidden_size=4,
        downsampling_ratios=[2, 2],
        channel_multiples=[1, 1],
        decoder_channels=4,
        decoder_input_channels=CHANNELS,
        audio_channels=2,
        sampling_rate=8,
    )


def build_stable_audio() -> DiffusionPipeline:
    return assemble(
        StableAudioPipeline,
        vae=tiny_oobleck(),
        text_encoder=None,
        tokenizer=None,
        projection_model=StableAudioProjectionModel(
            text_encoder_dim=16, conditioning_dim=16, min_value=0, max_value=32
        ),
        transformer=StableAudioDiTModel(
            sample_size=LENGTH,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_layers=5,
            attention_head_dim=16,
            num_attention_heads=2,
            num_key_value_attention_heads=1,
            cross_attention_dim=16,
            time_proj_dim=8,
            global_states_input_dim=32,
            cross_attention_input_dim=16,
        ),
        scheduler=EDMDPMSolverMultistepScheduler(
            solver_order=2, prediction_type="v_prediction", sigma_data=1.0, sigma_schedule="exponential"
        ),
    )


def build_ace_step() -> DiffusionPipeline:
    """Layers attend in turns to their surroundings and to everything; the words go through an encoder of its own."""
    widths: dict[str, Any] = dict(
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=4,
    )
    return assemble(
        AceStepPipeline,
        vae=tiny_oobleck(),
        text_encoder=tiny_text_encoder(),
        tokenizer=tiny_tokenizer(),
        transformer=AceStepTransformer1DModel(
            **widths, num_hidden_layers=5, in_channels=3 * CHANNELS, audio_acoustic_hidden_dim=CHANNELS
        ),
        condition_encoder=AceStepConditionEncoder(
            **widths,
            text_hidden_dim=16,
            timbre_hidden_dim=CHANNELS,
            num_lyric_encoder_hidden_layers=1,
            num_timbre_encoder_hidden_layers=1,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )


def ace_step_text(**extra: Any) -> dict[str, Any]:
    return sampling(
        prompt="drums",
        lyrics="hey",
        audio_duration=LENGTH / 2,
        max_text_length=TEXT_LENGTH,
        max_lyric_length=TEXT_LENGTH,
        **dict(guidance_scale=4.0) | extra,
    )


PIPELINES = (
    TinyPipeline("stable_audio", build_stable_audio, lambda pipe: text(audio_end_in_s=6.0), "transformer"),
    TinyPipeline("ace_step", build_ace_step, lambda pipe: ace_step_text(), "transformer"),
    # Without guidance in the first steps: the batch grows after them.
    TinyPipeline(
        "ace_step_interval",
        build_ace_step,
        lambda pipe: ace_step_text(cfg_interval_start=0.3),
        "transformer",
        steps=12,
    ),
    # Two calls in every step, one of them as if there were nothing to cover.
    TinyPipeline(
        "ace_step_cover",
        build_ace_step,
        lambda pipe: ace_step_text(task_type="cover", audio_cover_strength=0.6, guidance_scale=1.0),
        "transformer",
    ),
)
