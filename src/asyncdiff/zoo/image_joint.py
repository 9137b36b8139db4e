"""Image denoisers in which picture and text are joined in one attention."""

from typing import Any

import torch
from torch import Tensor

from asyncdiff.zoo.specimen import Specimen, noise

# Two heads of 16 channels everywhere; a picture of 8 by 8 latents, in patches of 2 by 2 where the denoiser makes them.
_HEADS, _HEAD_WIDTH, _WIDTH = 2, 16, 32
_ROPE_AXES = (4, 6, 6)
_PICTURE_TOKENS, _TEXT_TOKENS, _TEXT_WIDTH = 16, 6, 24
_PICTURE = (1, 4, 8, 8)
_WIDTHS = {
    "attention_head_dim": _HEAD_WIDTH,
    "num_attention_heads": _HEADS,
    "joint_attention_dim": _TEXT_WIDTH,
}


def _text(*, seed: int = 1) -> Tensor:
    return noise(1, _TEXT_TOKENS, _TEXT_WIDTH, seed=seed)


def _residuals(count: int, *, seed: int, tokens: int = _PICTURE_TOKENS, width: int = _WIDTH) -> list[Tensor]:
    """What a ControlNet adds after the blocks."""
    return [noise(1, tokens, width, seed=seed + number) for number in range(count)]


def _grid(axes: int, *, side: int = 4, plane: int = 0) -> Tensor:
    """Positions of the tokens of a square picture: row and column are axes 1 and 2."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    ids = torch.zeros(side * side, axes)
    ids[:, 0] = plane
    ids[:, 1] = rows.flatten()
    ids[:, 2] = columns.flatten()
    return ids


def _tokens(time: float, *, position_axes: int = 3, **more: Any) -> dict[str, Any]:
    """Arguments of a denoiser that takes a sequence of latents and a position for every token, as FLUX does."""
    return {
        "hidden_states": noise(1, _PICTURE_TOKENS, 8),
        "encoder_hidden_states": _text(),
        "timestep": torch.tensor([time]),
        "img_ids": _grid(position_axes),
        "txt_ids": torch.zeros(_TEXT_TOKENS, position_axes),
        "return_dict": False,
        **more,
    }


def _auraflow() -> dict[str, Any]:
    return {
        "hidden_states": noise(*_PICTURE),
        "encoder_hidden_states": _text(),
        "timestep": torch.tensor([0.7]),
        "return_dict": False,
    }


_BRIA = {
    "in_channels": 8,
    "num_layers": 3,
    "num_single_layers": 5,
    **_WIDTHS,
    "axes_dims_rope": list(_ROPE_AXES),
}


def _bria() -> dict[str, Any]:
    return _tokens(700.0)


def _bria_with_controlnet() -> dict[str, Any]:
    return _tokens(700.0, controlnet_block_samples=_residuals(3, seed=10))


def _bria_fibo() -> dict[str, Any]:
    layers = [noise(1, _TEXT_TOKENS, 12, seed=20 + number) for number in range(8)]
    return _tokens(700.0, text_encoder_layers=layers)


# Wider, and of a larger picture than the others: the embedding of the timestep is 1024 wide whatever the rest is.
_BRIA_FIBO_2 = {
    "in_channels": 4,
    "dim": 96,
    "n_layers": 6,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "cap_feat_dim": _TEXT_WIDTH,
    "injection_layer_ids": (1, 4),
    "perceiver_num_layers": 1,
    "min_num_gist_tokens": 2,
    "max_num_gist_tokens": 8,
    "gist_step": 2,
    "gist_min_text_len": 2,
    "gist_max_text_len": 8,
    "axes_dims": (16, 16, 16),
    "axes_lens": (16, 16, 16),
}


def _bria_fibo_2(**more: Any) -> dict[str, Any]:
    return {
        "hidden_states": noise(1, 4, 16, 16),
        "timestep": torch.tensor([0.7]),
        "encoder_hidden_states": noise(1, 3, _TEXT_TOKENS, _TEXT_WIDTH, seed=1),
        "encoder_attention_mask": None,
        "context_latents": None,
        "return_dict": False,
        **more,
    }


def _bria_fibo_2_edit() -> dict[str, Any]:
    return _bria_fibo_2(context_latents=[noise(*_PICTURE, seed=2)])


_CHROMA = {
    "in_channels": 8,
    "num_layers": 3,
    "num_single_layers": 5,
    **_WIDTHS,
    "axes_dims_rope": _ROPE_AXES,
    "approximator_num_channels": 8,
    "approximator_hidden_dim": 8,
    "approximator_layers": 1,
}


def _chroma(**more: Any) -> dict[str, Any]:
    mask = torch.ones(1, _TEXT_TOKENS + _PICTURE_TOKENS, dtype=torch.bool)
    return _tokens(0.7, attention_mask=mask, **more)


def _chroma_with_controlnet() -> dict[str, Any]:
    return _chroma(
        controlnet_block_samples=_residuals(3, seed=10), controlnet_single_block_samples=_residuals(5, seed=20)
    )


def _cogview(**more: Any) -> dict[str, Any]:
    return {
        "hidden_states": noise(*_PICTURE),
        "encoder_hidden_states": _text(),
        "timestep": torch.tensor([700.0]),
        "original_size": torch.tensor([[64.0, 64.0]]),
        "target_size": torch.tensor([[64.0, 64.0]]),
        "crop_coords": torch.tensor([[0.0, 0.0]]),
        "return_dict": False,
        **more,
    }


_FLUX = {
    "in_channels": 8,
    "num_layers": 3,
    "num_single_layers": 5,
    **_WIDTHS,
    "pooled_projection_dim": 8,
    "axes_dims_rope": _ROPE_AXES,
}


def _flux(**more: Any) -> dict[str, Any]:
    return _tokens(0.7, pooled_projections=noise(1, 8, seed=2), **more)


def _flux_guided() -> dict[str, Any]:
    return _flux(guidance=torch.tensor([3.5]))


def _flux_with_controlnet() -> dict[str, Any]:
    return _flux(
        controlnet_block_samples=_residuals(2, seed=10), controlnet_single_block_samples=_residuals(3, seed=20)
    )


_FLUX_2 = {
    "in_channels": 8,
    "num_layers": 2,
    "num_single_layers": 6,
    **_WIDTHS,
    "timestep_guidance_channels": 32,
    "axes_dims_rope": (4, 4, 4, 4),
}


def _flux_2() -> dict[str, Any]:
    return _tokens(0.7, position_axes=4, guidance=torch.tensor([3.5]))


_FLUX_3 = {
    "in_channels": 8,
    "cond_in_channels": 8,
    "num_layers": 2,
    "num_single_layers": 5,
    **_WIDTHS,
    "timestep_channels": 32,
    "axes_dims_rope": (4, 4, 4, 4),
}


def _flux_3() -> dict[str, Any]:
    return _tokens(0.7, position_axes=4)


def _flux_3_edit() -> dict[str, Any]:
    return _tokens(
        0.7,
        position_axes=4,
        image_cond_hidden_states=noise(1, 4, 8, seed=2),
        image_cond_ids=_grid(4, side=2, plane=1),
        target_timestep=torch.tensor([0.6]),
    )


_GLM = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 6,
    "attention_head_dim": _HEAD_WIDTH,
    "num_attention_heads": _HEADS,
    "text_embed_dim": _TEXT_WIDTH,
    "time_embed_dim": 16,
    "condition_dim": 8,
    "prior_vq_quantizer_codebook_size": 32,
}


def _glm(**more: Any) -> dict[str, Any]:
    return {
        "hidden_states": noise(*_PICTURE),
        "encoder_hidden_states": _text(),
        "prior_token_id": torch.arange(_PICTURE_TOKENS)[None],
        "prior_token_drop": torch.arange(_PICTURE_TOKENS)[None] < 3,
        "timestep": torch.tensor([700.0]),
        "target_size": torch.tensor([[64.0, 64.0]]),
        "crop_coords": torch.tensor([[0.0, 0.0]]),
        "return_dict": False,
        **more,
    }


def _glm_with_cache() -> dict[str, Any]:
    """Editing: the keys and values of the given picture were left by calls before the first step."""
    from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache

    caches = GlmImageKVCache(num_layers=6)
    for number, layer in enumerate(caches.caches):
        shape = (1, 4, _HEADS, _HEAD_WIDTH)
        layer.store(noise(*shape, seed=30 + number), noise(*shape, seed=40 + number))
    caches.set_mode("read")
    return _glm(kv_caches=caches)


_HUNYUAN = {
    "in_channels": 8,
    "out_channels": 8,
    "num_attention_heads": _HEADS,
    "attention_head_dim": _HEAD_WIDTH,
    "num_layers": 3,
    "num_single_layers": 4,
    "num_refiner_layers": 1,
    "text_embed_dim": _TEXT_WIDTH,
    "rope_axes_dim": (8, 8),
}


def _hunyuan(side: int = 4, **more: Any) -> dict[str, Any]:
    return {
        "hidden_states": noise(1, 8, side, side),
        "timestep": torch.tensor([700.0]),
        "encoder_hidden_states": _text(),
        "encoder_attention_mask": torch.arange(_TEXT_TOKENS)[None] < 5,
        "return_dict": False,
        **more,
    }


# Wider, and of a larger picture: the projection of the second text is 2048 wide whatever the rest is.
_HUNYUAN_REFINER = {
    **_HUNYUAN,
    "attention_head_dim": 64,
    "rope_axes_dim": (32, 32),
    "guidance_embeds": True,
    "use_meanflow": True,
    "text_embed_2_dim": 12,
}


def _hunyuan_refiner() -> dict[str, Any]:
    return _hunyuan(
        side=8,
        timestep_r=torch.tensor([600.0]),
        guidance=torch.tensor([3500.0]),
        encoder_hidden_states_2=noise(1, 2, 12, seed=2),
        encoder_attention_mask_2=torch.arange(2)[None] < 1,
    )


_JOY = {
    "in_channels": 4,
    "hidden_size": _WIDTH,
    "num_attention_heads": _HEADS,
    "text_dim": _TEXT_WIDTH,
    "num_layers": 6,
    "rope_dim_list": list(_ROPE_AXES),
}


def _joy_edit() -> dict[str, Any]:
    return {
        "hidden_states": noise(1, 2, 4, 1, 8, 8),
        "timestep": torch.tensor([700.0]),
        "encoder_hidden_states": _text(),
        "return_dict": False,
    }


def _joy_edit_plus() -> dict[str, Any]:
    """A picture and a smaller one that it is made from, padded to one length."""
    return {
        "hidden_states": noise(1, 22, 4, 1, 2, 2),
        "timestep": torch.tensor([700.0]),
        "encoder_hidden_states": _text(),
        "encoder_hidden_states_mask": torch.ones(1, _TEXT_TOKENS),
        "shape_list": [[(1, 4, 4), (1, 2, 2)]],
        "return_dict": False,
    }


_LONGCAT = {
    "in_channels": 8,
    "num_layers": 3,
    "num_single_layers": 5,
    **_WIDTHS,
    "pooled_projection_dim": 8,
    "axes_dims_rope": list(_ROPE_AXES),
}


def _longcat() -> dict[str, Any]:
    return _tokens(0.7, guidance=None)


_OVIS = {
    "in_channels": 8,
    "out_channels": 8,
    "num_layers": 3,
    "num_single_layers": 5,
    **_WIDTHS,
    "axes_dims_rope": _ROPE_AXES,
}


def _ovis() -> dict[str, Any]:
    return _tokens(0.7)


_QWEN = {
    "in_channels": 8,
    "out_channels": 2,
    "num_layers": 6,
    **_WIDTHS,
    "axes_dims_rope": _ROPE_AXES,
}


def _qwen(**more: Any) -> dict[str, Any]:
    return {
        "hidden_states": noise(1, _PICTURE_TOKENS, 8),
        "timestep": torch.tensor([0.7]),
        "guidance": None,
        "encoder_hidden_states": _text(),
        "encoder_hidden_states_mask": torch.arange(_TEXT_TOKENS)[None] < 5,
        "img_shapes": [[(1, 4, 4)]],
        "return_dict": False,
        **more,
    }


def _qwen_with_controlnet() -> dict[str, Any]:
    return _qwen(controlnet_block_samples=_residuals(3, seed=10))


def _qwen_edit() -> dict[str, Any]:
    return _qwen(hidden_states=noise(1, _PICTURE_TOKENS + 4, 8), img_shapes=[[(1, 4, 4), (1, 2, 2)]])


def _qwen_layered() -> dict[str, Any]:
    return _qwen(
        hidden_states=noise(1, 3 * 4, 8),
        img_shapes=[[(1, 2, 2), (1, 2, 2), (1, 2, 2)]],
        additional_t_cond=torch.tensor([0]),
    )


_QWEN_21 = {
    "in_channels": 8,
    "out_channels": 8,
    "num_layers": 6,
    "attention_head_dim": _HEAD_WIDTH,
    "num_attention_heads": _HEADS,
    "context_in_dim": _TEXT_WIDTH,
    "axes_dims_rope": _ROPE_AXES,
}


def _qwen_21(**more: Any) -> dict[str, Any]:
    return {
        "hidden_states": noise(1, _PICTURE_TOKENS, 8),
        "timestep": torch.tensor([0.7]),
        "encoder_hidden_states": _text(),
        "encoder_hidden_states_mask": torch.arange(_TEXT_TOKENS)[None] < 5,
        "img_shapes": [[(1, 4, 4)]],
        # Text, then one slot for every four tokens of the picture.
        "img_mask": torch.arange(_TEXT_TOKENS + _PICTURE_TOKENS // 4)[None] >= _TEXT_TOKENS,
        "return_dict": False,
        **more,
    }


def _qwen_21_edit() -> dict[str, Any]:
    """With a smaller picture that it is made from: one slot among the text."""
    slots = torch.arange(_TEXT_TOKENS + _PICTURE_TOKENS // 4)[None]
    return _qwen_21(
        hidden_states=noise(1, 4 + _PICTURE_TOKENS, 8),
        img_shapes=[[(1, 2, 2), (1, 4, 4)]],
        img_mask=(slots == 2) | (slots >= _TEXT_TOKENS),
    )


def _qwen_21_with_cache() -> dict[str, Any]:
    """Later steps: the first one has left the keys and values of the text."""
    from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache

    cache = QwenImage21KVCache(num_layers=6)
    for number, layer in enumerate(cache.layer_caches):
        shape = (1, _TEXT_TOKENS, _HEADS, _HEAD_WIDTH)
        layer.store(noise(*shape, seed=30 + number), noise(*shape, seed=40 + number))
    return _qwen_21(kv_cache=cache, kv_cache_mode="cached")


_SD_3 = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 6,
    **_WIDTHS,
    "caption_projection_dim": _WIDTH,
    "pooled_projection_dim": 8,
    "pos_embed_max_size": 8,
}


def _sd_3(**more: Any) -> dict[str, Any]:
    return {
        "hidden_states": noise(*_PICTURE),
        "timestep": torch.tensor([700.0]),
        "encoder_hidden_states": _text(),
        "pooled_projections": noise(1, 8, seed=2),
        "return_dict": False,
        **more,
    }


def _sd_3_with_controlnet() -> dict[str, Any]:
    return _sd_3(block_controlnet_hidden_states=_residuals(3, seed=10))


SPECIMENS: tuple[Specimen, ...] = (
    Specimen(
        "AuraFlowTransformer2DModel",
        {
            "sample_size": 8,
            "in_channels": 4,
            "num_mmdit_layers": 3,
            "num_single_dit_layers": 4,
            **_WIDTHS,
            "caption_projection_dim": _WIDTH,
            "pos_embed_max_size": 16,
        },
        _auraflow,
    ),
    Specimen("BriaTransformer2DModel", _BRIA, _bria),
    Specimen("BriaTransformer2DModel", _BRIA, _bria_with_controlnet, variant="ControlNet"),
    Specimen("BriaFiboTransformer2DModel", {**_BRIA, "text_encoder_dim": 12}, _bria_fibo),
    Specimen("BriaFibo2Transformer2DModel", _BRIA_FIBO_2, _bria_fibo_2),
    Specimen("BriaFibo2Transformer2DModel", _BRIA_FIBO_2, _bria_fibo_2_edit, variant="edit"),
    Specimen("ChromaTransformer2DModel", _CHROMA, _chroma),
    Specimen("ChromaTransformer2DModel", _CHROMA, _chroma_with_controlnet, variant="ControlNet"),
    Specimen(
        "CogView3PlusTransformer2DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 6,
            "attention_head_dim": _HEAD_WIDTH,
            "num_attention_heads": _HEADS,
            "text_embed_dim": _TEXT_WIDTH,
            "time_embed_dim": 16,
            "condition_dim": 8,
            "pos_embed_max_size": 8,
            "sample_size": 8,
        },
        _cogview,
    ),
    Specimen(
        "CogView4Transformer2DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 6,
            "attention_head_dim": _HEAD_WIDTH,
            "num_attention_heads": _HEADS,
            "text_embed_dim": _TEXT_WIDTH,
            "time_embed_dim": 16,
            "condition_dim": 8,
            "pos_embed_max_size": 8,
            "sample_size": 8,
            "rope_axes_dim": (16, 16),
        },
        _cogview,
    ),
    Specimen("FluxTransformer2DModel", _FLUX, _flux),
    Specimen("FluxTransformer2DModel", {**_FLUX, "guidance_embeds": True}, _flux_guided, variant="guidance embedded"),
    Specimen("FluxTransformer2DModel", _FLUX, _flux_with_controlnet, variant="ControlNet"),
    Specimen("Flux2Transformer2DModel", _FLUX_2, _flux_2),
    Specimen("Flux3Transformer2DModel", _FLUX_3, _flux_3),
    Specimen("Flux3Transformer2DModel", {**_FLUX_3, "flow_map": True}, _flux_3_edit, variant="edit, flow map"),
    Specimen("GlmImageTransformer2DModel", _GLM, _glm),
    Specimen("GlmImageTransformer2DModel", _GLM, _glm_with_cache, variant="edit"),
    Specimen("HunyuanImageTransformer2DModel", _HUNYUAN, _hunyuan),
    Specimen(
        "HunyuanImageTransformer2DModel",
        _HUNYUAN_REFINER,
        _hunyuan_refiner,
        variant="mean flow, two texts",
    ),
    Specimen("JoyImageEditTransformer3DModel", _JOY, _joy_edit),
    Specimen("JoyImageEditPlusTransformer3DModel", _JOY, _joy_edit_plus),
    Specimen("LongCatImageTransformer2DModel", _LONGCAT, _longcat),
    Specimen("OvisImageTransformer2DModel", _OVIS, _ovis),
    Specimen("QwenImageTransformer2DModel", _QWEN, _qwen),
    Specimen("QwenImageTransformer2DModel", _QWEN, _qwen_with_controlnet, variant="ControlNet"),
    Specimen("QwenImageTransformer2DModel", {**_QWEN, "zero_cond_t": True}, _qwen_edit, variant="edit"),
    Specimen(
        "QwenImageTransformer2DModel",
        {**_QWEN, "use_additional_t_cond": True, "use_layer3d_rope": True},
        _qwen_layered,
        variant="layered",
    ),
    Specimen("QwenImage21Transformer2DModel", _QWEN_21, _qwen_21),
    Specimen("QwenImage21Transformer2DModel", _QWEN_21, _qwen_21_edit, variant="edit"),
    Specimen("QwenImage21Transformer2DModel", _QWEN_21, _qwen_21_with_cache, variant="with cached keys"),
    Specimen("SD3Transformer2DModel", _SD_3, _sd_3),
    Specimen("SD3Transformer2DModel", _SD_3, _sd_3_with_controlnet, variant="ControlNet"),
    Specimen(
        "SD3Transformer2DModel",
        {**_SD_3, "dual_attention_layers": (0, 1, 2), "qk_norm": "rms_norm"},
        _sd_3,
        variant="dual attention",
    ),
)
