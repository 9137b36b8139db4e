"""Denoisers of video with its sound, and what was made of them."""

from typing import Any

import torch
from torch import Tensor

from asyncdiff.zoo.specimen import Specimen, noise

# Two heads of 16 channels for frames, two of 8 for sound; three frames of 4 by 4 tokens.
_HEADS, _HEAD_WIDTH, _WIDTH, _SOUND_HEAD_WIDTH, _SOUND_WIDTH = 2, 16, 32, 8, 16
_CHANNELS, _SOUND_CHANNELS, _FRAMES, _GRID, _SOUNDS, _LAYERS = 4, 5, 3, 4, 10, 6
_TOKENS = _FRAMES * _GRID**2
_TEXT_TOKENS, _TEXT_WIDTH = 6, 24


def _text(width: int = _TEXT_WIDTH, *, seed: int = 1) -> Tensor:
    return noise(1, _TEXT_TOKENS, width, seed=seed)


def _words() -> Tensor:
    """Which tokens of the text are no padding."""
    return (torch.arange(_TEXT_TOKENS) < _TEXT_TOKENS - 1).long()[None]


_LTX_2 = {
    "in_channels": _CHANNELS,
    "out_channels": _CHANNELS,
    "num_attention_heads": _HEADS,
    "attention_head_dim": _HEAD_WIDTH,
    "cross_attention_dim": _WIDTH,
    "audio_in_channels": _SOUND_CHANNELS,
    "audio_out_channels": _SOUND_CHANNELS,
    "audio_num_attention_heads": _HEADS,
    "audio_attention_head_dim": _SOUND_HEAD_WIDTH,
    "audio_cross_attention_dim": _SOUND_WIDTH,
    "num_layers": _LAYERS,
    "caption_channels": _TEXT_WIDTH,
    "rope_type": "split",
}

_LTX_23 = {
    **_LTX_2,
    "gated_attn": True,
    "cross_attn_mod": True,
    "audio_gated_attn": True,
    "audio_cross_attn_mod": True,
    "use_prompt_embeddings": False,
    "perturbed_attn": True,
}


def _ltx_2(**more: Any) -> dict[str, Any]:
    return {
        "hidden_states": noise(1, _TOKENS, _CHANNELS),
        "audio_hidden_states": noise(1, _SOUNDS, _SOUND_CHANNELS, seed=3),
        "encoder_hidden_states": _text(),
        "audio_encoder_hidden_states": _text(seed=2),
        "timestep": torch.tensor([700.0]),
        "sigma": torch.tensor([700.0]),
        "encoder_attention_mask": _words(),
        "audio_encoder_attention_mask": _words(),
        "num_frames": _FRAMES,
        "height": _GRID,
        "width": _GRID,
        "fps": 24.0,
        "audio_num_frames": _SOUNDS,
        "isolate_modalities": False,
        "spatio_temporal_guidance_blocks": None,
        "perturbation_mask": None,
        "use_cross_timestep": False,
        "return_dict": False,
        **more,
    }


def _ltx_2_of_a_picture() -> dict[str, Any]:
    """Every token of the video has a timestep of its own: the first frame is given."""
    tokens = torch.tensor([[0.0, 700.0, 700.0]]).repeat_interleave(_GRID**2, dim=1)
    return _ltx_2(timestep=tokens, audio_timestep=torch.tensor([700.0]))


def _ltx_23(**more: Any) -> dict[str, Any]:
    return _ltx_2(
        encoder_hidden_states=_text(_WIDTH),
        audio_encoder_hidden_states=_text(_SOUND_WIDTH, seed=2),
        use_cross_timestep=True,
        **more,
    )


def _ltx_23_perturbed() -> dict[str, Any]:
    """The call of a guidance that weakens the attention of some blocks, and one that parts picture and sound."""
    return _ltx_23(spatio_temporal_guidance_blocks=[3], isolate_modalities=True)


def _sana_refiner() -> dict[str, Any]:
    """A later block of frames: each layer holds the keys and values of the first frames and of some before."""
    from diffusers.models.transformers.transformer_sana_wm_refiner import SanaWMRefinerKVCache

    caches = SanaWMRefinerKVCache(num_layers=_LAYERS)
    caches.sink_pe = _sana_positions(1, seed=6)
    for number, layer in enumerate(caches.layer_caches):
        shape = (1, _GRID**2, _WIDTH)
        layer.store_sink(noise(*shape, seed=30 + number), noise(*shape, seed=40 + number))
        layer.store_history(noise(*shape, seed=50 + number), noise(*shape, seed=60 + number))
    return {
        "hidden_states": noise(1, _TOKENS, _CHANNELS),
        "encoder_hidden_states": _text(),
        "timestep": torch.full((1, _TOKENS), 700.0),
        "video_rotary_emb": _sana_positions(_FRAMES, seed=7),
        "encoder_attention_mask": _words(),
        "kv_cache": caches,
        "kv_cache_mode": "inject",
        "return_dict": False,
    }


def _sana_positions(frames: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the tokens' angles, for each head."""
    angles = noise(1, _HEADS, frames * _GRID**2, _HEAD_WIDTH // 2, seed=seed)
    return angles.cos(), angles.sin()


_KANDINSKY_6 = {
    "in_visual_dim": _CHANNELS,
    "out_visual_dim": _CHANNELS,
    "in_text_dim": _TEXT_WIDTH,
    "in_text_dim2": 8,
    "time_dim": 16,
    "model_dim": _WIDTH,
    "ff_dim": 64,
    "num_text_blocks": 1,
    "num_visual_blocks": _LAYERS,
    "axes_dims": (4, 6, 6),
    "in_audio_dim": _SOUND_CHANNELS,
    "out_audio_dim": _SOUND_CHANNELS,
    "model_dim_a": _SOUND_WIDTH,
    "time_dim_a": 16,
    "ff_dim_a": 32,
    "axes_dims_a": (2, 2, 4),
    "visual_token_type_num_embeddings": 2,
}


def _kandinsky_6(**more: Any) -> dict[str, Any]:
    """The latents of a given picture and a mask beside those of the video."""
    return {
        "hidden_states": noise(1, _FRAMES, 2 * _GRID, 2 * _GRID, 2 * _CHANNELS + 1),
        "encoder_hidden_states": _text(),
        "pooled_projections": noise(1, 8, seed=2),
        "timestep": torch.tensor([700.0]),
        "visual_rope_pos": (torch.arange(_FRAMES), torch.arange(_GRID), torch.arange(_GRID)),
        "encoder_attention_mask": _words().bool(),
        "visual_token_type_ids": torch.tensor([[1, 0, 0]]),
        "return_dict": False,
        **more,
    }


def _kandinsky_6_with_sound() -> dict[str, Any]:
    return _kandinsky_6(audio_hidden_states=noise(1, _SOUNDS, _SOUND_CHANNELS, seed=3))


# Text first, then the frames (of which the first is given), then sound, then actions.
_ACTIONS, _ACTION_WIDTH = 4, 3

_COSMOS_3 = {
    "head_dim": _HEAD_WIDTH,
    "hidden_size": _WIDTH,
    "intermediate_size": 64,
    "latent_channel": _CHANNELS,
    "latent_patch_size": 2,
    "patch_latent_dim": 4 * _CHANNELS,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": 1,
    "num_hidden_layers": _LAYERS,
    "rope_axes_dim": [4, 2, 2],
    "vocab_size": 64,
}


def _cosmos_3(more_tokens: int = 0, **more: Any) -> dict[str, Any]:
    frames = torch.arange(_TEXT_TOKENS, _TEXT_TOKENS + _TOKENS)
    noisy = frames[_GRID**2 :]
    length = _TEXT_TOKENS + _TOKENS + more_tokens
    return {
        "input_ids": torch.arange(_TEXT_TOKENS),
        "text_indexes": torch.arange(_TEXT_TOKENS),
        "position_ids": torch.arange(length).repeat(3, 1),
        "und_len": _TEXT_TOKENS,
        "sequence_length": length,
        "vision_tokens": [noise(1, _CHANNELS, _FRAMES, 2 * _GRID, 2 * _GRID)],
        "vision_token_shapes": [(_FRAMES, _GRID, _GRID)],
        "vision_sequence_indexes": frames,
        "vision_mse_loss_indexes": noisy,
        "vision_timesteps": torch.full((len(noisy),), 700.0),
        "vision_noisy_frame_indexes": [torch.arange(1, _FRAMES)],
        "return_dict": False,
        **more,
    }


def _cosmos_3_with_sound_and_actions() -> dict[str, Any]:
    start = _TEXT_TOKENS + _TOKENS
    sounds = torch.arange(start, start + _SOUNDS)
    actions = torch.arange(start + _SOUNDS, start + _SOUNDS + _ACTIONS)
    return _cosmos_3(
        more_tokens=_SOUNDS + _ACTIONS,
        sound_tokens=[noise(_SOUND_CHANNELS, _SOUNDS, seed=2)],
        sound_token_shapes=[(_SOUNDS, 1, 1)],
        sound_sequence_indexes=sounds,
        sound_mse_loss_indexes=sounds,
        sound_timesteps=torch.full((_SOUNDS,), 700.0),
        sound_noisy_frame_indexes=[torch.arange(_SOUNDS)],
        action_tokens=[noise(_ACTIONS, _ACTION_WIDTH, seed=3)],
        action_token_shapes=[(_ACTIONS, 1, 1)],
        action_sequence_indexes=actions,
        action_mse_loss_indexes=actions,
        action_timesteps=torch.full((_ACTIONS,), 700.0),
        action_noisy_frame_indexes=[torch.arange(_ACTIONS)],
        action_domain_ids=[torch.tensor(1)],
    )


_MINIMAX = {
    "num_attention_heads": _HEADS,
    "attention_head_dim": _HEAD_WIDTH,
    "hidden_size": _WIDTH,
    "num_layers": _LAYERS,
    "num_refiner_layers": 1,
    "ffn_dim": 64,
    "in_channels": _CHANNELS,
    "audio_in_channels": _SOUND_CHANNELS,
    "text_dim": _TEXT_WIDTH,
    "freq_dim": 16,
    "time_embed_hidden_dim": 16,
    "time_embed_dim": 16,
    "rope_freq_dim": 2,
}


def _minimax() -> dict[str, Any]:
    """Text, the frames (of which the first is given, without noise) and sound in one sequence."""
    sizes = torch.tensor([_TEXT_TOKENS, _TOKENS, _SOUNDS])
    length = int(sizes.sum())
    rows = torch.arange(length)
    in_time = (rows - _TEXT_TOKENS).clamp(0, _TOKENS - 1)
    is_noisy = (rows >= _TEXT_TOKENS + _GRID**2).long()
    return {
        "hidden_states": noise(1, _TOKENS, 4 * _CHANNELS),
        "audio_hidden_states": noise(1, _SOUNDS, _SOUND_CHANNELS, seed=2),
        "encoder_hidden_states": _text(),
        "timestep": torch.tensor([0.0, 0.7]),
        "timestep_indices": is_noisy,
        "token_tags": torch.tensor([1, 0, 2]).repeat_interleave(sizes),
        "position_ids": torch.stack([in_time // _GRID**2, in_time // _GRID % _GRID, in_time % _GRID], dim=1),
        "text_indices": rows[:_TEXT_TOKENS],
        "video_indices": rows[_TEXT_TOKENS : _TEXT_TOKENS + _TOKENS],
        "audio_indices": rows[_TEXT_TOKENS + _TOKENS :],
        "return_dict": False,
    }


SPECIMENS: tuple[Specimen, ...] = (
    Specimen("LTX2VideoTransformer3DModel", _LTX_2, _ltx_2),
    Specimen("LTX2VideoTransformer3DModel", _LTX_2, _ltx_2_of_a_picture, variant="a timestep for every token"),
    Specimen("LTX2VideoTransformer3DModel", _LTX_23, _ltx_23, variant="2.3"),
    Specimen("LTX2VideoTransformer3DModel", _LTX_23, _ltx_23_perturbed, variant="2.3, perturbed"),
    Specimen("SanaWMLTX2RefinerTransformer3DModel", _LTX_2, _sana_refiner),
    Specimen("Kandinsky6Transformer3DModel", _KANDINSKY_6, _kandinsky_6),
    Specimen("Kandinsky6Transformer3DModel", _KANDINSKY_6, _kandinsky_6_with_sound, variant="with sound"),
    Specimen("Cosmos3OmniTransformer", _COSMOS_3, _cosmos_3, time="vision_timesteps"),
    Specimen(
        "Cosmos3OmniTransformer",
        {
            **_COSMOS_3,
            "sound_gen": True,
            "sound_dim": _SOUND_CHANNELS,
            "action_gen": True,
            "action_dim": _ACTION_WIDTH,
            "num_embodiment_domains": 2,
        },
        _cosmos_3_with_sound_and_actions,
        variant="with sound and actions",
        time="vision_timesteps",
    ),
    Specimen("MiniMaxH3Transformer3DModel", _MINIMAX, _minimax),
)
