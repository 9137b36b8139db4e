"""Wan 2.1 and 2.2 and what was made of them."""

from typing import Any

import PIL.Image
from diffusers import (
    AutoencoderKLWan,
    DiffusionPipeline,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
    WanVideoToVideoPipeline,
)

from tests.tiny.base import PIXELS, SIZE, TinyPipeline, assemble, image, pillow_processor, tiny_image_encoder
from tests.tiny.pictures import picture
from tests.tiny.videos import FRAMES, frames, video_text

CHANNELS = 4  # of the latents

TOKENS_OF_A_PICTURE = 1 + 16  # of the tiny image encoder

WAN_WIDTHS: dict[str, Any] = dict(
    in_channels=CHANNELS,
    out_channels=CHANNELS,
    num_attention_heads=2,
    attention_head_dim=12,
    text_dim=16,
    freq_dim=16,
    ffn_dim=48,
    rope_max_seq_len=32,
)


def tiny_wan_transformer(**config: Any) -> WanTransformer3DModel:
    return WanTransformer3DModel(**WAN_WIDTHS | dict(num_layers=5) | config)


def tiny_wan_vae(downsamplings: int = 1) -> AutoencoderKLWan:
    """Halves size so often, and time once."""
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=CHANNELS,
        dim_mult=[1] * (downsamplings + 1),
        num_res_blocks=1,
        temperal_downsample=[True] + [False] * (downsamplings - 1),
        latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS,
        scale_factor_temporal=2,
        scale_factor_spatial=2**downsamplings,
    )


def flow_unipc() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def build_wan(pipeline: type[DiffusionPipeline] = WanPipeline, **components: Any) -> DiffusionPipeline:
    return assemble(
        pipeline,
        **dict(
            tokenizer=None,
            text_encoder=None,
            vae=tiny_wan_vae(),
            transformer=tiny_wan_transformer(),
            scheduler=flow_unipc(),
        )
        | components,
    )


def build_wan21_i2v(tokens_of_pictures: int | None = None) -> DiffusionPipeline:
    """The denoiser reads the pictures' latents and a mask beside its own, and attends to the encoded pictures.

    The positions of their tokens are told from each other only where there are two pictures.
    """
    return build_wan(
        WanImageToVideoPipeline,
        transformer=tiny_wan_transformer(
            in_channels=2 + 2 * CHANNELS, image_dim=16, added_kv_proj_dim=24, pos_embed_seq_len=tokens_of_pictures
        ),
        image_encoder=tiny_image_encoder(),
        image_processor=pillow_processor("CLIP", size=PIXELS, crop_size=PIXELS),
    )


def build_wan22() -> DiffusionPipeline:
    """Two denoisers, one for the first steps and one for the others."""
    return build_wan(transformer_2=tiny_wan_transformer(num_layers=4), boundary_ratio=0.8)


def build_wan22_i2v() -> DiffusionPipeline:
    """Two denoisers that read the picture's latents and a mask beside their own."""
    channels = 2 + 2 * CHANNELS
    return build_wan(
        WanImageToVideoPipeline,
        transformer=tiny_wan_transformer(in_channels=channels),
        transformer_2=tiny_wan_transformer(in_channels=channels),
        boundary_ratio=0.8,
    )


def build_wan_vace() -> DiffusionPipeline:
    """Blocks of their own read the video that controls, and are added after some of the denoiser's."""
    return build_wan(
        WanVACEPipeline,
        transformer=WanVACETransformer3DModel(
            **WAN_WIDTHS, num_layers=5, vace_layers=[0, 2], vace_in_channels=2 * CHANNELS + 4
        ),
    )


def half_masked(count: int = FRAMES) -> list[PIL.Image.Image]:
    """The right half of every frame is to be made anew."""
    half = PIL.Image.new("L", (SIZE, SIZE), 0)
    half.paste(255, (SIZE // 2, 0, SIZE, SIZE))
    return [half] * count


def wan_video(**extra: Any) -> dict[str, Any]:
    """The number of frames is that of the given video."""
    inputs = video_text(video=frames(), strength=0.8, **extra)
    return {name: value for name, value in inputs.items() if name != "num_frames"}


PIPELINES = (
    TinyPipeline("wan21", build_wan, lambda pipe: video_text(), "transformer"),
    TinyPipeline(
        "wan21_i2v",
        build_wan21_i2v,
        lambda pipe: video_text(image=picture(SIZE)),
        "transformer",
    ),
    TinyPipeline(
        "wan21_first_and_last",
        lambda: build_wan21_i2v(2 * TOKENS_OF_A_PICTURE),
        lambda pipe: video_text(image=picture(SIZE), last_image=picture(SIZE, seed=1)),
        "transformer",
    ),
    # Two calls in every step that no context tells apart.
    TinyPipeline("wan21_v2v", lambda: build_wan(WanVideoToVideoPipeline), lambda pipe: wan_video(), "transformer"),
    TinyPipeline(
        "wan22", build_wan22, lambda pipe: video_text(guidance_scale_2=3.0), "transformer", ("transformer_2",), steps=10
    ),
    TinyPipeline(
        "wan22_i2v",
        build_wan22_i2v,
        lambda pipe: video_text(image=image(SIZE), guidance_scale_2=3.0),
        "transformer",
        ("transformer_2",),
        steps=10,
    ),
    # Every token has a timestep of its own.
    TinyPipeline("wan22_5b", lambda: build_wan(expand_timesteps=True), lambda pipe: video_text(), "transformer"),
    TinyPipeline(
        "wan22_5b_i2v",
        lambda: build_wan(WanImageToVideoPipeline, expand_timesteps=True),
        lambda pipe: video_text(image=image(SIZE)),
        "transformer",
    ),
    TinyPipeline(
        "wan_vace",
        build_wan_vace,
        lambda pipe: video_text(video=frames(), mask=half_masked(), reference_images=[picture(SIZE, seed=9)]),
        "transformer",
    ),
)
