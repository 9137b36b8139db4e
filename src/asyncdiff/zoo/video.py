"""Video denoisers in which frames and text are joined, and those that attend to text beside."""

from typing import Any

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed, get_3d_rotary_pos_embed_allegro
from torch import Tensor

from asyncdiff.zoo.specimen import Specimen, noise

# Two heads of 16 channels; three frames of 8 by 8 latents, in patches of 2 by 2.
_HEADS, _HEAD_WIDTH, _WIDTH, _LAYERS = 2, 16, 32, 6
_CHANNELS, _FRAMES, _SIDE = 4, 3, 8
_GRID = _SIDE // 2
_TOKENS = _FRAMES * _GRID**2
_TEXT_TOKENS, _TEXT_WIDTH, _PICTURE_WIDTH = 6, 24, 20
_ROPE_AXES = (4, 6, 6)

_HEADED: dict[str, Any] = {"num_attention_heads": _HEADS, "attention_head_dim": _HEAD_WIDTH}
_CHANNELED: dict[str, Any] = {"in_channels": _CHANNELS, "out_channels": _CHANNELS}


def _video(channels: int = _CHANNELS, frames: int = _FRAMES, *, side: int = _SIDE, seed: int = 0) -> Tensor:
    return noise(1, channels, frames, side, side, seed=seed)


def _text() -> Tensor:
    return noise(1, _TEXT_TOKENS, _TEXT_WIDTH, seed=1)


def _words() -> Tensor:
    """Which tokens of the text are no padding."""
    return (torch.arange(_TEXT_TOKENS) < _TEXT_TOKENS - 1).long()[None]


def _encoded_picture() -> Tensor:
    return noise(1, 3, _PICTURE_WIDTH, seed=2)


def _plain(time: float = 700.0, **more: Any) -> dict[str, Any]:
    return {
        "hidden_states": _video(),
        "encoder_hidden_states": _text(),
        "timestep": torch.tensor([time]),
        "return_dict": False,
        **more,
    }


_COGVIDEOX = {
    **_HEADED,
    **_CHANNELED,
    "num_layers": _LAYERS,
    "time_embed_dim": 16,
    "text_embed_dim": _TEXT_WIDTH,
    "sample_width": _SIDE,
    "sample_height": _SIDE,
    "sample_frames": 4 * (_FRAMES - 1) + 1,
    "max_text_seq_length": _TEXT_TOKENS,
}

_COGVIDEOX_15 = {
    **_COGVIDEOX,
    "in_channels": 2 * _CHANNELS,
    "patch_size_t": 2,
    "patch_bias": False,
    "ofs_embed_dim": 16,
    "use_rotary_positional_embeddings": True,
}


def _cogvideox(**more: Any) -> dict[str, Any]:
    return _plain(hidden_states=_video().transpose(1, 2), image_rotary_emb=None, **more)


def _cogvideox_15() -> dict[str, Any]:
    """The latents of a given picture beside those of the video; patches of two frames each."""
    return _plain(
        hidden_states=_video(2 * _CHANNELS, 4).transpose(1, 2),
        ofs=torch.tensor([2.0]),
        image_rotary_emb=get_3d_rotary_pos_embed(
            _HEAD_WIDTH, None, (_GRID, _GRID), 2, grid_type="slice", max_size=(_GRID, _GRID)
        ),
    )


# Two thirds of the width are a face's: it is 48.
_CONSIS_ID = {
    **_COGVIDEOX,
    "num_attention_heads": 3,
    "is_train_face": True,
    "cross_attn_interval": 2,
    "cross_attn_dim_head": 16,
    "cross_attn_num_heads": 2,
    "LFE_id_dim": 12,
    "LFE_vit_dim": 16,
    "LFE_depth": 2,
    "LFE_dim_head": 8,
    "LFE_num_heads": 2,
    "LFE_num_id_token": 2,
    "LFE_num_querie": 4,
    "LFE_output_dim": 32,
    "LFE_num_scale": 2,
}


def _consis_id() -> dict[str, Any]:
    return _cogvideox(id_cond=noise(1, 12, seed=3), id_vit_hidden=[noise(1, 5, 16, seed=4), noise(1, 5, 16, seed=5)])


_EASY_ANIMATE = {
    **_HEADED,
    **_CHANNELED,
    "num_layers": _LAYERS,
    "mmdit_layers": 4,
    "patch_size": 2,
    "time_embed_dim": 16,
    "text_embed_dim": _TEXT_WIDTH,
}


def _easy_animate(**more: Any) -> dict[str, Any]:
    return _plain(encoder_hidden_states_t5=None, **more)


def _easy_animate_inpainting() -> dict[str, Any]:
    return _easy_animate(inpaint_latents=_video(_CHANNELS + 1, seed=3))


_LATTE = {
    **_HEADED,
    **_CHANNELED,
    "num_layers": _LAYERS // 2,
    "attention_bias": True,
    "cross_attention_dim": _WIDTH,
    "sample_size": _SIDE,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "caption_channels": _TEXT_WIDTH,
    "video_length": _FRAMES,
}


def _latte() -> dict[str, Any]:
    return _plain(enable_temporal_attentions=True)


# The axes of its positions are a third of a head each.
_ALLEGRO_HEAD_WIDTH = 24

_ALLEGRO = {
    **_CHANNELED,
    "num_attention_heads": _HEADS,
    "attention_head_dim": _ALLEGRO_HEAD_WIDTH,
    "num_layers": _LAYERS,
    "cross_attention_dim": _HEADS * _ALLEGRO_HEAD_WIDTH,
    "sample_height": _SIDE,
    "sample_width": _SIDE,
    "sample_frames": _FRAMES,
    "caption_channels": _TEXT_WIDTH,
}


def _allegro() -> dict[str, Any]:
    *frequencies, time, height, width = get_3d_rotary_pos_embed_allegro(
        _ALLEGRO_HEAD_WIDTH, ((0, 0), (_GRID, _GRID)), (_GRID, _GRID), _FRAMES, (2.2, 2.0, 2.0)
    )
    positions = torch.cartesian_prod(time.long(), height.long(), width.long()).T.unsqueeze(1).contiguous()
    return _plain(
        encoder_attention_mask=_words(),
        attention_mask=torch.ones(1, _FRAMES, _SIDE, _SIDE),
        image_rotary_emb=(tuple(frequencies), tuple(positions)),
    )


_HUNYUAN = {
    **_HEADED,
    **_CHANNELED,
    "num_layers": 2,
    "num_single_layers": 4,
    "num_refiner_layers": 1,
    "text_embed_dim": _TEXT_WIDTH,
    "pooled_projection_dim": 8,
    "rope_axes_dim": _ROPE_AXES,
}


def _hunyuan(**more: Any) -> dict[str, Any]:
    return _plain(
        encoder_attention_mask=_words(),
        pooled_projections=noise(1, 8, seed=3),
        guidance=torch.tensor([6000.0]),
        **more,
    )


_FRAMEPACK = {**_HUNYUAN, "has_image_proj": True, "image_proj_dim": _PICTURE_WIDTH, "has_clean_x_embedder": True}


def _framepack() -> dict[str, Any]:
    """Before the frames come older ones: the older, the fewer tokens they have."""
    return _hunyuan(
        image_embeds=_encoded_picture(),
        indices_latents=torch.arange(8, 8 + _FRAMES),
        latents_clean=_video(frames=2, seed=4),
        indices_latents_clean=torch.tensor([0, 7]),
        latents_history_2x=_video(frames=2, seed=5),
        indices_latents_history_2x=torch.arange(5, 7),
        latents_history_4x=_video(frames=4, seed=6),
        indices_latents_history_4x=torch.arange(1, 5),
    )


# Wider, and of more tokens than the others: the projection of its second text is 2048 wide whatever the rest is.
_HUNYUAN_15_CHANNELS = 2 * _CHANNELS + 1

_HUNYUAN_15 = {
    "in_channels": _HUNYUAN_15_CHANNELS,
    "out_channels": _CHANNELS,
    "num_attention_heads": _HEADS,
    "attention_head_dim": 64,
    "num_layers": _LAYERS,
    "num_refiner_layers": 1,
    "text_embed_dim": _TEXT_WIDTH,
    "text_embed_2_dim": 12,
    "image_embed_dim": _PICTURE_WIDTH,
    "rope_axes_dim": (16, 24, 24),
}


def _hunyuan_15(**more: Any) -> dict[str, Any]:
    return _plain(
        hidden_states=_video(_HUNYUAN_15_CHANNELS, side=10),
        encoder_attention_mask=_words(),
        encoder_hidden_states_2=noise(1, 3, 12, seed=3),
        encoder_attention_mask_2=torch.tensor([[1, 1, 0]]),
        **{"image_embeds": torch.zeros(1, 3, _PICTURE_WIDTH), **more},
    )


def _hunyuan_15_of_a_picture() -> dict[str, Any]:
    return _hunyuan_15(image_embeds=_encoded_picture(), timestep_r=torch.tensor([600.0]))


_KANDINSKY_5 = {
    "in_visual_dim": _CHANNELS,
    "out_visual_dim": _CHANNELS,
    "in_text_dim": _TEXT_WIDTH,
    "in_text_dim2": 8,
    "time_dim": 16,
    "model_dim": _WIDTH,
    "ff_dim": 64,
    "num_text_blocks": 1,
    "num_visual_blocks": _LAYERS,
    "axes_dims": _ROPE_AXES,
    "visual_cond": True,
}


def _kandinsky_5() -> dict[str, Any]:
    """The latents of a given picture and a mask beside those of the video."""
    return {
        "hidden_states": _video(2 * _CHANNELS + 1).permute(0, 2, 3, 4, 1),
        "encoder_hidden_states": _text(),
        "pooled_projections": noise(1, 8, seed=3),
        "timestep": torch.tensor([700.0]),
        "visual_rope_pos": [torch.arange(_FRAMES), torch.arange(_GRID), torch.arange(_GRID)],
        "text_rope_pos": torch.arange(_TEXT_TOKENS),
        "scale_factor": (1.0, 2.0, 2.0),
        "sparse_params": None,
        "return_dict": True,
    }


_KANDINSKY_6_SR = {
    "in_visual_dim": _CHANNELS,
    "out_visual_dim": _CHANNELS,
    "time_dim": 16,
    "model_dim": _WIDTH,
    "ff_dim": 64,
    "num_visual_blocks": _LAYERS,
    "axes_dims": _ROPE_AXES,
    "nabla_window": (1, 1, 1),
}


def _kandinsky_6_sr() -> dict[str, Any]:
    """The latents of the small video and a mask beside those of the large one, every latent a token."""
    return {
        "hidden_states": _video(2 * _CHANNELS + 1, 2).permute(0, 2, 3, 4, 1),
        "timestep": torch.tensor([700.0]),
        "return_dict": False,
    }


_LTX = {
    **_HEADED,
    **_CHANNELED,
    "cross_attention_dim": _WIDTH,
    "num_layers": _LAYERS,
    "caption_channels": _TEXT_WIDTH,
}


def _ltx(**more: Any) -> dict[str, Any]:
    return _plain(
        hidden_states=noise(1, _TOKENS, _CHANNELS),
        encoder_attention_mask=_words(),
        num_frames=_FRAMES,
        height=_GRID,
        width=_GRID,
        rope_interpolation_scale=(8 / 25, 32, 32),
        **more,
    )


def _ltx_of_a_picture() -> dict[str, Any]:
    """Every token has a timestep of its own: the first frame is given."""
    return {**_ltx(), "timestep": torch.tensor([[0.0, 700.0, 700.0]]).repeat_interleave(_GRID**2, dim=1)}


_MOCHI = {
    **_HEADED,
    "in_channels": _CHANNELS,
    "num_layers": _LAYERS,
    "pooled_projection_dim": 16,
    "text_embed_dim": _TEXT_WIDTH,
    "time_embed_dim": 16,
    "max_sequence_length": _TEXT_TOKENS,
}


def _mochi() -> dict[str, Any]:
    return _plain(encoder_attention_mask=_words().bool())


_MOTIF_CHANNELS = 2 * _CHANNELS + 1

_MOTIF = {
    **_HEADED,
    "in_channels": _MOTIF_CHANNELS,
    "out_channels": _CHANNELS,
    "num_layers": 2,
    "num_single_layers": 4,
    "text_embed_dim": _TEXT_WIDTH,
    "rope_axes_dim": _ROPE_AXES,
}


def _motif(**more: Any) -> dict[str, Any]:
    return _plain(hidden_states=_video(_MOTIF_CHANNELS), encoder_attention_mask=_words(), **more)


def _motif_of_a_picture() -> dict[str, Any]:
    return _motif(image_embeds=_encoded_picture())


_SANA = {
    **_HEADED,
    **_CHANNELED,
    "num_layers": _LAYERS,
    "num_cross_attention_heads": _HEADS,
    "cross_attention_head_dim": _HEAD_WIDTH,
    "cross_attention_dim": _WIDTH,
    "caption_channels": _TEXT_WIDTH,
    "sample_size": _SIDE,
    "rope_max_seq_len": 32,
}


def _sana() -> dict[str, Any]:
    return _plain(encoder_attention_mask=_words())


# Every latent is a token; the fourth and the last of its blocks attend by softmax, the others by a recurrence.
_SANA_WORLD_SIDE = 4

_SANA_WORLD = {
    "in_channels": _CHANNELS,
    "num_layers": 8,
    "hidden_size": _WIDTH,
    "num_attention_heads": _HEADS,
    "linear_head_dim": _HEAD_WIDTH,
    "softmax_every_n": 4,
    "chunk_plucker_channels": 6,
    "chunk_plucker_post_attn_blocks": 8,
    "caption_channels": _TEXT_WIDTH,
    "image_size": 32,
}


def _sana_world() -> dict[str, Any]:
    """The camera moves along; the first frame is given."""
    poses = torch.eye(4).repeat(_FRAMES, 1, 1)
    poses[:, 0, 3] = torch.arange(_FRAMES) / 8
    lens = torch.tensor([4.0, 4.0, 2.0, 2.0]).repeat(_FRAMES, 1)
    return {
        "hidden_states": _video(side=_SANA_WORLD_SIDE),
        "timestep": torch.tensor([[[0.0, 700.0, 700.0]]]),
        "encoder_hidden_states": _text()[:, None],
        "mask": _words(),
        "data_info": {"img_hw": torch.tensor([[32.0, 32.0]])},
        "camera_conditions": torch.cat([poses.flatten(1), lens], dim=1)[None],
        "chunk_plucker": _video(6, side=_SANA_WORLD_SIDE, seed=3),
        "return_dict": False,
    }


# Without the mask of padded pixels, which torchvision would be needed for.
_COSMOS = {
    **_HEADED,
    **_CHANNELED,
    "num_layers": _LAYERS,
    "mlp_ratio": 2.0,
    "text_embed_dim": _TEXT_WIDTH,
    "adaln_lora_dim": 8,
    "max_size": (4, 8, 8),
    "rope_scale": (2.0, 1.0, 1.0),
    "concat_padding_mask": False,
    "extra_pos_embed_type": "learnable",
}

_COSMOS_25 = {
    **_COSMOS,
    "in_channels": _CHANNELS + 1,
    "extra_pos_embed_type": None,
    "use_crossattn_projection": True,
    "crossattn_proj_in_channels": 12,
    "encoder_hidden_states_channels": _TEXT_WIDTH,
    "controlnet_block_every_n": 2,
    "img_context_dim_in": _PICTURE_WIDTH,
    "img_context_num_tokens": 3,
    "img_context_dim_out": _WIDTH,
}


def _cosmos() -> dict[str, Any]:
    return _plain(0.7, fps=16)


def _cosmos_25() -> dict[str, Any]:
    """The first frame is given, every frame has a timestep of its own, and a ControlNet adds to every second block."""
    given = torch.zeros(1, 1, _FRAMES, _SIDE, _SIDE)
    given[:, :, 0] = 1.0
    return _plain(
        encoder_hidden_states=(noise(1, _TEXT_TOKENS, 12, seed=1), _encoded_picture()),
        timestep=torch.tensor([0.0, 0.7, 0.7]).view(1, 1, _FRAMES, 1, 1),
        block_controlnet_hidden_states=[noise(1, _TOKENS, _WIDTH, seed=10 + number) for number in range(3)],
        condition_mask=given,
        fps=16,
    )


_TEMPORAL = {
    **_HEADED,
    "in_channels": 8,
    "num_layers": _LAYERS,
    "norm_num_groups": 4,
}


def _temporal() -> dict[str, Any]:
    """A part of video UNets, which knows no timestep: the argument is not used. The frames lie in the batch."""
    return {
        "hidden_states": noise(_FRAMES, 8, _GRID, _GRID),
        "timestep": torch.tensor([700.0]),
        "num_frames": _FRAMES,
        "return_dict": False,
    }


SPECIMENS: tuple[Specimen, ...] = (
    Specimen("CogVideoXTransformer3DModel", _COGVIDEOX, _cogvideox),
    Specimen("CogVideoXTransformer3DModel", _COGVIDEOX_15, _cogvideox_15, variant="1.5, image to video"),
    Specimen("ConsisIDTransformer3DModel", _CONSIS_ID, _consis_id),
    Specimen("EasyAnimateTransformer3DModel", _EASY_ANIMATE, _easy_animate),
    Specimen(
        "EasyAnimateTransformer3DModel",
        {**_EASY_ANIMATE, "in_channels": 2 * _CHANNELS + 1, "add_norm_text_encoder": True, "after_norm": True},
        _easy_animate_inpainting,
        variant="inpainting",
    ),
    Specimen("LatteTransformer3DModel", _LATTE, _latte),
    Specimen("AllegroTransformer3DModel", _ALLEGRO, _allegro),
    Specimen("HunyuanVideoTransformer3DModel", _HUNYUAN, _hunyuan),
    Specimen(
        "HunyuanVideoTransformer3DModel",
        # The first frame is given: its tokens are modulated as such without noise.
        {**_HUNYUAN, "image_condition_type": "token_replace"},
        _hunyuan,
        variant="image to video",
    ),
    Specimen("HunyuanVideoFramepackTransformer3DModel", _FRAMEPACK, _framepack),
    Specimen("HunyuanVideo15Transformer3DModel", _HUNYUAN_15, _hunyuan_15),
    Specimen(
        "HunyuanVideo15Transformer3DModel",
        {**_HUNYUAN_15, "use_meanflow": True},
        _hunyuan_15_of_a_picture,
        variant="image to video, mean flow",
    ),
    Specimen("Kandinsky5Transformer3DModel", _KANDINSKY_5, _kandinsky_5),
    Specimen("Kandinsky6SRTransformer3DModel", _KANDINSKY_6_SR, _kandinsky_6_sr),
    Specimen("LTXVideoTransformer3DModel", _LTX, _ltx),
    Specimen("LTXVideoTransformer3DModel", _LTX, _ltx_of_a_picture, variant="a timestep for every token"),
    Specimen("MochiTransformer3DModel", _MOCHI, _mochi),
    Specimen("MotifVideoTransformer3DModel", _MOTIF, _motif),
    Specimen(
        "MotifVideoTransformer3DModel",
        {
            **_MOTIF,
            "num_decoder_layers": 2,
            "image_embed_dim": _PICTURE_WIDTH,
            "enable_text_cross_attention_dual": True,
            "enable_text_cross_attention_single": True,
        },
        _motif_of_a_picture,
        variant="image to video, decoder",
    ),
    Specimen("SanaVideoTransformer3DModel", _SANA, _sana),
    Specimen("SanaWMTransformer3DModel", _SANA_WORLD, _sana_world),
    Specimen("CosmosTransformer3DModel", _COSMOS, _cosmos),
    Specimen("CosmosTransformer3DModel", _COSMOS_25, _cosmos_25, variant="2.5, video to video, ControlNet"),
    Specimen("TransformerTemporalModel", _TEMPORAL, _temporal),
)
