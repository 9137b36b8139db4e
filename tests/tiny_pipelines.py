"""Tiny random-weight pipelines, built offline: checkpoints' structure and schedulers, small widths.

`PIPELINES` holds the nine pipelines of the AsyncDiff paper, FLUX and PixArt. Prompts are embeddings, guidance is on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    ControlNetModel,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    MotionAdapter,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    StableVideoDiffusionPipeline,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from diffusers.utils import logging
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

logging.set_verbosity_error()  # the advice is for real checkpoints

STEPS = 5
SIZE = 16  # height and width of a picture's latents; half of it in videos
PIXELS = 2 * SIZE  # of the picture itself: a tiny VAE has one downsampling
TEXT_LENGTH = 7


@dataclass(frozen=True)
class TinyPipeline:
    """How to build one pipeline, always with the same weights, and what to call it with."""

    name: str
    build: Callable[[], DiffusionPipeline]
    inputs: Callable[[DiffusionPipeline], dict[str, Any]]
    denoiser: str


def run(pipe: DiffusionPipeline, tiny: TinyPipeline, **overrides: Any) -> torch.Tensor:
    """Call the pipeline on fresh inputs; its latents or pixels, whatever form it returns them in."""
    output = pipe(**tiny.inputs(pipe) | overrides)[0]
    return output if isinstance(output, torch.Tensor) else torch.from_numpy(np.stack(output))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def image(size: int = PIXELS, seed: int = 0) -> torch.Tensor:
    """Pixels in [0, 1], as every pipeline's image processor takes them."""
    return torch.rand((1, 3, size, size), generator=torch.Generator().manual_seed(seed))


def mask(size: int = PIXELS) -> torch.Tensor:
    """The left half is to be painted."""
    return (torch.arange(size) < size // 2).float().expand(1, 1, size, size)


@torch.no_grad()
def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Weights that keep magnitudes, with nothing at zero: zero-initialised layers would hide what is behind them."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            parameter.normal_(0.0, fan_in**-0.5, generator=generator)
        else:
            parameter.normal_(1.0 if name.endswith("weight") else 0.0, 0.1, generator=generator)


def assemble(pipeline: type[DiffusionPipeline], **components: Any) -> DiffusionPipeline:
    """The quiet pipeline of these components, their weights drawn anew."""
    pipe = pipeline(**components)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            randomise(component.eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_vae(latent_channels: int = 4, **config: Any) -> AutoencoderKL:
    return AutoencoderKL(
        **dict(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=latent_channels,
            norm_num_groups=4,
            sample_size=PIXELS,
            force_upcast=False,
        )
        | config
    )


def tiny_unet(**config: Any) -> UNet2DConditionModel:
    """As in SD 1.5: four levels, attention on all but the lowest; `config` makes another one of it."""
    return UNet2DConditionModel(
        **dict(
            sample_size=SIZE,
            block_out_channels=(16, 32, 32, 32),
            norm_num_groups=8,
            attention_head_dim=2,  # the number of heads, by its historical name
            cross_attention_dim=16,
        )
        | config
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


def tiny_motion_adapter() -> MotionAdapter:
    return MotionAdapter(
        block_out_channels=(16, 32, 32, 32),
        motion_num_attention_heads=2,
        motion_norm_num_groups=8,
        motion_max_seq_length=8,
    )


def tiny_sd3_transformer(**config: Any) -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        **dict(
            sample_size=SIZE,
            in_channels=4,
            out_channels=4,
            num_layers=6,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=16,
            caption_projection_dim=32,
            pooled_projection_dim=16,
            pos_embed_max_size=SIZE,
        )
        | config
    )


def tiny_flux_transformer(**config: Any) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        **dict(
            in_channels=16,
            num_layers=3,
            num_single_layers=4,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        )
        | config
    )


def tiny_image_encoder(projection_dim: int = 16) -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=PIXELS,
            patch_size=8,
            projection_dim=projection_dim,
        )
    )


STABLE_DIFFUSION_NOISE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)


def ddim(**config: Any) -> DDIMScheduler:
    return DDIMScheduler(**STABLE_DIFFUSION_NOISE, clip_sample=False, set_alpha_to_one=False, **config)


def euler() -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(**STABLE_DIFFUSION_NOISE)


TEXT_FREE_SD: dict[str, Any] = dict(
    text_encoder=None,
    tokenizer=None,
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
)
TEXT_FREE_SDXL: dict[str, Any] = dict(
    text_encoder=None,
    text_encoder_2=None,
    tokenizer=None,
    tokenizer_2=None,
    add_watermarker=False,
)
TEXT_FREE_SD3: dict[str, Any] = dict(
    text_encoder=None,
    text_encoder_2=None,
    text_encoder_3=None,
    tokenizer=None,
    tokenizer_2=None,
    tokenizer_3=None,
)
TEXT_FREE_FLUX: dict[str, Any] = dict(text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None)


def build_sd15() -> DiffusionPipeline:
    scheduler = PNDMScheduler(**STABLE_DIFFUSION_NOISE, skip_prk_steps=True)
    return assemble(StableDiffusionPipeline, vae=tiny_vae(), unet=tiny_unet(), scheduler=scheduler, **TEXT_FREE_SD)


def build_sd21() -> DiffusionPipeline:
    unet = tiny_unet(attention_head_dim=(2, 4, 4, 4), use_linear_projection=True)
    scheduler = ddim(prediction_type="v_prediction")
    return assemble(StableDiffusionPipeline, vae=tiny_vae(), unet=unet, scheduler=scheduler, **TEXT_FREE_SD)


def build_sdxl() -> DiffusionPipeline:
    return assemble(
        StableDiffusionXLPipeline, vae=tiny_vae(), unet=tiny_sdxl_unet(), scheduler=euler(), **TEXT_FREE_SDXL
    )


def build_sdxl_inpaint() -> DiffusionPipeline:
    unet = tiny_sdxl_unet(in_channels=9)  # latents, mask and masked picture
    return assemble(StableDiffusionXLInpaintPipeline, vae=tiny_vae(), unet=unet, scheduler=euler(), **TEXT_FREE_SDXL)


def build_sdxl_controlnet() -> DiffusionPipeline:
    unet = tiny_sdxl_unet()
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16))
    return assemble(
        StableDiffusionXLControlNetPipeline,
        vae=tiny_vae(),
        unet=unet,
        controlnet=controlnet,
        scheduler=euler(),
        **TEXT_FREE_SDXL,
    )


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


def build_sd3() -> DiffusionPipeline:
    return assemble(
        StableDiffusion3Pipeline,
        vae=tiny_vae(),
        transformer=tiny_sd3_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        **TEXT_FREE_SD3,
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


def build_flux() -> DiffusionPipeline:
    return assemble(
        FluxPipeline,
        vae=tiny_vae(),
        transformer=tiny_flux_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        **TEXT_FREE_FLUX,
    )


def build_pixart() -> DiffusionPipeline:
    transformer = PixArtTransformer2DModel(
        sample_size=SIZE,
        num_layers=4,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        caption_channels=16,
        out_channels=8,  # noise and its variance
        norm_type="ada_norm_single",
    )
    return assemble(
        PixArtAlphaPipeline,
        tokenizer=None,
        text_encoder=None,
        vae=tiny_vae(),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(),
    )


def sampling(**extra: Any) -> dict[str, Any]:
    """What every pipeline's call takes."""
    return {
        "num_inference_steps": STEPS,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "latent",
        **extra,
    }


def text(**extra: Any) -> dict[str, Any]:
    """A prompt and a negative prompt, for guidance."""
    return sampling(
        prompt_embeds=noise(1, TEXT_LENGTH, 16, seed=1),
        negative_prompt_embeds=noise(1, TEXT_LENGTH, 16, seed=2),
        guidance_scale=5.0,
        **extra,
    )


def pooled_text(**extra: Any) -> dict[str, Any]:
    return text(pooled_prompt_embeds=noise(1, 16, seed=3), negative_pooled_prompt_embeds=noise(1, 16, seed=4), **extra)


def flux_text(**extra: Any) -> dict[str, Any]:
    """A prompt alone: the guidance scale is an input of the denoiser."""
    return sampling(
        prompt_embeds=noise(1, TEXT_LENGTH, 16, seed=1),
        pooled_prompt_embeds=noise(1, 16, seed=3),
        guidance_scale=3.5,
        height=PIXELS,
        width=PIXELS,
        **extra,
    )


def masked_text(**extra: Any) -> dict[str, Any]:
    """Attention masks tell words from padding."""
    words = torch.ones(1, TEXT_LENGTH, dtype=torch.int64)
    words[:, -2:] = 0
    return text(negative_prompt=None, prompt_attention_mask=words, negative_prompt_attention_mask=words, **extra)


PIPELINES: dict[str, TinyPipeline] = {
    tiny.name: tiny
    for tiny in (
        TinyPipeline("sd15", build_sd15, lambda pipe: text(), "unet"),
        TinyPipeline("sd21", build_sd21, lambda pipe: text(), "unet"),
        TinyPipeline("sdxl", build_sdxl, lambda pipe: pooled_text(), "unet"),
        TinyPipeline(
            "sdxl_inpaint",
            build_sdxl_inpaint,
            lambda pipe: pooled_text(image=image(), mask_image=mask(), strength=0.99),
            "unet",
        ),
        TinyPipeline("sdxl_controlnet", build_sdxl_controlnet, lambda pipe: pooled_text(image=image()), "unet"),
        TinyPipeline("x4_upscaler", build_x4_upscaler, lambda pipe: text(image=image(SIZE)), "unet"),
        TinyPipeline("sd3", build_sd3, lambda pipe: pooled_text(), "transformer"),
        TinyPipeline("svd", build_svd, lambda pipe: sampling(image=image(), height=SIZE, width=SIZE), "unet"),
        TinyPipeline("animatediff", build_animatediff, lambda pipe: text(num_frames=4), "unet"),
        TinyPipeline("flux", build_flux, lambda pipe: flux_text(), "transformer"),
        TinyPipeline("pixart", build_pixart, lambda pipe: masked_text(use_resolution_binning=False), "transformer"),
    )
}
