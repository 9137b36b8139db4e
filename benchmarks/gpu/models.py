"""The denoisers that are measured: their published configurations, with random weights."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
    WanTransformer3DModel,
)
from torch import Tensor, nn

Config = dict[str, Any]
Shape = tuple[int, ...]


def noise_scheduler() -> Any:
    """That of Stable Diffusion, with Euler's method."""
    return EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )


def flow_scheduler() -> Any:
    """That of flow models."""
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


@dataclass(frozen=True)
class Subject:
    """One denoiser, and how it is called.

    Attributes:
        title: the model's name, and what is made.
        kind: the denoiser's class.
        part: the pipeline's name for it.
        main: the name of the argument that is denoised.
        config: the arguments with which it is made.
        tiny: those that are others where only the structure matters.
        latents, tiny_latents: the shape of one picture's latents, without the batch.
        tokens: of text.
        batch: of one call; two are both branches of the guidance.
        steps: of a generation.
        parameters: as published.
        arguments: what it is given beside the latents and the timestep, for a batch.
        seconds: what measuring it takes on a fast GPU, roughly; the time that there is is shared out by it.
        scheduler: makes the scheduler.
        blocks: the classes of the modules that are compiled, where the class itself does not say.
    """

    title: str
    kind: Callable[..., nn.Module]
    part: str
    main: str
    config: Config
    tiny: Config
    latents: Shape
    tiny_latents: Shape
    tokens: int
    batch: int
    steps: int
    parameters: int
    arguments: Callable[[Config, Shape, int, int], dict[str, Any]]
    seconds: float
    scheduler: Callable[[], Any] = noise_scheduler
    blocks: tuple[str, ...] = ()


def build(subject: Subject, config: Config, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A denoiser with random weights, made where it is used; what diffusers keeps in single precision is so here."""
    with _defaults(device, dtype):
        denoiser = subject.kind(**config)
    denoiser = denoiser.to(device).eval().requires_grad_(False)
    kept = set(getattr(denoiser, "_keep_in_fp32_modules", None) or ())
    for name, parameter in denoiser.named_parameters():
        if kept & set(name.split(".")):
            parameter.data = parameter.data.float()
    return denoiser


def parameters_of(subject: Subject) -> int:
    """How many parameters the real denoiser has; no memory is taken for them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in subject.kind(**subject.config).parameters())


@contextmanager
def _defaults(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def _text(config: Config, latents: Shape, tokens: int, batch: int) -> dict[str, Any]:
    return {"encoder_hidden_states": torch.randn(batch, tokens, config["cross_attention_dim"])}


def _sdxl(config: Config, latents: Shape, tokens: int, batch: int) -> dict[str, Any]:
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    added = {"text_embeds": torch.randn(batch, pooled), "time_ids": torch.full((batch, 6), 512.0)}
    return {**_text(config, latents, tokens, batch), "added_cond_kwargs": added}


def _svd(config: Config, latents: Shape, tokens: int, batch: int) -> dict[str, Any]:
    return {**_text(config, latents, tokens, batch), "added_time_ids": torch.tensor([[6.0, 127.0, 0.02]] * batch)}


def _sd3(config: Config, latents: Shape, tokens: int, batch: int) -> dict[str, Any]:
    return {
        "encoder_hidden_states": torch.randn(batch, tokens, config["joint_attention_dim"]),
        "pooled_projections": torch.randn(batch, config["pooled_projection_dim"]),
    }


def _flux(config: Config, latents: Shape, tokens: int, batch: int) -> dict[str, Any]:
    side = math.isqrt(latents[0])
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3)
    return {
        **_sd3(config, latents, tokens, batch),
        "guidance": torch.full((batch,), 3.5, dtype=torch.float32),
        "txt_ids": torch.zeros(tokens, 3),
        "img_ids": places.to(torch.get_default_dtype()),
    }


def _pixart(config: Config, latents: Shape, tokens: int, batch: int) -> dict[str, Any]:
    return {
        "encoder_hidden_states": torch.randn(batch, tokens, config["caption_channels"]),
        "encoder_attention_mask": torch.ones(batch, tokens),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def _wan(config: Config, latents: Shape, tokens: int, batch: int) -> dict[str, Any]:
    return {"encoder_hidden_states": torch.randn(batch, tokens, config["text_dim"])}


def arguments_of(
    subject: Subject, config: Config, latents: Shape, tokens: int, batch: int, device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, Any], Tensor | None]:
    """What a denoiser is given in every call, and what is put beside the latents' channels, if anything is."""
    with _defaults(device, dtype):
        torch.manual_seed(0)
        given = subject.arguments(config, latents, tokens, batch)
        is_wider = subject.kind is UNetSpatioTemporalConditionModel
        return given, torch.randn(batch, *latents) if is_wider else None


SUBJECTS = {
    "sdxl": Subject(
        title="SDXL, 1024²",
        kind=UNet2DConditionModel,
        part="unet",
        main="sample",
        config=dict(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
        tiny=dict(
            block_out_channels=(32, 64, 64),
            transformer_layers_per_block=(1, 2, 3),
            attention_head_dim=(2, 4, 4),
            cross_attention_dim=32,
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=80,
        ),
        latents=(4, 128, 128),
        tiny_latents=(4, 16, 16),
        tokens=77,
        batch=2,
        steps=50,
        parameters=2_567_463_684,
        arguments=_sdxl,
        seconds=50.0,
    ),
    "flux": Subject(
        title="FLUX.1 dev, 1024²",
        kind=FluxTransformer2DModel,
        part="transformer",
        main="hidden_states",
        config=dict(guidance_embeds=True, joint_attention_dim=4096, pooled_projection_dim=768),
        tiny=dict(
            num_attention_heads=2,
            attention_head_dim=16,
            axes_dims_rope=(4, 6, 6),
            joint_attention_dim=32,
            pooled_projection_dim=32,
        ),
        latents=(4096, 64),
        tiny_latents=(64, 64),
        tokens=512,
        batch=1,
        steps=28,
        parameters=11_901_408_320,
        arguments=_flux,
        scheduler=flow_scheduler,
        seconds=95.0,
    ),
    "sd15": Subject(
        title="Stable Diffusion 1.5, 512²",
        kind=UNet2DConditionModel,
        part="unet",
        main="sample",
        config=dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        tiny=dict(block_out_channels=(32, 32, 64, 64), cross_attention_dim=32),
        latents=(4, 64, 64),
        tiny_latents=(4, 16, 16),
        tokens=77,
        batch=2,
        steps=50,
        parameters=859_520_964,
        arguments=_text,
        seconds=45.0,
    ),
    "sd3": Subject(
        title="Stable Diffusion 3 medium, 1024²",
        kind=SD3Transformer2DModel,
        part="transformer",
        main="hidden_states",
        config=dict(
            num_layers=24,
            num_attention_heads=24,
            caption_projection_dim=1536,
            joint_attention_dim=4096,
            pooled_projection_dim=2048,
            pos_embed_max_size=192,
        ),
        tiny=dict(
            sample_size=16,
            num_layers=6,
            num_attention_heads=2,
            attention_head_dim=16,
            caption_projection_dim=32,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            pos_embed_max_size=16,
        ),
        latents=(16, 128, 128),
        tiny_latents=(16, 16, 16),
        tokens=333,
        batch=2,
        steps=28,
        parameters=2_028_328_000,
        arguments=_sd3,
        scheduler=flow_scheduler,
        blocks=("JointTransformerBlock",),
        seconds=60.0,
    ),
    "wan": Subject(
        title="Wan 2.1 1.3B, 480p, 81 frames",
        kind=WanTransformer3DModel,
        part="transformer",
        main="hidden_states",
        config=dict(num_attention_heads=12, ffn_dim=8960, num_layers=30, text_dim=4096),
        tiny=dict(num_attention_heads=2, attention_head_dim=12, ffn_dim=64, num_layers=6, text_dim=32),
        latents=(16, 21, 60, 104),
        tiny_latents=(16, 3, 8, 8),
        tokens=512,
        batch=1,
        steps=50,
        parameters=1_418_996_800,
        arguments=_wan,
        scheduler=flow_scheduler,
        seconds=105.0,
    ),
    "svd": Subject(
        title="Stable Video Diffusion, 576×1024, 25 frames",
        kind=UNetSpatioTemporalConditionModel,
        part="unet",
        main="sample",
        config=dict(sample_size=96, cross_attention_dim=1024),
        tiny=dict(block_out_channels=(32, 32, 64, 64), num_attention_heads=(2, 2, 4, 4), cross_attention_dim=32),
        latents=(25, 4, 72, 128),
        tiny_latents=(3, 4, 16, 16),
        tokens=1,
        batch=2,
        steps=50,
        parameters=1_524_623_082,
        arguments=_svd,
        blocks=("BasicTransformerBlock", "TemporalBasicTransformerBlock"),
        seconds=95.0,
    ),
    "pixart": Subject(
        title="PixArt-Σ, 1024²",
        kind=PixArtTransformer2DModel,
        part="transformer",
        main="hidden_states",
        config=dict(
            sample_size=128,
            caption_channels=4096,
            cross_attention_dim=1152,
            interpolation_scale=2,
            use_additional_conditions=False,
        ),
        tiny=dict(
            sample_size=16,
            num_layers=6,
            num_attention_heads=2,
            attention_head_dim=16,
            cross_attention_dim=32,
            caption_channels=32,
        ),
        latents=(4, 128, 128),
        tiny_latents=(4, 16, 16),
        tokens=300,
        batch=2,
        steps=50,
        parameters=610_856_096,
        arguments=_pixart,
        blocks=("BasicTransformerBlock",),
        seconds=55.0,
    ),
    "sd21": Subject(
        title="Stable Diffusion 2.1, 768²",
        kind=UNet2DConditionModel,
        part="unet",
        main="sample",
        config=dict(
            sample_size=96,
            cross_attention_dim=1024,
            attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True,
            upcast_attention=True,
        ),
        tiny=dict(block_out_channels=(32, 32, 64, 64), attention_head_dim=(2, 2, 4, 4), cross_attention_dim=32),
        latents=(4, 96, 96),
        tiny_latents=(4, 16, 16),
        tokens=77,
        batch=2,
        steps=50,
        parameters=865_910_724,
        arguments=_text,
        seconds=36.0,
    ),
}
"""By name, the most important first."""
