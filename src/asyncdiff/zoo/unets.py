"""UNets: of sound, of pictures, of video."""

from typing import Any

import torch
from torch import Tensor

from asyncdiff.zoo.specimen import Specimen, noise

# Two levels of 16 and 32 channels on a picture of 8 by 8 latents, two heads, where the class lets one choose.
_LEVELS = (16, 32)
_GROUPS, _HEADS = 4, 2
_SIDE, _FRAMES = 8, 2
_TEXT_TOKENS, _TEXT_WIDTH = 5, 12

_PICTURE = (1, 4, _SIDE, _SIDE)
_VIDEO = (1, 4, _FRAMES, _SIDE, _SIDE)
_TIME = 700

_CONDITIONED = {
    "sample_size": _SIDE,
    "block_out_channels": _LEVELS,
    "norm_num_groups": _GROUPS,
    "cross_attention_dim": _TEXT_WIDTH,
}


def _text(*, tokens: int = _TEXT_TOKENS, width: int = _TEXT_WIDTH, seed: int = 1) -> Tensor:
    return noise(1, tokens, width, seed=seed)


def _with_text(*shape: int, **more: Any) -> dict[str, Any]:
    return {
        "sample": noise(*(shape or _PICTURE)),
        "timestep": torch.tensor(_TIME),
        "encoder_hidden_states": _text(),
        "return_dict": False,
        **more,
    }


def _pixels(**more: Any) -> dict[str, Any]:
    return {"sample": noise(1, 3, 16, 16), "timestep": torch.tensor(_TIME), "return_dict": False, **more}


def _sound() -> dict[str, Any]:
    return {"sample": noise(1, 2, 64), "timestep": torch.tensor([_TIME]), "return_dict": False}


def _trajectory() -> dict[str, Any]:
    return {"sample": noise(1, 4, 16), "timestep": torch.tensor([_TIME]), "return_dict": False}


def _of_a_class() -> dict[str, Any]:
    return _pixels(class_labels=torch.tensor([3]))


def _as_record() -> dict[str, Any]:
    return {**_pixels(), "return_dict": True}


_SD = {
    **_CONDITIONED,
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": _HEADS,
}

_SDXL = {
    **_SD,
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + 8,
}


def _text_and_size(**more: Any) -> dict[str, Any]:
    """What SDXL is told beside the text."""
    return _with_text(
        added_cond_kwargs={"text_embeds": noise(1, 8, seed=2), "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])},
        **more,
    )


def _down_residuals() -> tuple[Tensor, ...]:
    """What a ControlNet adds to the skips of two levels of one layer."""
    shapes = [(16, 8), (16, 8), (16, 4), (32, 4)]
    return tuple(noise(1, width, side, side, seed=10 + place) for place, (width, side) in enumerate(shapes))


def _controlled() -> dict[str, Any]:
    return _with_text(
        down_block_additional_residuals=_down_residuals(),
        mid_block_additional_residual=noise(1, 32, 4, 4, seed=20),
    )


def _with_adapter() -> dict[str, Any]:
    """What a T2I-Adapter adds to each level."""
    residuals = [noise(1, 16, 8, 8, seed=30), noise(1, 32, 4, 4, seed=31)]
    return _with_text(down_intrablock_additional_residuals=residuals)


def _with_adapter_and_control() -> dict[str, Any]:
    return {**_controlled(), **_with_adapter()}


def _upscaling() -> dict[str, Any]:
    return _with_text(1, 7, _SIDE, _SIDE, class_labels=torch.tensor([20]))


def _with_picture() -> dict[str, Any]:
    """A picture's embedding that becomes tokens beside the text."""
    return _with_text(
        encoder_hidden_states=_text(width=10),
        added_cond_kwargs={"image_embeds": noise(1, _TEXT_WIDTH, seed=2)},
    )


_VIDEO_3D = {
    **_CONDITIONED,
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "attention_head_dim": 8,
}


def _video() -> dict[str, Any]:
    return _with_text(*_VIDEO)


def _i2vgen() -> dict[str, Any]:
    return _with_text(
        *_VIDEO,
        fps=torch.tensor([16]),
        image_latents=noise(*_VIDEO, seed=2),
        image_embeddings=noise(1, _TEXT_WIDTH, seed=3),
    )


_MOTION = {
    **_CONDITIONED,
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
    "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
    "num_attention_heads": _HEADS,
    "motion_num_attention_heads": _HEADS,
    "motion_max_seq_length": 4,
}


def _motion() -> dict[str, Any]:
    return _with_text(*_VIDEO, encoder_hidden_states=noise(_FRAMES, _TEXT_TOKENS, _TEXT_WIDTH, seed=1))


def _motion_controlled() -> dict[str, Any]:
    """With SparseCtrl: residuals of every frame."""
    residuals = tuple(torch.cat([residual] * _FRAMES) for residual in _down_residuals())
    return {
        **_motion(),
        "down_block_additional_residuals": residuals,
        "mid_block_additional_residual": noise(_FRAMES, 32, 4, 4, seed=20),
    }


def _spatio_temporal() -> dict[str, Any]:
    return {
        "sample": noise(1, _FRAMES, 8, _SIDE, _SIDE),
        "timestep": torch.tensor(1.3),
        "encoder_hidden_states": noise(1, 1, _TEXT_WIDTH, seed=1),
        "added_time_ids": torch.tensor([[6.0, 127.0, 0.02]]),
        "return_dict": False,
    }


def _kandinsky_3() -> dict[str, Any]:
    return {
        "sample": noise(1, 4, 16, 16),
        "timestep": torch.tensor(_TIME),
        "encoder_hidden_states": _text(),
        "encoder_attention_mask": (torch.arange(_TEXT_TOKENS)[None] < 4).float(),
        "return_dict": False,
    }


_CASCADE = {
    "in_channels": 4,
    "out_channels": 4,
    "conditioning_dim": 16,
    "block_out_channels": _LEVELS,
    "num_attention_heads": (_HEADS, _HEADS),
    "down_num_layers_per_block": (1, 2),
    "up_num_layers_per_block": (2, 1),
    "clip_text_in_channels": _TEXT_WIDTH,
    "clip_text_pooled_in_channels": 8,
    "clip_image_in_channels": 6,
    "clip_seq": 2,
}


def _cascade_prior() -> dict[str, Any]:
    return {
        "sample": noise(*_PICTURE),
        "timestep_ratio": torch.tensor([0.7]),
        "clip_text_pooled": noise(1, 1, 8, seed=1),
        "clip_text": _text(seed=2),
        "clip_img": noise(1, 1, 6, seed=3),
        "return_dict": False,
    }


def _cascade_decoder() -> dict[str, Any]:
    return {
        "sample": noise(1, 4, 16, 16),
        "timestep_ratio": torch.tensor([0.7]),
        "clip_text_pooled": noise(1, 1, 8, seed=1),
        "effnet": noise(1, 6, 3, 3, seed=2),
        "return_dict": False,
    }


_CONTROL_XS = {
    **_CONDITIONED,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "num_attention_heads": _HEADS,
    "ctrl_conditioning_embedding_out_channels": (4, 8),
    "ctrl_block_out_channels": (8, 16),
    "ctrl_num_attention_heads": _HEADS,
    "ctrl_max_norm_num_groups": _GROUPS,
}


def _control_xs() -> dict[str, Any]:
    return _with_text(controlnet_cond=noise(1, 3, 16, 16, seed=2))


def _control_xs_off() -> dict[str, Any]:
    """The pipeline leaves the control out of some steps."""
    return _with_text(controlnet_cond=noise(1, 3, 16, 16, seed=2), apply_control=False)


def _audio_ldm() -> dict[str, Any]:
    return _with_text(
        encoder_hidden_states=_text(tokens=6, seed=1),
        encoder_hidden_states_1=_text(width=10, seed=2),
        encoder_attention_mask_1=torch.arange(_TEXT_TOKENS)[None] < 4,
    )


def _unidiffuser() -> dict[str, Any]:
    return {
        "latent_image_embeds": noise(*_PICTURE),
        "image_embeds": noise(1, 1, 6, seed=1),
        "prompt_embeds": noise(1, _TEXT_TOKENS, _TEXT_WIDTH, seed=2),
        "timestep_img": torch.tensor([_TIME]),
        "timestep_text": torch.tensor([_TIME]),
    }


SPECIMENS: tuple[Specimen, ...] = (
    Specimen(
        "UNet1DModel",
        {
            "sample_size": 64,
            "down_block_types": ("DownBlock1DNoSkip", "DownBlock1D", "AttnDownBlock1D"),
            "up_block_types": ("AttnUpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"),
            "block_out_channels": (32, 32, 64),
            "extra_in_channels": 64,  # the embedding of the timestep
        },
        _sound,
    ),
    Specimen(
        "UNet1DModel",
        {
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "time_embedding_type": "positional",
            "use_timestep_embedding": True,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "down_block_types": ("DownResnetBlock1D", "DownResnetBlock1D"),
            "mid_block_type": "MidResTemporalBlock1D",
            "up_block_types": ("UpResnetBlock1D",),
            "out_block_type": "OutConv1DBlock",
            "block_out_channels": (16, 32),
            "act_fn": "mish",
        },
        _trajectory,
        variant="trajectories",
    ),
    Specimen(
        "UNet2DModel",
        {
            "sample_size": 16,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": _LEVELS,
            "norm_num_groups": _GROUPS,
            "num_class_embeds": 5,
        },
        _of_a_class,
    ),
    Specimen(
        "UNet2DModel",
        {
            "sample_size": 16,
            "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
            "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
            "block_out_channels": (32, 32),
            "mid_block_scale_factor": 2**0.5,
            "time_embedding_type": "fourier",
            "attention_head_dim": 8,
        },
        _as_record,
        variant="NCSN++",
    ),
    Specimen("UNet2DConditionModel", {**_SD, "layers_per_block": 2}, _with_text),
    Specimen("UNet2DConditionModel", _SDXL, _text_and_size, variant="SDXL"),
    Specimen("UNet2DConditionModel", _SD, _controlled, variant="ControlNet"),
    Specimen("UNet2DConditionModel", _SD, _with_adapter, variant="T2I-Adapter"),
    Specimen("UNet2DConditionModel", _SD, _with_adapter_and_control, variant="ControlNet and T2I-Adapter"),
    Specimen(
        "UNet2DConditionModel",
        {**_SD, "in_channels": 7, "num_class_embeds": 50, "only_cross_attention": True},
        _upscaling,
        variant="upscaler",
    ),
    Specimen(
        "UNet2DConditionModel",
        {**_SD, "encoder_hid_dim": 10, "encoder_hid_dim_type": "text_image_proj"},
        _with_picture,
        variant="text and picture",
    ),
    Specimen("UNet3DConditionModel", _VIDEO_3D, _video),
    Specimen(
        "DreamLiteUNetModel",
        {
            **_CONDITIONED,
            "down_block_types": ("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
            "up_block_types": ("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"),
            "layers_per_block": 1,
            "attention_head_dim": 2,
            "ff_mult": 2,
        },
        _with_text,
    ),
    Specimen("I2VGenXLUNet", {**_VIDEO_3D, "num_attention_heads": _HEADS, "attention_head_dim": _HEADS}, _i2vgen),
    Specimen(
        "Kandinsky3UNet",
        {
            "time_embedding_dim": 16,
            "groups": _GROUPS,
            "attention_head_dim": 8,
            "layers_per_block": 2,
            "block_out_channels": (8, 8, 16, 16),
            "cross_attention_dim": _TEXT_WIDTH,
            "encoder_hid_dim": _TEXT_WIDTH,
        },
        _kandinsky_3,
    ),
    Specimen("UNetMotionModel", _MOTION, _motion),
    Specimen("UNetMotionModel", _MOTION, _motion_controlled, variant="SparseCtrl"),
    Specimen(
        "UNetSpatioTemporalConditionModel",
        {
            "sample_size": _SIDE,
            "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            "block_out_channels": (32, 64),
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 24,
            "layers_per_block": 1,
            "cross_attention_dim": _TEXT_WIDTH,
            "num_attention_heads": (_HEADS, _HEADS),
            "num_frames": _FRAMES,
        },
        _spatio_temporal,
    ),
    Specimen("StableCascadeUNet", _CASCADE, _cascade_prior, time="timestep_ratio"),
    Specimen(
        "StableCascadeUNet",
        {
            **_CASCADE,
            "patch_size": 2,
            "clip_text_in_channels": None,
            "clip_image_in_channels": None,
            "down_blocks_repeat_mappers": (1, 2),
            "up_blocks_repeat_mappers": (2, 1),
            "effnet_in_channels": 6,
            "pixel_mapper_in_channels": 3,
            "timestep_conditioning_type": ("sca",),
        },
        _cascade_decoder,
        variant="decoder",
        time="timestep_ratio",
    ),
    Specimen("UNetControlNetXSModel", _CONTROL_XS, _control_xs),
    Specimen("UNetControlNetXSModel", _CONTROL_XS, _control_xs_off, variant="without control"),
    Specimen(
        "AudioLDM2UNet2DConditionModel",
        {**_SD, "cross_attention_dim": ((None, _TEXT_WIDTH, 10), (None, _TEXT_WIDTH, 10))},
        _audio_ldm,
    ),
    Specimen(
        "UniDiffuserModel",
        {
            "text_dim": _TEXT_WIDTH,
            "clip_img_dim": 6,
            "num_text_tokens": _TEXT_TOKENS,
            "num_attention_heads": _HEADS,
            "attention_head_dim": 8,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 5,
            "sample_size": _SIDE,
            "patch_size": 2,
            "activation_fn": "gelu",
            "num_embeds_ada_norm": 1000,
            "norm_type": "layer_norm",
            "block_type": "unidiffuser",
        },
        _unidiffuser,
        time="timestep_img",
    ),
)
