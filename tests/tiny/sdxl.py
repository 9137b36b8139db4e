"""Stable Diffusion XL and what was made of it."""

from typing import Any

from diffusers import (
    ControlNetXSAdapter,
    DiffusionPipeline,
    KolorsPipeline,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetXSPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    StableDiffusionXLPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)

from tests.tiny.base import (
    PIXELS,
    SIZE,
    TEXT_LENGTH,
    TinyPipeline,
    assemble,
    euler,
    image,
    mask,
    noise,
    pooled_text,
    tiny_vae,
)
from tests.tiny.stable_diffusion import tiny_controlnet, tiny_unet

TEXT_FREE_SDXL: dict[str, Any] = dict(
    text_encoder=None,
    text_encoder_2=None,
    tokenizer=None,
    tokenizer_2=None,
)


def tiny_sdxl_unet(**config: Any) -> UNet2DConditionModel:
    """As in SDXL: three levels, attention on the lower two, deeper below; size and pooled text are conditions."""
    return tiny_unet(
        **dict(
            block_out_channels=(16, 32, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 2),
            attention_head_dim=(2, 4, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 16,
        )
        | config
    )


def build_sdxl(pipeline: type[DiffusionPipeline] = StableDiffusionXLPipeline, **components: Any) -> DiffusionPipeline:
    parts = dict(vae=tiny_vae(), unet=tiny_sdxl_unet(), scheduler=euler())
    return assemble(pipeline, **parts | TEXT_FREE_SDXL | components)


def build_sdxl_refiner() -> DiffusionPipeline:
    """One text encoder, four levels, and an aesthetic score in place of the target size."""
    unet = tiny_sdxl_unet(
        block_out_channels=(16, 32, 32, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=2,
        attention_head_dim=(2, 4, 4, 4),
        projection_class_embeddings_input_dim=5 * 8 + 16,
    )
    return build_sdxl(StableDiffusionXLImg2ImgPipeline, unet=unet, requires_aesthetics_score=True)


def build_sdxl_inpaint() -> DiffusionPipeline:
    unet = tiny_sdxl_unet(in_channels=9)  # latents, mask and masked picture
    return build_sdxl(StableDiffusionXLInpaintPipeline, unet=unet)


def build_sdxl_instruct_pix2pix() -> DiffusionPipeline:
    unet = tiny_sdxl_unet(in_channels=8)  # latents and the picture to be edited
    return build_sdxl(StableDiffusionXLInstructPix2PixPipeline, unet=unet)


def build_sdxl_controlnet(
    pipeline: type[DiffusionPipeline] = StableDiffusionXLControlNetPipeline,
) -> DiffusionPipeline:
    unet = tiny_sdxl_unet()
    return build_sdxl(pipeline, unet=unet, controlnet=tiny_controlnet(unet))


def build_sdxl_controlnet_xs() -> DiffusionPipeline:
    """The pipeline joins the UNet and the small control network to one denoiser."""
    unet = tiny_sdxl_unet(layers_per_block=2)  # what its adapter is made for
    controlnet = ControlNetXSAdapter.from_unet(
        unet, block_out_channels=(8, 8, 8), num_attention_heads=(2, 2, 2), conditioning_embedding_out_channels=(8, 16)
    )
    return build_sdxl(StableDiffusionXLControlNetXSPipeline, unet=unet, controlnet=controlnet)


def build_kolors() -> DiffusionPipeline:
    """One language model in place of two text encoders; the denoiser itself narrows its words."""
    unet = tiny_sdxl_unet(encoder_hid_dim=24, encoder_hid_dim_type="text_proj")
    return assemble(KolorsPipeline, vae=tiny_vae(), text_encoder=None, tokenizer=None, unet=unet, scheduler=euler())


def build_sdxl_adapter() -> DiffusionPipeline:
    """What the adapter sees is added, in place, to what the UNet's blocks put out."""
    adapter = T2IAdapter(channels=[16, 32, 32], num_res_blocks=1, downscale_factor=4, adapter_type="full_adapter_xl")
    return build_sdxl(StableDiffusionXLAdapterPipeline, adapter=adapter)


PIPELINES = (
    TinyPipeline("sdxl", build_sdxl, lambda pipe: pooled_text(), "unet"),
    TinyPipeline(
        # The refiner is to do the rest.
        "sdxl_unfinished",
        build_sdxl,
        lambda pipe: pooled_text(denoising_end=0.75),
        "unet",
        steps=8,
    ),
    TinyPipeline(
        "sdxl_refiner_for_the_rest",
        build_sdxl_refiner,
        lambda pipe: pooled_text(image=noise(1, 4, SIZE, SIZE), denoising_start=0.25),
        "unet",
        steps=8,
    ),
    TinyPipeline(
        "kolors",
        build_kolors,
        lambda pipe: (
            pooled_text()
            | dict(
                prompt_embeds=noise(1, TEXT_LENGTH, 24, seed=1),
                negative_prompt_embeds=noise(1, TEXT_LENGTH, 24, seed=2),
            )
        ),
        "unet",
    ),
    TinyPipeline(
        "sdxl_img2img",
        lambda: build_sdxl(StableDiffusionXLImg2ImgPipeline),
        lambda pipe: pooled_text(image=image(), strength=0.8),
        "unet",
        steps=8,
    ),
    TinyPipeline("sdxl_refiner", build_sdxl_refiner, lambda pipe: pooled_text(image=image(), strength=0.8), "unet"),
    TinyPipeline(
        "sdxl_inpaint",
        build_sdxl_inpaint,
        lambda pipe: pooled_text(image=image(), mask_image=mask(), strength=0.99),
        "unet",
    ),
    TinyPipeline(
        # Three guidance branches in one batch.
        "sdxl_instruct_pix2pix",
        build_sdxl_instruct_pix2pix,
        lambda pipe: pooled_text(image=image(), height=PIXELS, width=PIXELS),
        "unet",
    ),
    TinyPipeline("sdxl_controlnet", build_sdxl_controlnet, lambda pipe: pooled_text(image=image()), "unet"),
    TinyPipeline(
        "sdxl_controlnet_img2img",
        lambda: build_sdxl_controlnet(StableDiffusionXLControlNetImg2ImgPipeline),
        lambda pipe: pooled_text(image=image(), control_image=image(seed=1), strength=0.8),
        "unet",
    ),
    TinyPipeline("sdxl_controlnet_xs", build_sdxl_controlnet_xs, lambda pipe: pooled_text(image=image()), "unet"),
    TinyPipeline(
        "sdxl_adapter",
        build_sdxl_adapter,
        lambda pipe: pooled_text(image=image(4 * SIZE), height=4 * SIZE, width=4 * SIZE),
        "unet",
    ),
)
