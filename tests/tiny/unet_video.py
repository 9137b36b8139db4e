"""Video pipelines whose denoiser is a UNet."""

from typing import Any

import PIL.Image
from diffusers import (
    AnimateDiffControlNetPipeline,
    AnimateDiffPipeline,
    AnimateDiffSDXLPipeline,
    AnimateDiffVideoToVideoPipeline,
    AutoencoderKLTemporalDecoder,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    I2VGenXLPipeline,
    I2VGenXLUNet,
    MotionAdapter,
    StableVideoDiffusionPipeline,
    TextToVideoSDPipeline,
    UNet3DConditionModel,
    UNetSpatioTemporalConditionModel,
    VideoToVideoSDPipeline,
)

from tests.tiny.base import (
    PIXELS,
    SIZE,
    STABLE_DIFFUSION_NOISE,
    TinyPipeline,
    assemble,
    ddim,
    image,
    pillow_processor,
    pooled_text,
    sampling,
    text,
    tiny_image_encoder,
    tiny_vae,
)
from tests.tiny.pictures import picture, seeded
from tests.tiny.sdxl import TEXT_FREE_SDXL, tiny_sdxl_unet
from tests.tiny.stable_diffusion import tiny_controlnet, tiny_unet


def tiny_motion_adapter(**config: Any) -> MotionAdapter:
    return MotionAdapter(
        **dict(
            block_out_channels=(16, 32, 32, 32),
            motion_layers_per_block=1,
            motion_num_attention_heads=2,
            motion_norm_num_groups=8,
            motion_max_seq_length=8,
        )
        | config
    )


def film(frames: int = 4) -> list[PIL.Image.Image]:
    """A film of pictures that have nothing to do with each other."""
    return [picture(SIZE, seed) for seed in range(frames)]


def build_svd() -> DiffusionPipeline:
    unet = UNetSpatioTemporalConditionModel(
        sample_size=SIZE // 2,
        block_out_channels=(64,) * 4,  # two for each of its 32 normalisation groups: one alone would cancel the time
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=3 * 8,
        cross_attention_dim=16,
        num_attention_heads=(2, 4, 4, 4),
        num_frames=3,
    )
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, sample_size=SIZE
    )
    scheduler = EulerDiscreteScheduler(
        **STABLE_DIFFUSION_NOISE,
        prediction_type="v_prediction",
        timestep_spacing="leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
    )
    return assemble(
        StableVideoDiffusionPipeline,
        vae=vae,
        image_encoder=tiny_image_encoder(),
        unet=unet,
        scheduler=scheduler,
        feature_extractor=pillow_processor("CLIP"),
    )


def build_animatediff(pipeline: type[DiffusionPipeline] = AnimateDiffPipeline, **components: Any) -> DiffusionPipeline:
    parts = dict(
        vae=tiny_vae(),
        text_encoder=None,
        tokenizer=None,
        unet=tiny_unet(sample_size=SIZE // 2),
        motion_adapter=tiny_motion_adapter(),
        scheduler=DDIMScheduler(
            beta_schedule="linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, clip_sample=False
        ),
    )
    return assemble(pipeline, **parts | components)


def build_animatediff_controlnet() -> DiffusionPipeline:
    unet = tiny_unet(sample_size=SIZE // 2)
    return build_animatediff(AnimateDiffControlNetPipeline, unet=unet, controlnet=tiny_controlnet(unet))


def build_animatediff_sdxl() -> DiffusionPipeline:
    """The adapter has no motion in the middle."""
    adapter = tiny_motion_adapter(block_out_channels=(16, 32, 32), use_motion_mid_block=False)
    return build_animatediff(
        AnimateDiffSDXLPipeline,
        unet=tiny_sdxl_unet(sample_size=SIZE // 2),
        motion_adapter=adapter,
        **TEXT_FREE_SDXL,
    )


def build_text_to_video(pipeline: type[DiffusionPipeline] = TextToVideoSDPipeline) -> DiffusionPipeline:
    unet = UNet3DConditionModel(
        sample_size=SIZE // 2,
        block_out_channels=(32, 32, 32, 32),
        norm_num_groups=8,
        attention_head_dim=8,
        cross_attention_dim=16,
    )
    return assemble(pipeline, vae=tiny_vae(), text_encoder=None, tokenizer=None, unet=unet, scheduler=ddim())


def build_i2vgen_xl() -> DiffusionPipeline:
    """The picture comes in three ways: as its latents, as their summary, and as its embedding."""
    unet = I2VGenXLUNet(
        sample_size=SIZE // 2,
        block_out_channels=(32, 32, 32, 32),
        norm_num_groups=8,
        attention_head_dim=8,
        cross_attention_dim=16,
    )
    return assemble(
        I2VGenXLPipeline,
        vae=tiny_vae(),
        text_encoder=None,
        tokenizer=None,
        image_encoder=tiny_image_encoder(),
        feature_extractor=pillow_processor("CLIP", crop_size=PIXELS, size=PIXELS),
        unet=unet,
        scheduler=ddim(),
    )


PIPELINES = (
    TinyPipeline("svd", build_svd, lambda pipe: sampling(image=image(), height=SIZE, width=SIZE), "unet"),
    TinyPipeline("animatediff", build_animatediff, lambda pipe: text(num_frames=4), "unet"),
    TinyPipeline(
        "animatediff_controlnet",
        build_animatediff_controlnet,
        lambda pipe: text(num_frames=4, conditioning_frames=film()),
        "unet",
    ),
    TinyPipeline(
        "animatediff_video_to_video",
        lambda: build_animatediff(AnimateDiffVideoToVideoPipeline),
        lambda pipe: text(video=film(), height=SIZE, width=SIZE, strength=0.8),
        "unet",
    ),
    TinyPipeline("animatediff_sdxl", build_animatediff_sdxl, lambda pipe: pooled_text(num_frames=4), "unet"),
    TinyPipeline("text_to_video", build_text_to_video, lambda pipe: text(num_frames=4), "unet"),
    TinyPipeline(
        "video_to_video",
        lambda: build_text_to_video(VideoToVideoSDPipeline),
        lambda pipe: text(video=film(), strength=0.8),
        "unet",
    ),
    TinyPipeline(
        "i2vgen_xl",
        build_i2vgen_xl,
        lambda pipe: seeded(text(image=picture(PIXELS), num_frames=4, height=SIZE, width=SIZE)),
        "unet",
    ),
)
