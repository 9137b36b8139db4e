"""Wan's video denoisers and those that were made of them."""

from typing import Any

import torch
from torch import Tensor

from asyncdiff.zoo.specimen import Specimen, noise

# Two heads of 16 channels; three frames of 8 by 8 latents, in patches of 2 by 2.
_HEADS, _HEAD_WIDTH, _WIDTH, _LAYERS = 2, 16, 32, 6
_CHANNELS, _FRAMES, _SIDE = 4, 3, 8
_TOKENS_OF_A_FRAME = (_SIDE // 2) ** 2
_TOKENS = _FRAMES * _TOKENS_OF_A_FRAME
_TEXT_TOKENS, _TEXT_WIDTH, _PICTURE_WIDTH = 6, 24, 20

_WAN: dict[str, Any] = {
    "in_channels": _CHANNELS,
    "out_channels": _CHANNELS,
    "num_attention_heads": _HEADS,
    "attention_head_dim": _HEAD_WIDTH,
    "num_layers": _LAYERS,
    "text_dim": _TEXT_WIDTH,
    "freq_dim": 16,
    "ffn_dim": 64,
}


def _video(channels: int = _CHANNELS, frames: int = _FRAMES, *, side: int = _SIDE, seed: int = 0) -> Tensor:
    return noise(1, channels, frames, side, side, seed=seed)


def _text() -> Tensor:
    return noise(1, _TEXT_TOKENS, _TEXT_WIDTH, seed=1)


def _frames_of_noise(time: float) -> Tensor:
    """A timestep for every frame, the first of which is given."""
    return torch.tensor([[0.0] + [time] * (_FRAMES - 1)])


def _wan(**more: Any) -> dict[str, Any]:
    return {
        "hidden_states": _video(),
        "timestep": torch.tensor([700.0]),
        "encoder_hidden_states": _text(),
        "return_dict": False,
        **more,
    }


# The latents of a given picture and a mask beside those of the video, and the picture encoded for cross-attention.
_WAN_OF_A_PICTURE = {
    **_WAN,
    "in_channels": 2 * _CHANNELS + 4,
    "image_dim": _PICTURE_WIDTH,
    "added_kv_proj_dim": _WIDTH,
}


def _encoded_picture() -> Tensor:
    return noise(1, 5, _PICTURE_WIDTH, seed=2)


def _wan_of_a_picture() -> dict[str, Any]:
    return _wan(hidden_states=_video(2 * _CHANNELS + 4), encoder_hidden_states_image=_encoded_picture())


def _wan_per_token() -> dict[str, Any]:
    """Wan 2.2 of 5 B: the tokens of the first frame are given."""
    return _wan(timestep=_frames_of_noise(700.0).repeat_interleave(_TOKENS_OF_A_FRAME, dim=1))


def _wan_vace() -> dict[str, Any]:
    return _wan(control_hidden_states=_video(10, seed=3), control_hidden_states_scale=torch.tensor([1.0, 0.8, 0.6]))


def _chrono_edit() -> dict[str, Any]:
    """Two frames: the given picture and what becomes of it."""
    return _wan(hidden_states=_video(2 * _CHANNELS + 4, 2), encoder_hidden_states_image=_encoded_picture())


def _sky_reels() -> dict[str, Any]:
    return _wan(enable_diffusion_forcing=False)


def _sky_reels_forcing() -> dict[str, Any]:
    """Every frame has a noise level of its own, and attends to those before."""
    return _wan(hidden_states=_video(frames=4), timestep=_ladder(4), enable_diffusion_forcing=True, fps=[1])


def _ladder(frames: int) -> Tensor:
    """Timesteps that rise from frame to frame."""
    return torch.linspace(400.0, 700.0, frames)[None]


# Four pictures of a face for every latent frame but the first; the encoder takes four at a time.
_FACE_SIDE, _FACES = 16, 4 * (_FRAMES - 1)

_WAN_ANIMATE = {
    **_WAN_OF_A_PICTURE,
    "latent_channels": _CHANNELS,
    "motion_encoder_channel_sizes": {"4": 2, "8": 2, "16": 2},
    "motion_encoder_size": _FACE_SIDE,
    "motion_style_dim": 2,
    "motion_dim": 2,
    "motion_encoder_dim": 8,
    "face_encoder_hidden_dim": 8,
    "face_encoder_num_heads": 2,
    "inject_face_latents_blocks": 2,
    "motion_encoder_batch_size": 4,
}


def _wan_animate() -> dict[str, Any]:
    return {
        **_wan_of_a_picture(),
        "pose_hidden_states": _video(frames=_FRAMES - 1, seed=3),
        "face_pixel_values": noise(1, 3, _FACES, _FACE_SIDE, _FACE_SIDE, seed=4),
    }


_WAN_ANIMATE_2 = {
    "text_len": 8,
    "in_dim": 2 * _CHANNELS + 4,
    "out_dim": _CHANNELS,
    "dim": _WIDTH,
    "ffn_dim": 64,
    "freq_dim": 16,
    "text_dim": _TEXT_WIDTH,
    "num_heads": _HEADS,
    "num_layers": _LAYERS,
    "use_img_emb": False,
}


def _wan_animate_2() -> dict[str, Any]:
    """A call for the video: the one for the driving video has left its keys and values."""
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    caches = WanAnimate2KVCache(num_layers=_LAYERS)
    for number, layer in enumerate(caches.layer_caches):
        shape = (1, _TOKENS - _TOKENS_OF_A_FRAME, _HEADS, _HEAD_WIDTH)
        layer.store(noise(*shape, seed=30 + number), noise(*shape, seed=40 + number))
    return {
        "hidden_states": [_video()[0]],
        "timestep": torch.tensor([700.0]),
        "encoder_hidden_states": [_text()[0]],
        "condition_latents": [_video(_CHANNELS + 4, seed=3)[0]],
        "kv_cache": caches,
        "kv_cache_mode": "cached",
        "seq_len": _TOKENS,
        "reference_grid_sizes": torch.tensor([[_FRAMES - 1, _SIDE // 2, _SIDE // 2]]),
        "origin_len": 4 * (_FRAMES - 2) + 1,
        "origin_area": [8 * _SIDE, 8 * _SIDE],
        "is_uncondtion": False,
    }


_ANY_FLOW = {**_WAN, "image_dim": _PICTURE_WIDTH}


def _any_flow(**more: Any) -> dict[str, Any]:
    return {
        "hidden_states": _video().transpose(1, 2),
        "timestep": torch.full((1, _FRAMES), 700.0),
        "r_timestep": torch.full((1, _FRAMES), 600.0),
        "encoder_hidden_states": _text(),
        "return_dict": False,
        **more,
    }


def _any_flow_of_a_picture() -> dict[str, Any]:
    return _any_flow(encoder_hidden_states_image=_encoded_picture())


_ANY_FLOW_FAR = {**_WAN, "rope_max_seq_len": 32, "full_chunk_limit": 2, "chunk_partition": (1, 1, 2)}


def _any_flow_far() -> dict[str, Any]:
    """All chunks of the video at once."""
    return _any_flow(
        hidden_states=_video(frames=4).transpose(1, 2),
        timestep=torch.full((1, 4), 700.0),
        r_timestep=torch.full((1, 4), 600.0),
        chunk_partition=[1, 1, 2],
    )


def _any_flow_far_with_cache() -> dict[str, Any]:
    """The third chunk: calls before have left the keys and values of two, of the older one those of few tokens."""
    caches = [
        {
            "full_cache": noise(2, 1, _HEADS, 2 * 2 * _TOKENS_OF_A_FRAME, _HEAD_WIDTH, seed=30 + number),
            "compressed_cache": noise(2, 1, _HEADS, 2 * 2 * 4, _HEAD_WIDTH, seed=40 + number),
        }
        for number in range(_LAYERS)
    ]
    return _any_flow(
        hidden_states=_video(frames=2).transpose(1, 2),
        timestep=torch.full((1, 2), 700.0),
        r_timestep=torch.full((1, 2), 600.0),
        chunk_partition=[1, 1, 2],
        kv_cache=caches,
        kv_cache_flag={"num_cached_chunks": 2, "is_cache_step": False},
    )


_HELIOS = {**_WAN, "rope_dim": (8, 4, 4), "is_amplify_history": True}

# A larger picture: it embeds its conditions twice, which is next to nothing beside the blocks of a real one.
_HELIOS_SIDE = 24


def _helios(**more: Any) -> dict[str, Any]:
    return _wan(hidden_states=_video(side=_HELIOS_SIDE), **more)


def _helios_with_history() -> dict[str, Any]:
    """Before the frames come older ones: the older, the fewer tokens they have."""
    return _helios(
        indices_latents_history_long=torch.arange(0, 4)[None],
        indices_latents_history_mid=torch.arange(4, 6)[None],
        indices_latents_history_short=torch.arange(6, 8)[None],
        indices_hidden_states=torch.arange(8, 8 + _FRAMES)[None],
        latents_history_short=_video(frames=2, side=_HELIOS_SIDE, seed=3),
        latents_history_mid=_video(frames=2, side=_HELIOS_SIDE, seed=4),
        latents_history_long=_video(frames=4, side=_HELIOS_SIDE, seed=5),
    )


SPECIMENS: tuple[Specimen, ...] = (
    Specimen("WanTransformer3DModel", _WAN, _wan),
    Specimen("WanTransformer3DModel", _WAN_OF_A_PICTURE, _wan_of_a_picture, variant="image to video"),
    Specimen("WanTransformer3DModel", _WAN, _wan_per_token, variant="a timestep for every token"),
    Specimen("WanVACETransformer3DModel", {**_WAN, "vace_layers": [0, 2, 4], "vace_in_channels": 10}, _wan_vace),
    Specimen("WanAnimateTransformer3DModel", _WAN_ANIMATE, _wan_animate),
    Specimen("WanAnimate2Transformer3DModel", _WAN_ANIMATE_2, _wan_animate_2),
    Specimen("ChronoEditTransformer3DModel", _WAN_OF_A_PICTURE, _chrono_edit),
    Specimen("SkyReelsV2Transformer3DModel", _WAN, _sky_reels),
    Specimen(
        "SkyReelsV2Transformer3DModel",
        {**_WAN, "inject_sample_info": True, "num_frame_per_block": 2},
        _sky_reels_forcing,
        variant="diffusion forcing",
    ),
    Specimen("AnyFlowTransformer3DModel", _WAN, _any_flow),
    Specimen("AnyFlowTransformer3DModel", _ANY_FLOW, _any_flow_of_a_picture, variant="image to video"),
    Specimen("AnyFlowFARTransformer3DModel", _ANY_FLOW_FAR, _any_flow_far),
    Specimen("AnyFlowFARTransformer3DModel", _ANY_FLOW_FAR, _any_flow_far_with_cache, variant="chunk by chunk"),
    Specimen("HeliosTransformer3DModel", _HELIOS, _helios),
    Specimen("HeliosTransformer3DModel", _HELIOS, _helios_with_history, variant="with older frames"),
)
