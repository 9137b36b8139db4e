"""Stable Diffusion 1.5 and 2.1 and what was made of them."""

from typing import Any

from diffusers import (
    ControlNetModel,
    ControlNetXSAdapter,
    DDPMScheduler,
    DiffusionPipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    MarigoldDepthPipeline,
    PNDMScheduler,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionControlNetXSPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionLatentUpscalePipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPanoramaPipeline,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
)

from tests.tiny.base import (
    PIXELS,
    SIZE,
    STABLE_DIFFUSION_NOISE,
    TEXT_LENGTH,
    TinyPipeline,
    assemble,
    ddim,
    euler,
    image,
    mask,
    noise,
    pooled_text,
    sampling,
    text,
    tiny_vae,
)
from tests.tiny.text_encoders import tiny_text_encoder, tiny_tokenizer

TEXT_FREE_SD: dict[str, Any] = dict(
    text_encoder=None,
    tokenizer=None,
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
)


def tiny_unet(**config: Any) -> UNet2DConditionModel:
    """As SD 1.5 with half of its layers: four levels, attention on all but the lowest; `config` makes another one."""
    return UNet2DConditionModel(
        **dict(
            sample_size=SIZE,
            layers_per_block=1,
            block_out_channels=(16, 32, 32, 32),
            norm_num_groups=8,
            attention_head_dim=2,  # the number of heads, by its historical name
            cross_attention_dim=16,
        )
        | config
    )


def pndm() -> PNDMScheduler:
    return PNDMScheduler(**STABLE_DIFFUSION_NOISE, skip_prk_steps=True)


def tiny_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16))


def build_sd15(pipeline: type[DiffusionPipeline] = StableDiffusionPipeline, **components: Any) -> DiffusionPipeline:
    parts = dict(vae=tiny_vae(), unet=tiny_unet(), scheduler=pndm())
    return assemble(pipeline, **parts | TEXT_FREE_SD | components)


def build_sd15_inpaint() -> DiffusionPipeline:
    unet = tiny_unet(in_channels=9)  # latents, mask and masked picture
    return build_sd15(StableDiffusionInpaintPipeline, unet=unet)


def build_instruct_pix2pix() -> DiffusionPipeline:
    unet = tiny_unet(in_channels=8)  # latents and the picture to be edited
    return build_sd15(StableDiffusionInstructPix2PixPipeline, unet=unet, scheduler=euler())


def build_panorama() -> DiffusionPipeline:
    """Its views are measured in the latents of a VAE that shrinks eightfold."""
    vae = tiny_vae(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    return build_sd15(StableDiffusionPanoramaPipeline, vae=vae, scheduler=ddim())


def build_sd15_controlnet(
    pipeline: type[DiffusionPipeline] = StableDiffusionControlNetPipeline,
) -> DiffusionPipeline:
    unet = tiny_unet()
    return build_sd15(pipeline, unet=unet, controlnet=tiny_controlnet(unet))


def build_sd15_controlnet_xs() -> DiffusionPipeline:
    """The pipeline joins the UNet and the small control network to one denoiser."""
    unet = tiny_unet(layers_per_block=2)  # what its adapter is made for
    controlnet = ControlNetXSAdapter.from_unet(
        unet, block_out_channels=(8, 8, 8, 8), num_attention_heads=2, conditioning_embedding_out_channels=(8, 16)
    )
    return build_sd15(StableDiffusionControlNetXSPipeline, unet=unet, controlnet=controlnet)


def build_lcm() -> DiffusionPipeline:
    """The guidance scale is embedded, and given to the denoiser."""
    unet = tiny_unet(time_cond_proj_dim=16)
    return build_sd15(LatentConsistencyModelPipeline, unet=unet, scheduler=LCMScheduler(**STABLE_DIFFUSION_NOISE))


def build_sd21() -> DiffusionPipeline:
    unet = tiny_unet(attention_head_dim=(2, 4, 4, 4), use_linear_projection=True)
    scheduler = ddim(prediction_type="v_prediction")
    return assemble(StableDiffusionPipeline, vae=tiny_vae(), unet=unet, scheduler=scheduler, **TEXT_FREE_SD)


def build_x4_upscaler() -> DiffusionPipeline:
    unet = tiny_unet(
        in_channels=7,  # latents and the small picture
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
        only_cross_attention=(True, True, True, False),
        use_linear_projection=True,
        num_class_embeds=1000,  # noise levels
    )
    return assemble(
        StableDiffusionUpscalePipeline,
        vae=tiny_vae(scaling_factor=0.08333),
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        low_res_scheduler=DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.0001, beta_end=0.02),
        scheduler=ddim(prediction_type="v_prediction"),
    )


def build_latent_upscaler() -> DiffusionPipeline:
    """Blocks of k-diffusion and no middle; the time is that of Karras et al., and what is beside it pooled text."""
    unet = tiny_unet(
        in_channels=8,  # latents and those of the small picture
        out_channels=5,  # one of them for a variance that nobody reads
        down_block_types=("KDownBlock2D",) + ("KCrossAttnDownBlock2D",) * 3,
        mid_block_type=None,
        up_block_types=("KCrossAttnUpBlock2D",) * 3 + ("KUpBlock2D",),
        block_out_channels=(32, 32, 64, 64),  # 32 channels for each group of its normalisation
        attention_head_dim=16,
        norm_num_groups=None,
        only_cross_attention=False,
        act_fn="gelu",
        time_embedding_type="fourier",
        timestep_post_act="gelu",
        time_cond_proj_dim=2 * 64 + 16,  # the noise level and pooled text
        resnet_time_scale_shift="scale_shift",
        conv_in_kernel=1,
        conv_out_kernel=1,
    )
    return assemble(
        StableDiffusionLatentUpscalePipeline,
        vae=tiny_vae(),
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        scheduler=euler(),
    )


def build_marigold() -> DiffusionPipeline:
    """From a picture to its depth: the prompt is empty, and encoded by the pipeline itself."""
    unet = tiny_unet(
        in_channels=8,  # the picture's latents and the depth's
        block_out_channels=(16, 32, 32),  # the depth lies between 0 and 1, where a fourth level would hardly show
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    return assemble(
        MarigoldDepthPipeline,
        unet=unet,
        vae=tiny_vae(),
        scheduler=ddim(prediction_type="v_prediction", timestep_spacing="trailing"),
        text_encoder=tiny_text_encoder(),
        tokenizer=tiny_tokenizer(),
        default_denoising_steps=4,
        default_processing_resolution=0,
    )


PIPELINES = (
    TinyPipeline("sd15", build_sd15, lambda pipe: text(), "unet"),
    TinyPipeline(
        "sd15_img2img",
        lambda: build_sd15(StableDiffusionImg2ImgPipeline),
        lambda pipe: text(image=image(), strength=0.8),
        "unet",
        steps=8,
    ),
    TinyPipeline(
        "sd15_inpaint",
        build_sd15_inpaint,
        lambda pipe: text(image=image(), mask_image=mask(), height=PIXELS, width=PIXELS),
        "unet",
    ),
    TinyPipeline(
        # Three guidance branches in one batch.
        "instruct_pix2pix",
        build_instruct_pix2pix,
        lambda pipe: text(image=image(), image_guidance_scale=1.5),
        "unet",
    ),
    TinyPipeline("sd15_controlnet", build_sd15_controlnet, lambda pipe: text(image=image()), "unet"),
    TinyPipeline(
        "sd15_controlnet_img2img",
        lambda: build_sd15_controlnet(StableDiffusionControlNetImg2ImgPipeline),
        lambda pipe: text(image=image(), control_image=image(seed=1), strength=0.8),
        "unet",
    ),
    TinyPipeline(
        # A third branch in the batch, for which attention processors are exchanged during the call.
        "sd15_perturbed_attention",
        lambda: build_sd15(StableDiffusionPAGPipeline, pag_applied_layers=["mid", "up_blocks.1"]),
        lambda pipe: text(pag_scale=3.0),
        "unet",
    ),
    TinyPipeline(
        # Two views, each with a call of the denoiser and one of the scheduler in every step.
        "panorama",
        build_panorama,
        lambda pipe: text(height=8 * 8, width=72 * 8),
        "unet",
        views=2,
    ),
    TinyPipeline("sd15_controlnet_xs", build_sd15_controlnet_xs, lambda pipe: text(image=image()), "unet"),
    TinyPipeline(
        "lcm",
        build_lcm,
        lambda pipe: sampling(prompt_embeds=noise(1, TEXT_LENGTH, 16, seed=1), guidance_scale=5.0),
        "unet",
    ),
    TinyPipeline("sd21", build_sd21, lambda pipe: text(), "unet"),
    TinyPipeline("x4_upscaler", build_x4_upscaler, lambda pipe: text(image=image(SIZE)), "unet"),
    TinyPipeline(
        "latent_upscaler",
        build_latent_upscaler,
        lambda pipe: pooled_text(image=noise(1, 4, SIZE // 2, SIZE // 2)),
        "unet",
    ),
    TinyPipeline("marigold", build_marigold, lambda pipe: sampling(image=image(), output_type="pt"), "unet"),
)
