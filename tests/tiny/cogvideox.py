"""CogVideoX in its versions and what was made of them."""

from typing import Any

from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXFunControlPipeline,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    CogVideoXVideoToVideoPipeline,
    DiffusionPipeline,
)

from tests.tiny.base import SIZE, TEXT_LENGTH, TinyPipeline, assemble
from tests.tiny.pictures import picture
from tests.tiny.videos import FRAMES, frames, video_text

CHANNELS = 4  # of the latents

NOISE: dict[str, Any] = dict(
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
    timestep_spacing="trailing",
    snr_shift_scale=1.0,
    set_alpha_to_one=True,
)


def tiny_cogvideox_transformer(**config: Any) -> CogVideoXTransformer3DModel:
    return CogVideoXTransformer3DModel(
        **dict(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            time_embed_dim=16,
            text_embed_dim=16,
            num_layers=5,
            sample_width=SIZE // 2,
            sample_height=SIZE // 2,
            sample_frames=FRAMES,
            temporal_compression_ratio=2,
            max_text_seq_length=TEXT_LENGTH,
        )
        | config
    )


def tiny_cogvideox_vae() -> AutoencoderKLCogVideoX:
    """Halves time and size once."""
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 2,
        up_block_types=("CogVideoXUpBlock3D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=2,
        sample_height=SIZE,
        sample_width=SIZE,
    )


def build_cogvideox(pipeline: type[DiffusionPipeline] = CogVideoXPipeline, **components: Any) -> DiffusionPipeline:
    """As the model of two billion parameters: fixed positions."""
    return assemble(
        pipeline,
        **dict(
            tokenizer=None,
            text_encoder=None,
            vae=tiny_cogvideox_vae(),
            transformer=tiny_cogvideox_transformer(),
            scheduler=CogVideoXDDIMScheduler(**NOISE),
        )
        | components,
    )


def build_cogvideox_5b() -> DiffusionPipeline:
    """Rotary positions; its scheduler goes by two steps at once."""
    return build_cogvideox(
        transformer=tiny_cogvideox_transformer(use_rotary_positional_embeddings=True),
        scheduler=CogVideoXDPMScheduler(**NOISE),
    )


def build_cogvideox_i2v() -> DiffusionPipeline:
    """The denoiser reads the picture's latents beside its own; positions are learnt and rotary."""
    return build_cogvideox(
        CogVideoXImageToVideoPipeline,
        transformer=tiny_cogvideox_transformer(
            in_channels=2 * CHANNELS, use_rotary_positional_embeddings=True, use_learned_positional_embeddings=True
        ),
        scheduler=CogVideoXDPMScheduler(**NOISE),
    )


def build_cogvideox15_i2v() -> DiffusionPipeline:
    """Patches of two frames, and a second number that is embedded like the time."""
    return build_cogvideox(
        CogVideoXImageToVideoPipeline,
        transformer=tiny_cogvideox_transformer(
            in_channels=2 * CHANNELS,
            use_rotary_positional_embeddings=True,
            patch_size_t=2,
            patch_bias=False,
            ofs_embed_dim=16,
        ),
        scheduler=CogVideoXDPMScheduler(**NOISE),
    )


def build_cogvideox_control() -> DiffusionPipeline:
    """The denoiser reads the controlling video's latents beside its own."""
    return build_cogvideox(
        CogVideoXFunControlPipeline,
        transformer=tiny_cogvideox_transformer(in_channels=2 * CHANNELS, use_rotary_positional_embeddings=True),
    )


def cogvideox_video(**extra: Any) -> dict[str, Any]:
    """The number of frames is that of the given video."""
    return {name: value for name, value in video_text(**extra).items() if name != "num_frames"}


PIPELINES = (
    TinyPipeline("cogvideox", build_cogvideox, lambda pipe: video_text(), "transformer"),
    TinyPipeline("cogvideox_5b", build_cogvideox_5b, lambda pipe: video_text(use_dynamic_cfg=True), "transformer"),
    TinyPipeline("cogvideox_i2v", build_cogvideox_i2v, lambda pipe: video_text(image=picture(SIZE)), "transformer"),
    TinyPipeline(
        "cogvideox15_i2v",
        build_cogvideox15_i2v,
        lambda pipe: video_text(image=picture(SIZE), num_frames=7),
        "transformer",
    ),
    TinyPipeline(
        "cogvideox_v2v",
        lambda: build_cogvideox(CogVideoXVideoToVideoPipeline),
        lambda pipe: cogvideox_video(video=frames(), strength=0.8),
        "transformer",
    ),
    TinyPipeline(
        "cogvideox_control",
        build_cogvideox_control,
        lambda pipe: cogvideox_video(control_video=frames()),
        "transformer",
    ),
)
