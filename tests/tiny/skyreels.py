"""SkyReels V2: Wan's denoiser, and with diffusion forcing, where every frame has a noise level of its own."""

from typing import Any

from diffusers import (
    DiffusionPipeline,
    SkyReelsV2DiffusionForcingImageToVideoPipeline,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
)

from tests.tiny.base import SIZE, TinyPipeline, assemble
from tests.tiny.pictures import picture, seeded
from tests.tiny.videos import video_text
from tests.tiny.wan import WAN_WIDTHS, flow_unipc, tiny_wan_vae


def build_skyreels(
    pipeline: type[DiffusionPipeline] = SkyReelsV2DiffusionForcingPipeline, **config: Any
) -> DiffusionPipeline:
    return assemble(
        pipeline,
        tokenizer=None,
        text_encoder=None,
        vae=tiny_wan_vae(),
        transformer=SkyReelsV2Transformer3DModel(**WAN_WIDTHS | dict(num_layers=5) | config),
        scheduler=flow_unipc(),
    )


PIPELINES = (
    TinyPipeline("skyreels", lambda: build_skyreels(SkyReelsV2Pipeline), lambda pipe: video_text(), "transformer"),
    # All frames together, each with a scheduler of its own.
    TinyPipeline(
        "skyreels_forcing",
        lambda: build_skyreels(inject_sample_info=True),
        lambda pipe: video_text(prompt=None, fps=24),
        "transformer",
        strides=(1,),
    ),
    # The given picture's frame keeps a little noise while the others lose theirs.
    TinyPipeline(
        "skyreels_forcing_i2v",
        lambda: build_skyreels(SkyReelsV2DiffusionForcingImageToVideoPipeline),
        lambda pipe: seeded(video_text(image=picture(SIZE), addnoise_condition=20)),
        "transformer",
        strides=(1,),
    ),
    # Later frames are two steps behind the ones before them; the calls take up other frames as they go.
    TinyPipeline(
        "skyreels_forcing_async",
        lambda: build_skyreels(num_frame_per_block=1),
        lambda pipe: video_text(prompt=None, num_frames=9, ar_step=2, causal_block_size=1),
        "transformer",
        strides=(1,),
    ),
    # A long video in pieces, each of which begins with the last frames of the one before.
    TinyPipeline(
        "skyreels_forcing_long",
        build_skyreels,
        lambda pipe: video_text(prompt=None, num_frames=13, base_num_frames=9, overlap_history=5, addnoise_condition=0),
        "transformer",
        strides=(1,),
    ),
)
