"""Image denoisers with one stream: text is read by cross attention, or is part of the one sequence."""

from typing import Any

import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed, get_2d_rotary_pos_embed_lumina
from torch import Tensor

from asyncdiff.zoo.specimen import Specimen, noise

# Two heads of 16 channels; a picture of 16 by 16 latents, in patches of 2 by 2. Smaller ones would be little beside the
# embedding of the timestep, which has the same width in many denoisers whatever the rest is.
_HEADS, _HEAD_WIDTH, _WIDTH = 2, 16, 32
_ROPE_AXES = (4, 6, 6)
_SIDE, _CHANNELS = 16, 4
_GRID = _SIDE // 2
_PICTURE_TOKENS, _TEXT_TOKENS, _TEXT_WIDTH = _GRID * _GRID, 6, 24
_PATCH_CHANNELS = 4 * _CHANNELS


def _picture(*, seed: int = 0) -> Tensor:
    return noise(1, _CHANNELS, _SIDE, _SIDE, seed=seed)


def _text(*, seed: int = 1) -> Tensor:
    return noise(1, _TEXT_TOKENS, _TEXT_WIDTH, seed=seed)


def _words(count: int = _TEXT_TOKENS - 1) -> Tensor:
    """A mask that leaves out the padding behind a prompt."""
    return torch.arange(_TEXT_TOKENS)[None] < count


def _residuals(count: int, *, seed: int = 10, tokens: int = _PICTURE_TOKENS) -> list[Tensor]:
    """What a ControlNet adds after the blocks."""
    return [noise(1, tokens, _WIDTH, seed=seed + number) for number in range(count)]


def _grid_positions() -> Tensor:
    """Positions of the picture's tokens: plane, row and column."""
    rows, columns = torch.meshgrid(torch.arange(_GRID), torch.arange(_GRID), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3)


_DIT = {
    "num_attention_heads": _HEADS,
    "attention_head_dim": _HEAD_WIDTH,
    "in_channels": _CHANNELS,
    "out_channels": 2 * _CHANNELS,
    "num_layers": 8,
    "sample_size": _SIDE,
    "num_embeds_ada_norm": 10,
}


def _dit() -> dict[str, Any]:
    return {
        "hidden_states": _picture(),
        "timestep": torch.tensor([700]),
        "class_labels": torch.tensor([3]),
        "return_dict": False,
    }


_HUNYUAN = {
    "num_attention_heads": _HEADS,
    "attention_head_dim": _HEAD_WIDTH,
    "in_channels": _CHANNELS,
    "patch_size": 2,
    "sample_size": _SIDE,
    "hidden_size": _WIDTH,
    "num_layers": 8,
    "cross_attention_dim": _TEXT_WIDTH,
    "cross_attention_dim_t5": 16,
    "pooled_projection_dim": 8,
    "text_len": _TEXT_TOKENS,
    "text_len_t5": 8,
    "use_style_cond_and_image_meta_size": False,
}


def _hunyuan(**more: Any) -> dict[str, Any]:
    return {
        "hidden_states": _picture(),
        "timestep": torch.tensor([700.0]),
        "encoder_hidden_states": _text(),
        "text_embedding_mask": _words().long(),
        "encoder_hidden_states_t5": noise(1, 8, 16, seed=2),
        "text_embedding_mask_t5": (torch.arange(8)[None] < 6).long(),
        "image_rotary_emb": get_2d_rotary_pos_embed(_HEAD_WIDTH, ((0, 0), (_GRID, _GRID)), (_GRID, _GRID)),
        "return_dict": False,
        **more,
    }


def _hunyuan_with_size_and_style() -> dict[str, Any]:
    return _hunyuan(
        image_meta_size=torch.tensor([[128.0, 128.0, 128.0, 128.0, 0.0, 0.0]]), style=torch.zeros(1, dtype=torch.long)
    )


def _hunyuan_with_controlnet() -> dict[str, Any]:
    return _hunyuan(controlnet_block_samples=_residuals(3))


_LUMINA_NEXT = {
    "sample_size": _SIDE,
    "in_channels": _CHANNELS,
    "hidden_size": _WIDTH,
    "num_layers": 8,
    "num_attention_heads": _HEADS,
    "num_kv_heads": 1,
    "multiple_of": 16,
    "cross_attention_dim": _TEXT_WIDTH,
}


def _lumina_next() -> dict[str, Any]:
    return {
        "hidden_states": _picture(),
        "timestep": torch.tensor([0.3]),
        "encoder_hidden_states": _text(),
        "encoder_mask": _words(),
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(_HEAD_WIDTH, _GRID, _GRID),
        "cross_attention_kwargs": {"base_sequence_length": 36},
        "return_dict": False,
    }


# A third of the width each for the resolution's two sides and for the aspect ratio.
_PIXART = {
    "num_attention_heads": _HEADS,
    "attention_head_dim": 24,
    "in_channels": _CHANNELS,
    "out_channels": 2 * _CHANNELS,
    "num_layers": 8,
    "cross_attention_dim": 48,
    "sample_size": _SIDE,
    "caption_channels": _TEXT_WIDTH,
}


def _pixart(**more: Any) -> dict[str, Any]:
    return {
        "hidden_states": _picture(),
        "encoder_hidden_states": _text(),
        "encoder_attention_mask": _words().long(),
        "timestep": torch.tensor([700]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "return_dict": False,
        **more,
    }


def _pixart_alpha() -> dict[str, Any]:
    size = {"resolution": torch.tensor([[128.0, 128.0]]), "aspect_ratio": torch.tensor([[1.0]])}
    return _pixart(added_cond_kwargs=size)


_PRIOR = {
    "num_attention_heads": _HEADS,
    "attention_head_dim": _HEAD_WIDTH,
    "num_layers": 8,
    "embedding_dim": _TEXT_WIDTH,
    "num_embeddings": _TEXT_TOKENS,
}


def _prior() -> dict[str, Any]:
    return {
        "hidden_states": noise(1, _TEXT_WIDTH),
        "timestep": torch.tensor(700),
        "proj_embedding": noise(1, _TEXT_WIDTH, seed=1),
        "encoder_hidden_states": _text(seed=2),
        "attention_mask": _words(),
    }


_PRIOR_OF_SHAPES = {
    **_PRIOR,
    "num_embeddings": 16,
    "additional_embeddings": 0,
    "time_embed_act_fn": "gelu",
    "norm_in_type": "layer",
    "embedding_proj_norm_type": "layer",
    "encoder_hid_proj_type": None,
    "added_emb_type": None,
    "time_embed_dim": 4 * _WIDTH,
    "embedding_proj_dim": 12,
    "clip_embed_dim": 2 * _TEXT_WIDTH,
}


def _prior_of_shapes() -> dict[str, Any]:
    """The parameters of a shape, a sequence, and nothing but one picture to go by."""
    return {
        "hidden_states": noise(1, 16, _TEXT_WIDTH),
        "timestep": torch.tensor(700),
        "proj_embedding": noise(1, 12, seed=1),
    }


_SANA = {
    "in_channels": _CHANNELS,
    "out_channels": _CHANNELS,
    "num_attention_heads": _HEADS,
    "attention_head_dim": _HEAD_WIDTH,
    "num_layers": 8,
    "num_cross_attention_heads": _HEADS,
    "cross_attention_head_dim": _HEAD_WIDTH,
    "cross_attention_dim": _WIDTH,
    "caption_channels": _TEXT_WIDTH,
    "sample_size": _GRID,
}


def _sana(**more: Any) -> dict[str, Any]:
    return {
        "hidden_states": noise(1, _CHANNELS, _GRID, _GRID),
        "encoder_hidden_states": _text(),
        "encoder_attention_mask": _words().long(),
        "timestep": torch.tensor([700.0]),
        "return_dict": False,
        **more,
    }


def _sana_with_controlnet() -> dict[str, Any]:
    return _sana(controlnet_block_samples=tuple(_residuals(3)))


_SANA_SPRINT = {**_SANA, "guidance_embeds": True, "qk_norm": "rms_norm_across_heads"}


def _sana_sprint() -> dict[str, Any]:
    return _sana(timestep=torch.tensor([0.7]), guidance=torch.tensor([0.45]))


_TRANSFORMER_2D = {
    "num_attention_heads": _HEADS,
    "attention_head_dim": _HEAD_WIDTH,
    "in_channels": _WIDTH,
    "num_layers": 8,
    "norm_num_groups": 8,
    "cross_attention_dim": _TEXT_WIDTH,
    "num_embeds_ada_norm": 100,
    "norm_type": "ada_norm",
}


def _transformer_2d(**more: Any) -> dict[str, Any]:
    return {
        "hidden_states": noise(1, _WIDTH, _GRID, _GRID),
        "encoder_hidden_states": _text(),
        "timestep": torch.tensor(70),
        "encoder_attention_mask": _words().long(),
        "return_dict": False,
        **more,
    }


_CODES = 20
_TRANSFORMER_2D_OF_CODES = {
    **_TRANSFORMER_2D,
    "in_channels": None,
    "sample_size": _GRID,
    "num_vector_embeds": _CODES,
    "activation_fn": "geglu-approximate",
}


def _transformer_2d_of_codes() -> dict[str, Any]:
    return _transformer_2d(hidden_states=torch.arange(_PICTURE_TOKENS)[None] % _CODES)


_TRANSFORMER_2D_OF_PATCHES = {
    **_TRANSFORMER_2D,
    "in_channels": _CHANNELS,
    "sample_size": _SIDE,
    "patch_size": 2,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "cross_attention_dim": _WIDTH,
    "caption_channels": _TEXT_WIDTH,
    "num_embeds_ada_norm": None,
}


def _transformer_2d_of_patches() -> dict[str, Any]:
    size = {"resolution": None, "aspect_ratio": None}
    return _transformer_2d(hidden_states=_picture(), timestep=torch.tensor([70]), added_cond_kwargs=size)


_DREAM_LITE = {
    **_TRANSFORMER_2D,
    "use_linear_projection": True,
    "qk_norm": "rms_norm",
    "ff_mult": 3,
}
_DREAM_LITE_WITHOUT_SELF_ATTENTION = {**_DREAM_LITE, "use_self_attention": False, "use_linear_projection": False}


_OMNIGEN = {
    "in_channels": _CHANNELS,
    "hidden_size": _WIDTH,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": 1,
    "intermediate_size": 4 * _WIDTH,
    "num_layers": 8,
    "pad_token_id": 0,
    "vocab_size": 40,
    "rope_scaling": {"short_factor": [1.0] * (_HEAD_WIDTH // 2), "long_factor": [2.0] * (_HEAD_WIDTH // 2)},
    "pos_embed_max_size": _GRID,
    "time_step_dim": 32,
}


def _omnigen(words: int = _TEXT_TOKENS, **more: Any) -> dict[str, Any]:
    length = words + 1 + _PICTURE_TOKENS
    sees = torch.ones(length, length).tril()
    sees[words + 1 :] = 1  # all of the picture sees all of itself
    return {
        "hidden_states": _picture(),
        "timestep": torch.tensor([0.7]),
        "input_ids": torch.arange(1, 1 + words)[None] % 40,
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": sees[None],
        "position_ids": torch.arange(length)[None],
        "return_dict": False,
        **more,
    }


def _omnigen_edit() -> dict[str, Any]:
    """A smaller picture stands among the words."""
    return _omnigen(words=20, input_img_latents=[noise(1, _CHANNELS, 8, 8, seed=2)], input_image_sizes={0: [[2, 18]]})


_PRX = {
    "in_channels": _CHANNELS,
    "context_in_dim": _TEXT_WIDTH,
    "hidden_size": _WIDTH,
    "num_heads": _HEADS,
    "depth": 8,
    "axes_dim": [8, 8],
}
_PRX_OF_PIXELS = {**_PRX, "patch_size": 4, "bottleneck_size": 8, "resolution_embeds": True}


def _prx() -> dict[str, Any]:
    return {
        "hidden_states": _picture(),
        "timestep": torch.tensor([0.7]),
        "encoder_hidden_states": _text(),
        "attention_mask": _words(),
        "return_dict": False,
    }


_LUMINA_2 = {
    "sample_size": _SIDE,
    "in_channels": _CHANNELS,
    "hidden_size": _WIDTH,
    "num_layers": 7,
    "num_refiner_layers": 1,
    "num_attention_heads": _HEADS,
    "num_kv_heads": 1,
    "multiple_of": 16,
    "axes_dim_rope": _ROPE_AXES,
    "axes_lens": (16, 16, 16),
    "cap_feat_dim": _TEXT_WIDTH,
}


def _lumina_2() -> dict[str, Any]:
    return {
        "hidden_states": _picture(),
        "timestep": torch.tensor([0.3]),
        "encoder_hidden_states": _text(),
        "encoder_attention_mask": _words(_TEXT_TOKENS),
        "return_dict": False,
    }


def _lumina_2_of_two_lengths() -> dict[str, Any]:
    """Two prompts, one longer than the other: only then the joint attention has a mask."""
    return {
        "hidden_states": noise(2, _CHANNELS, _SIDE, _SIDE),
        "timestep": torch.tensor([0.3, 0.3]),
        "encoder_hidden_states": noise(2, _TEXT_TOKENS, _TEXT_WIDTH, seed=1),
        "encoder_attention_mask": torch.cat([_words(_TEXT_TOKENS), _words(4)]),
        "return_dict": False,
    }


_Z_IMAGE = {
    "in_channels": _CHANNELS,
    "dim": _WIDTH,
    "n_layers": 7,
    "n_refiner_layers": 1,
    "n_heads": _HEADS,
    "n_kv_heads": _HEADS,
    "cap_feat_dim": _TEXT_WIDTH,
    "axes_dims": list(_ROPE_AXES),
    "axes_lens": [64, 16, 16],
}
_Z_IMAGE_MULTIPLE = 32  # of which every part of the sequence has its length


def _z_image(**more: Any) -> dict[str, Any]:
    """Lists of pictures with a frame axis, and of prompts."""
    return {
        "x": [noise(_CHANNELS, 1, _SIDE, _SIDE)],
        "t": torch.tensor([0.3]),
        "cap_feats": [noise(_TEXT_TOKENS, _TEXT_WIDTH, seed=1)],
        "return_dict": False,
        **more,
    }


def _z_image_with_controlnet() -> dict[str, Any]:
    residuals = _residuals(2, tokens=_PICTURE_TOKENS + _Z_IMAGE_MULTIPLE)
    return _z_image(controlnet_block_samples=dict(zip((0, 3), residuals, strict=True)))


_Z_IMAGE_OMNI = {**_Z_IMAGE, "siglip_feat_dim": 12}


def _z_image_omni() -> dict[str, Any]:
    """A picture to go by, clean, with its features, and the one that is made, noisy."""
    return _z_image(
        x=[[noise(_CHANNELS, 1, 8, 8, seed=2), noise(_CHANNELS, 1, _SIDE, _SIDE)]],
        cap_feats=[[noise(3, _TEXT_WIDTH, seed=1), noise(_TEXT_TOKENS, _TEXT_WIDTH, seed=3)]],
        siglip_feats=[[noise(2, 2, 12, seed=4), None]],
        image_noise_mask=[[0, 1]],
    )


# The dense feed-forward has a multiple of 128 channels.
_NUCLEUS = {
    "in_channels": _PATCH_CHANNELS,
    "out_channels": _CHANNELS,
    "num_layers": 8,
    "attention_head_dim": _HEAD_WIDTH,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": 1,
    "joint_attention_dim": _TEXT_WIDTH,
    "axes_dims_rope": _ROPE_AXES,
    "mlp_ratio": 6.0,
    "num_experts": 4,
    "moe_intermediate_dim": 32,
    "capacity_factors": 2.0,
}


def _nucleus() -> dict[str, Any]:
    return {
        "hidden_states": noise(1, _PICTURE_TOKENS, _PATCH_CHANNELS),
        "img_shapes": [(1, _GRID, _GRID)],
        "encoder_hidden_states": _text(),
        "encoder_hidden_states_mask": _words(),
        "timestep": torch.tensor([0.7]),
        "return_dict": False,
    }


_HIDREAM = {
    "patch_size": 2,
    "in_channels": _CHANNELS,
    "out_channels": _CHANNELS,
    "num_layers": 3,
    "num_single_layers": 5,
    "attention_head_dim": _HEAD_WIDTH,
    "num_attention_heads": _HEADS,
    "caption_channels": [_TEXT_WIDTH, 12],
    "text_emb_dim": 8,
    "axes_dims_rope": _ROPE_AXES,
    "max_resolution": (_SIDE, _SIDE),
    "llama_layers": [0, 1, 2, 3, 3, 3, 3, 3],
}


def _hidream(**more: Any) -> dict[str, Any]:
    return {
        "hidden_states": _picture(),
        "timesteps": torch.tensor([700.0]),
        "encoder_hidden_states_t5": _text(),
        "encoder_hidden_states_llama3": noise(4, 1, 4, 12, seed=2),
        "pooled_embeds": noise(1, 8, seed=3),
        "return_dict": False,
        **more,
    }


def _hidream_oblong() -> dict[str, Any]:
    """Padded to as many tokens as the largest square has, with a mask."""
    return _hidream(hidden_states=noise(1, _CHANNELS, 12, _SIDE))


_KREA_2 = {
    "in_channels": _PATCH_CHANNELS,
    "num_layers": 8,
    "attention_head_dim": _HEAD_WIDTH,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": 1,
    "intermediate_size": 4 * _WIDTH,
    "timestep_embed_dim": 32,
    "text_hidden_dim": _TEXT_WIDTH,
    "num_text_layers": 3,
    "text_num_attention_heads": 2,
    "text_num_key_value_heads": 2,
    "text_intermediate_size": 2 * _TEXT_WIDTH,
    "num_layerwise_text_blocks": 1,
    "num_refiner_text_blocks": 1,
    "axes_dims_rope": _ROPE_AXES,
}


def _krea_2(**more: Any) -> dict[str, Any]:
    return {
        "hidden_states": noise(1, _PICTURE_TOKENS, _PATCH_CHANNELS),
        "encoder_hidden_states": noise(1, _TEXT_TOKENS, 3, _TEXT_WIDTH, seed=1),
        "timestep": torch.tensor([0.7]),
        "position_ids": torch.cat([torch.zeros(_TEXT_TOKENS, 3, dtype=torch.long), _grid_positions()]),
        "return_dict": False,
        **more,
    }


def _krea_2_padded() -> dict[str, Any]:
    return _krea_2(encoder_attention_mask=_words())


_ERNIE = {
    "hidden_size": _WIDTH,
    "num_attention_heads": _HEADS,
    "num_layers": 8,
    "ffn_hidden_size": 3 * _WIDTH,
    "in_channels": _PATCH_CHANNELS,
    "out_channels": _PATCH_CHANNELS,
    "text_in_dim": _TEXT_WIDTH,
    "rope_axes_dim": _ROPE_AXES,
}


def _ernie() -> dict[str, Any]:
    return {
        "hidden_states": noise(1, _PATCH_CHANNELS, _GRID, _GRID),
        "timestep": torch.tensor([700.0]),
        "text_bth": _text(),
        "text_lens": torch.tensor([_TEXT_TOKENS - 1]),
        "return_dict": False,
    }


_IDEOGRAM_4 = {
    "in_channels": _PATCH_CHANNELS,
    "num_layers": 8,
    "attention_head_dim": _HEAD_WIDTH,
    "num_attention_heads": _HEADS,
    "intermediate_size": 3 * _WIDTH,
    "adaln_dim": 16,
    "llm_features_dim": _TEXT_WIDTH,
    "mrope_section": (4, 2, 2),
}


def _ideogram_4() -> dict[str, Any]:
    """Text and picture are one packed sequence; what one of them has not is masked in the other's places."""
    from diffusers.models.transformers.transformer_ideogram4 import LLM_TOKEN_INDICATOR, OUTPUT_IMAGE_INDICATOR

    length = _TEXT_TOKENS + _PICTURE_TOKENS
    words = torch.arange(_TEXT_TOKENS)[:, None].expand(-1, 3)
    roles = [LLM_TOKEN_INDICATOR] * _TEXT_TOKENS + [OUTPUT_IMAGE_INDICATOR] * _PICTURE_TOKENS
    return {
        "hidden_states": noise(1, length, _PATCH_CHANNELS),
        "timestep": torch.tensor([0.3]),
        "encoder_hidden_states": noise(1, length, _TEXT_WIDTH, seed=1),
        "position_ids": torch.cat([words, _grid_positions()])[None],
        "segment_ids": torch.ones(1, length, dtype=torch.long),
        "indicator": torch.tensor([roles]),
        "return_dict": False,
    }


SPECIMENS: tuple[Specimen, ...] = (
    Specimen("DiTTransformer2DModel", _DIT, _dit),
    Specimen("HunyuanDiT2DModel", _HUNYUAN, _hunyuan),
    Specimen(
        "HunyuanDiT2DModel",
        {**_HUNYUAN, "use_style_cond_and_image_meta_size": True},
        _hunyuan_with_size_and_style,
        variant="size and style",
    ),
    Specimen("HunyuanDiT2DModel", _HUNYUAN, _hunyuan_with_controlnet, variant="ControlNet"),
    Specimen("LuminaNextDiT2DModel", _LUMINA_NEXT, _lumina_next),
    Specimen("PixArtTransformer2DModel", _PIXART, _pixart),
    Specimen(
        "PixArtTransformer2DModel",
        {**_PIXART, "use_additional_conditions": True},
        _pixart_alpha,
        variant="resolution and aspect ratio",
    ),
    Specimen("PriorTransformer", _PRIOR, _prior),
    Specimen("PriorTransformer", _PRIOR_OF_SHAPES, _prior_of_shapes, variant="shapes"),
    Specimen("SanaTransformer2DModel", _SANA, _sana),
    Specimen("SanaTransformer2DModel", _SANA, _sana_with_controlnet, variant="ControlNet"),
    Specimen("SanaTransformer2DModel", _SANA_SPRINT, _sana_sprint, variant="guidance embedded"),
    Specimen("Transformer2DModel", _TRANSFORMER_2D, _transformer_2d),
    Specimen("Transformer2DModel", _TRANSFORMER_2D_OF_CODES, _transformer_2d_of_codes, variant="codes"),
    Specimen("Transformer2DModel", _TRANSFORMER_2D_OF_PATCHES, _transformer_2d_of_patches, variant="patches"),
    Specimen("DreamLiteTransformer2DModel", _DREAM_LITE, _transformer_2d),
    Specimen(
        "DreamLiteTransformer2DModel",
        _DREAM_LITE_WITHOUT_SELF_ATTENTION,
        _transformer_2d,
        variant="without self-attention",
    ),
    Specimen("OmniGenTransformer2DModel", _OMNIGEN, _omnigen),
    Specimen("OmniGenTransformer2DModel", _OMNIGEN, _omnigen_edit, variant="edit"),
    Specimen("PRXTransformer2DModel", _PRX, _prx),
    Specimen("PRXTransformer2DModel", _PRX_OF_PIXELS, _prx, variant="pixels"),
    Specimen("Lumina2Transformer2DModel", _LUMINA_2, _lumina_2),
    Specimen("Lumina2Transformer2DModel", _LUMINA_2, _lumina_2_of_two_lengths, variant="two lengths"),
    Specimen("ZImageTransformer2DModel", _Z_IMAGE, _z_image, time="t"),
    Specimen("ZImageTransformer2DModel", _Z_IMAGE, _z_image_with_controlnet, variant="ControlNet", time="t"),
    Specimen("ZImageTransformer2DModel", _Z_IMAGE_OMNI, _z_image_omni, variant="omni", time="t"),
    Specimen("NucleusMoEImageTransformer2DModel", _NUCLEUS, _nucleus),
    Specimen("NucleusMoEImageTransformer2DModel", {**_NUCLEUS, "use_grouped_mm": True}, _nucleus, variant="grouped"),
    Specimen("HiDreamImageTransformer2DModel", _HIDREAM, _hidream, time="timesteps"),
    Specimen("HiDreamImageTransformer2DModel", _HIDREAM, _hidream_oblong, variant="oblong", time="timesteps"),
    Specimen("Krea2Transformer2DModel", _KREA_2, _krea_2),
    Specimen("Krea2Transformer2DModel", _KREA_2, _krea_2_padded, variant="padded"),
    Specimen("ErnieImageTransformer2DModel", _ERNIE, _ernie),
    Specimen("Ideogram4Transformer2DModel", _IDEOGRAM_4, _ideogram_4),
)
