"""Other image pipelines whose denoiser is a transformer and whose noise is that of diffusion, and Sana."""

from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    CogVideoXDDIMScheduler,
    CogView3PlusPipeline,
    CogView3PlusTransformer2DModel,
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    HunyuanDiT2DControlNetModel,
    HunyuanDiT2DModel,
    HunyuanDiTControlNetPipeline,
    HunyuanDiTPAGPipeline,
    HunyuanDiTPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPAGPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaControlNetModel,
    SanaControlNetPipeline,
    SanaPAGPipeline,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
)

from tests.tiny.base import (
    PIXELS,
    SIZE,
    TEXT_LENGTH,
    TinyPipeline,
    assemble,
    image,
    masked_text,
    noise,
    sampling,
    text,
    tiny_vae,
)
from tests.tiny.pictures import seeded


def build_pixart(pipeline: type[DiffusionPipeline] = PixArtAlphaPipeline, **extra: Any) -> DiffusionPipeline:
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
        pipeline,
        tokenizer=None,
        text_encoder=None,
        vae=tiny_vae(),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(),
        **extra,
    )


SANA_WIDTHS: dict[str, Any] = dict(
    sample_size=SIZE,
    in_channels=4,
    out_channels=4,
    num_attention_heads=2,
    attention_head_dim=16,
    num_cross_attention_heads=2,
    cross_attention_head_dim=16,
    cross_attention_dim=32,
    caption_channels=16,
)


def build_sana(
    pipeline: type[DiffusionPipeline] = SanaPipeline, config: dict[str, Any] | None = None, **components: Any
) -> DiffusionPipeline:
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
    )
    return assemble(
        pipeline,
        **dict(
            tokenizer=None,
            text_encoder=None,
            vae=vae,
            transformer=SanaTransformer2DModel(**SANA_WIDTHS | dict(num_layers=4) | (config or {})),
            scheduler=DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        )
        | components,
    )


def sana_text(**extra: Any) -> dict[str, Any]:
    return masked_text(height=PIXELS, width=PIXELS, use_resolution_binning=False, **extra)


def build_sana_sprint() -> DiffusionPipeline:
    """Few steps, the guidance scale an input of the denoiser, fresh noise in every step."""
    return build_sana(
        SanaSprintPipeline, dict(guidance_embeds=True, qk_norm="rms_norm_across_heads"), scheduler=SCMScheduler()
    )


def sprint_text(**extra: Any) -> dict[str, Any]:
    """A prompt alone."""
    return sampling(
        prompt_embeds=noise(1, TEXT_LENGTH, 16, seed=1),
        prompt_attention_mask=torch.ones(1, TEXT_LENGTH, dtype=torch.int64),
        intermediate_timesteps=None,
        guidance_scale=4.5,
        height=PIXELS,
        width=PIXELS,
        use_resolution_binning=False,
        **extra,
    )


HUNYUAN_WIDTHS: dict[str, Any] = dict(
    sample_size=SIZE,
    in_channels=4,
    patch_size=2,
    num_attention_heads=2,
    attention_head_dim=16,
    hidden_size=32,
    cross_attention_dim=16,
    cross_attention_dim_t5=16,
    pooled_projection_dim=16,
    text_len=TEXT_LENGTH,
    text_len_t5=TEXT_LENGTH,
)


def build_hunyuan_dit(pipeline: type[DiffusionPipeline] = HunyuanDiTPipeline, **components: Any) -> DiffusionPipeline:
    """The second half of the blocks also reads what the first half has made; the VAE makes pictures 8 times smaller."""
    levels = 4
    vae = tiny_vae(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
    )
    return assemble(
        pipeline,
        vae=vae,
        transformer=HunyuanDiT2DModel(**HUNYUAN_WIDTHS | dict(num_layers=6)),
        scheduler=DDPMScheduler(
            beta_schedule="scaled_linear", beta_end=0.03, prediction_type="v_prediction", clip_sample=False
        ),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **components,
    )


def build_hunyuan_dit_controlnet() -> DiffusionPipeline:
    config = HUNYUAN_WIDTHS | dict(transformer_num_layers=6)
    return build_hunyuan_dit(HunyuanDiTControlNetPipeline, controlnet=HunyuanDiT2DControlNetModel(**config))


def hunyuan_text(**extra: Any) -> dict[str, Any]:
    """Words as two encoders read them, each with its mask."""
    words = masked_text()
    second = {
        "prompt_embeds_2": noise(1, TEXT_LENGTH, 16, seed=5),
        "negative_prompt_embeds_2": noise(1, TEXT_LENGTH, 16, seed=6),
        "prompt_attention_mask_2": words["prompt_attention_mask"],
        "negative_prompt_attention_mask_2": words["negative_prompt_attention_mask"],
    }
    return words | second | dict(height=8 * SIZE, width=8 * SIZE, use_resolution_binning=False) | extra


def build_dit() -> DiffusionPipeline:
    transformer = DiTTransformer2DModel(
        sample_size=SIZE,
        in_channels=4,
        out_channels=8,
        num_layers=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_embeds_ada_norm=1000,
    )
    return assemble(DiTPipeline, transformer=transformer, vae=tiny_vae(), scheduler=DPMSolverMultistepScheduler())


def classes(**extra: Any) -> dict[str, Any]:
    return {
        "class_labels": [3, 7],
        "num_inference_steps": 5,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "np",
        "guidance_scale": 4.0,
        **extra,
    }


def build_cogview3plus() -> DiffusionPipeline:
    transformer = CogView3PlusTransformer2DModel(
        sample_size=SIZE,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        num_attention_heads=2,
        attention_head_dim=16,
        text_embed_dim=16,
        time_embed_dim=16,
        condition_dim=4,
        pos_embed_max_size=SIZE,
    )
    return assemble(
        CogView3PlusPipeline,
        tokenizer=None,
        text_encoder=None,
        vae=tiny_vae(),
        transformer=transformer,
        scheduler=CogVideoXDDIMScheduler(),
    )


PIPELINES = (
    TinyPipeline("pixart", build_pixart, lambda pipe: masked_text(use_resolution_binning=False), "transformer"),
    TinyPipeline(
        "pixart_sigma",
        lambda: build_pixart(PixArtSigmaPipeline),
        lambda pipe: masked_text(use_resolution_binning=False),
        "transformer",
    ),
    TinyPipeline(
        "pixart_sigma_pag",
        lambda: build_pixart(PixArtSigmaPAGPipeline, pag_applied_layers=["blocks.1"]),
        lambda pipe: masked_text(use_resolution_binning=False, pag_scale=3.0),
        "transformer",
    ),
    TinyPipeline("sana", build_sana, lambda pipe: sana_text(), "transformer"),
    TinyPipeline(
        "sana_pag",
        lambda: build_sana(SanaPAGPipeline, pag_applied_layers=["transformer_blocks.1"]),
        lambda pipe: sana_text(pag_scale=3.0),
        "transformer",
    ),
    TinyPipeline(
        "sana_controlnet",
        lambda: build_sana(SanaControlNetPipeline, controlnet=SanaControlNetModel(**SANA_WIDTHS | dict(num_layers=2))),
        lambda pipe: sana_text(control_image=image()),
        "transformer",
    ),
    TinyPipeline("sana_sprint", build_sana_sprint, lambda pipe: sprint_text(), "transformer"),
    TinyPipeline("hunyuan_dit", build_hunyuan_dit, lambda pipe: hunyuan_text(), "transformer"),
    TinyPipeline(
        "hunyuan_dit_pag",
        lambda: build_hunyuan_dit(HunyuanDiTPAGPipeline, pag_applied_layers=["blocks.1"]),
        lambda pipe: hunyuan_text(pag_scale=3.0),
        "transformer",
    ),
    TinyPipeline(
        "hunyuan_dit_controlnet",
        build_hunyuan_dit_controlnet,
        lambda pipe: seeded(hunyuan_text(control_image=image(8 * SIZE))),
        "transformer",
    ),
    TinyPipeline("dit", build_dit, lambda pipe: classes(), "transformer"),
    TinyPipeline("cogview3plus", build_cogview3plus, lambda pipe: text(height=PIXELS, width=PIXELS), "transformer"),
)
