"""FLUX.1 and what was made of it."""

from typing import Any

from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxControlInpaintPipeline,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxControlPipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)

from tests.tiny.base import PIXELS, TEXT_LENGTH, TinyPipeline, assemble, image, mask, noise, sampling, tiny_vae

TEXT_FREE_FLUX: dict[str, Any] = dict(text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None)

FLUX_WIDTHS: dict[str, Any] = dict(
    in_channels=16,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=16,
    pooled_projection_dim=16,
    guidance_embeds=True,
    axes_dims_rope=(4, 6, 6),
)


def tiny_flux_transformer(**config: Any) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(**FLUX_WIDTHS | dict(num_layers=3, num_single_layers=4) | config)


def build_flux(pipeline: type[DiffusionPipeline] = FluxPipeline, **components: Any) -> DiffusionPipeline:
    return assemble(
        pipeline,
        **dict(
            vae=tiny_vae(shift_factor=0.1),
            transformer=tiny_flux_transformer(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        )
        | TEXT_FREE_FLUX
        | components,
    )


def build_flux_schnell() -> DiffusionPipeline:
    """Without an input for the guidance scale; its scheduler does not shift."""
    return build_flux(
        transformer=tiny_flux_transformer(guidance_embeds=False), scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0)
    )


def build_flux_fill() -> DiffusionPipeline:
    """The denoiser reads latents, the masked picture's latents, and the mask, a channel for each pixel of a latent."""
    return build_flux(FluxFillPipeline, transformer=tiny_flux_transformer(in_channels=3 * 16, out_channels=16))


def build_flux_control(pipeline: type[DiffusionPipeline] = FluxControlPipeline) -> DiffusionPipeline:
    """The denoiser reads the control picture beside the latents."""
    return build_flux(pipeline, transformer=tiny_flux_transformer(in_channels=2 * 16, out_channels=16))


def build_flux_controlnet() -> DiffusionPipeline:
    """A union of ControlNets, as shallow as they are for FLUX."""
    controlnet = FluxControlNetModel(**FLUX_WIDTHS | dict(num_layers=2, num_single_layers=1, num_mode=3))
    return build_flux(FluxControlNetPipeline, controlnet=controlnet)


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


def flux_negative_text(**extra: Any) -> dict[str, Any]:
    """A prompt and a negative prompt: two calls in every step."""
    return flux_text(
        negative_prompt_embeds=noise(1, TEXT_LENGTH, 16, seed=2),
        negative_pooled_prompt_embeds=noise(1, 16, seed=4),
        true_cfg_scale=4.0,
        **extra,
    )


PIPELINES = (
    TinyPipeline("flux", build_flux, lambda pipe: flux_text(), "transformer"),
    TinyPipeline("flux_schnell", build_flux_schnell, lambda pipe: flux_text(), "transformer"),
    TinyPipeline("flux_true_cfg", build_flux, lambda pipe: flux_negative_text(), "transformer"),
    TinyPipeline(
        "flux_img2img",
        lambda: build_flux(FluxImg2ImgPipeline),
        lambda pipe: flux_text(image=image(), strength=0.8),
        "transformer",
    ),
    TinyPipeline(
        "flux_inpaint",
        lambda: build_flux(FluxInpaintPipeline),
        lambda pipe: flux_text(image=image(), mask_image=mask(), strength=0.8),
        "transformer",
    ),
    TinyPipeline("flux_fill", build_flux_fill, lambda pipe: flux_text(image=image(), mask_image=mask()), "transformer"),
    TinyPipeline("flux_control", build_flux_control, lambda pipe: flux_text(control_image=image()), "transformer"),
    TinyPipeline(
        "flux_control_inpaint",
        lambda: build_flux_control(FluxControlInpaintPipeline),
        lambda pipe: flux_text(image=image(), mask_image=mask(), control_image=image(seed=1), strength=0.8),
        "transformer",
    ),
    TinyPipeline(
        "flux_controlnet",
        build_flux_controlnet,
        lambda pipe: flux_text(control_image=image(), control_mode=1),
        "transformer",
    ),
    TinyPipeline(
        # Two calls in every step that no context tells apart.
        "flux_controlnet_true_cfg",
        build_flux_controlnet,
        lambda pipe: flux_negative_text(control_image=image(), control_mode=1),
        "transformer",
    ),
    TinyPipeline(
        "flux_kontext",
        lambda: build_flux(FluxKontextPipeline),
        lambda pipe: flux_negative_text(image=image(), max_area=PIXELS**2, _auto_resize=False),
        "transformer",
    ),
)
