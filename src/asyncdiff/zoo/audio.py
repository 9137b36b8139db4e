"""Denoisers of sound and music."""

from typing import Any

import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed

from asyncdiff.zoo.specimen import Specimen, noise

_HEADS, _HEAD_WIDTH, _WIDTH = 2, 16, 32
_LENGTH, _CHANNELS = 24, 8
_TEXT_TOKENS, _TEXT_WIDTH = 6, 24


def _ace_step() -> dict[str, Any]:
    return {
        "hidden_states": noise(1, _LENGTH, 4),
        "timestep": torch.tensor([0.7]),
        "timestep_r": torch.tensor([0.7]),
        "encoder_hidden_states": noise(1, _TEXT_TOKENS, _TEXT_WIDTH, seed=1),
        "context_latents": noise(1, _LENGTH, _CHANNELS, seed=2),
        "return_dict": False,
    }


def _stable_audio() -> dict[str, Any]:
    return {
        "hidden_states": noise(1, _CHANNELS, _LENGTH),
        "timestep": torch.tensor([0.7]),
        "encoder_hidden_states": noise(1, _TEXT_TOKENS, _TEXT_WIDTH, seed=1),
        "global_hidden_states": noise(1, 1, 12, seed=2),
        "rotary_embedding": get_1d_rotary_pos_embed(
            _HEAD_WIDTH // 2, _LENGTH + 1, use_real=True, repeat_interleave_real=False
        ),
        "return_dict": False,
    }


_STABLE_AUDIO_3 = {
    "io_channels": _CHANNELS,
    "embed_dim": _WIDTH,
    "depth": 6,
    "num_heads": _HEADS,
    "cond_token_dim": _TEXT_WIDTH,
    "global_cond_dim": 12,
    "local_add_cond_dim": 9,
    "timestep_features_dim": 32,
    "num_memory_tokens": 4,
}


def _stable_audio_3(**more: Any) -> dict[str, Any]:
    return {
        "hidden_states": noise(1, _CHANNELS, _LENGTH),
        "timestep": torch.tensor([0.7]),
        "encoder_hidden_states": noise(1, _TEXT_TOKENS, _TEXT_WIDTH, seed=1),
        "global_hidden_states": noise(1, 12, seed=2),
        "encoder_attention_mask": torch.arange(_TEXT_TOKENS)[None] < 5,
        "return_dict": False,
        **more,
    }


def _stable_audio_3_inpainting() -> dict[str, Any]:
    return _stable_audio_3(local_add_cond=noise(1, 9, _LENGTH, seed=3))


def _longcat() -> dict[str, Any]:
    return {
        "hidden_states": noise(1, _LENGTH, _CHANNELS),
        "encoder_hidden_states": noise(1, _TEXT_TOKENS, _TEXT_WIDTH, seed=1),
        "encoder_attention_mask": torch.arange(_TEXT_TOKENS)[None] < 5,
        "timestep": torch.tensor([0.7]),
        "attention_mask": torch.arange(_LENGTH)[None] < _LENGTH - 2,
        "latent_cond": noise(1, _LENGTH, _CHANNELS, seed=2),
    }


def _minimax_music() -> dict[str, Any]:
    return {
        "hidden_states": noise(1, _CHANNELS, _LENGTH),
        "timestep": torch.tensor([0.7]),
        "encoder_hidden_states": noise(1, _LENGTH, _TEXT_WIDTH, seed=1),
        "return_dict": False,
    }


def _t5_film() -> dict[str, Any]:
    encodings = [(noise(1, _TEXT_TOKENS, _WIDTH, seed=1), torch.ones(1, _TEXT_TOKENS))]
    encodings.append((noise(1, _LENGTH, _WIDTH, seed=2), torch.ones(1, _LENGTH)))
    return {
        "encodings_and_masks": encodings,
        "decoder_input_tokens": noise(1, _LENGTH, _CHANNELS),
        "decoder_noise_time": torch.tensor([0.7]),
    }


SPECIMENS: tuple[Specimen, ...] = (
    Specimen(
        "AceStepTransformer1DModel",
        {
            "hidden_size": _WIDTH,
            "intermediate_size": 64,
            "num_hidden_layers": 6,
            "num_attention_heads": _HEADS,
            "num_key_value_heads": 1,
            "head_dim": _HEAD_WIDTH,
            "in_channels": 4 + _CHANNELS,
            "audio_acoustic_hidden_dim": 4,
            "sliding_window": 4,
            "encoder_hidden_size": _TEXT_WIDTH,
        },
        _ace_step,
    ),
    Specimen(
        "StableAudioDiTModel",
        {
            "sample_size": _LENGTH,
            "in_channels": _CHANNELS,
            "out_channels": _CHANNELS,
            "num_layers": 6,
            "attention_head_dim": _HEAD_WIDTH,
            "num_attention_heads": _HEADS,
            "num_key_value_attention_heads": 1,
            "cross_attention_dim": _HEAD_WIDTH,
            "time_proj_dim": 32,
            "global_states_input_dim": 12,
            "cross_attention_input_dim": _TEXT_WIDTH,
        },
        _stable_audio,
    ),
    Specimen("StableAudio3DiTModel", _STABLE_AUDIO_3, _stable_audio_3),
    Specimen("StableAudio3DiTModel", _STABLE_AUDIO_3, _stable_audio_3_inpainting, variant="inpainting"),
    Specimen(
        "LongCatAudioDiTTransformer",
        {
            "dit_dim": _WIDTH,
            "dit_depth": 6,
            "dit_heads": _HEADS,
            "dit_text_dim": _TEXT_WIDTH,
            "latent_dim": _CHANNELS,
        },
        _longcat,
    ),
    Specimen(
        "MiniMaxMusic3Transformer1DModel",
        {
            "in_channels": _CHANNELS,
            "condition_dim": _TEXT_WIDTH,
            "num_layers": 6,
            "num_attention_heads": _HEADS,
            "attention_head_dim": _HEAD_WIDTH,
            "ff_inner_dim": 64,
            "rotary_dim": 8,
            "fourier_embedding_dim": 32,
        },
        _minimax_music,
    ),
    Specimen(
        "T5FilmDecoder",
        {
            "input_dims": _CHANNELS,
            "targets_length": _LENGTH,
            "d_model": _WIDTH,
            "num_layers": 6,
            "num_heads": _HEADS,
            "d_kv": _HEAD_WIDTH,
            "d_ff": 64,
        },
        _t5_film,
        time="decoder_noise_time",
    ),
)
