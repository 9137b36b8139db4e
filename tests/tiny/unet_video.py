"""Video pipelines whose denoiser is a UNet."""

from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKLTemporalDecoder,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    MotionAdapter,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from transformers import CLIPImageProcessorPil

from tests.tiny.base import (
    SIZE,
    STABLE_DIFFUSION_NOISE,
    TinyPipeline,
    assemble,
    image,
    sampling,
    text,
    tiny_image_encoder,
    tiny_vae,
)
from tests.tiny.stable_diffusion import tiny_unet


def tiny_motion_adapter() -> MotionAdapter:
    return MotionAdapter(
        block_out_channels=(16, 32, 32, 32),
        motion_num_attention_heads=2,
        motion_norm_num_groups=8,
        motion_max_seq_length=8,
    )


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
        feature_extractor=CLIPImageProcessorPil(),
    )


def build_animatediff() -> DiffusionPipeline:
    return assemble(
        AnimateDiffPipeline,
        vae=tiny_vae(),
        text_encoder=None,
        tokenizer=None,
        unet=tiny_unet(sample_size=SIZE // 2),
        motion_adapter=tiny_motion_adapter(),
        scheduler=DDIMScheduler(
            beta_schedule="linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, clip_sample=False
        ),
    )


PIPELINES = (
    TinyPipeline("svd", build_svd, lambda pipe: sampling(image=image(), height=SIZE, width=SIZE), "unet"),
    TinyPipeline("animatediff", build_animatediff, lambda pipe: text(num_frames=4), "unet"),
)
