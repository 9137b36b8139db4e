"""diffusers' modular pipelines whose denoiser is a transformer: blocks and a guider in place of one long call."""

from typing import Any

import diffusers
import torch
from diffusers import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    FluxAutoBlocks,
    FluxKontextAutoBlocks,
    LoopSequentialPipelineBlocks,
    ModularPipeline,
    ModularPipelineBlocks,
    PerturbedAttentionGuidance,
    QwenImageAutoBlocks,
    SkipLayerGuidance,
    UniPCMultistepScheduler,
    Wan22Blocks,
    WanBlocks,
    WanTransformer3DModel,
    ZImageAutoBlocks,
)
from diffusers.guiders import BaseGuidance
from diffusers.hooks import LayerSkipConfig

from tests.tiny.base import PIXELS, TEXT_LENGTH, TinyPipeline, image, noise, randomise, tiny_vae
from tests.tiny.flow_transformers import tiny_z_image_transformer
from tests.tiny.flux import tiny_flux_transformer
from tests.tiny.pictures import picture
from tests.tiny.qwen_image import tiny_qwen_transformer, tiny_qwen_vae
from tests.tiny.sd3 import tiny_sd3_transformer


def build(
    kind: type[ModularPipelineBlocks], left_out: tuple[str, ...] = ("text_encoder", "decode"), **components: Any
) -> ModularPipeline:
    """The pipeline of the blocks from prompt embeddings to latents, the weights of its components drawn anew."""
    blocks = kind()
    for name in left_out:
        blocks.sub_blocks.pop(name)
    silence(blocks)
    pipe = blocks.init_pipeline()
    pipe.update_components(**components)
    for component in components.values():
        if isinstance(component, torch.nn.Module):
            randomise(component.eval())
    return pipe


def silence(blocks: ModularPipelineBlocks) -> None:
    """No progress bars: the pipeline's own method reaches the outermost blocks only."""
    if isinstance(blocks, LoopSequentialPipelineBlocks):
        blocks.set_progress_bar_config(disable=True)
    for block in blocks.sub_blocks.values():
        silence(block)


def shifting() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def build_flux(kind: type[ModularPipelineBlocks] = FluxAutoBlocks) -> ModularPipeline:
    return build(kind, vae=tiny_vae(shift_factor=0.1), transformer=tiny_flux_transformer(), scheduler=shifting())


def build_qwen_image(guider: BaseGuidance) -> ModularPipeline:
    return build(
        QwenImageAutoBlocks,
        vae=tiny_qwen_vae(),
        transformer=tiny_qwen_transformer(),
        scheduler=shifting(),
        guider=guider,
    )


def build_sd3(guider: BaseGuidance) -> ModularPipeline:
    return build(
        diffusers.StableDiffusion3AutoBlocks,
        vae=tiny_vae(shift_factor=0.06),
        transformer=tiny_sd3_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        guider=guider,
    )


def build_z_image(guider: BaseGuidance) -> ModularPipeline:
    return build(
        ZImageAutoBlocks,
        vae=tiny_vae(shift_factor=0.1),
        transformer=tiny_z_image_transformer(),
        scheduler=shifting(),
        guider=guider,
    )


def tiny_wan_transformer() -> WanTransformer3DModel:
    return WanTransformer3DModel(
        in_channels=16,
        out_channels=16,
        num_layers=4,
        num_attention_heads=2,
        attention_head_dim=16,
        text_dim=16,
        freq_dim=16,
        ffn_dim=64,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )


def wan_scheduler() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def build_wan(guider: BaseGuidance) -> ModularPipeline:
    return build(WanBlocks, transformer=tiny_wan_transformer(), scheduler=wan_scheduler(), guider=guider)


def build_wan22() -> ModularPipeline:
    """One denoiser for the first steps, another for the last ones, each with a guider of its own."""
    return build(
        Wan22Blocks,
        transformer=tiny_wan_transformer(),
        transformer_2=tiny_wan_transformer(),
        scheduler=wan_scheduler(),
        guider=ClassifierFreeGuidance(4.0),
        guider_2=ClassifierFreeGuidance(3.0),
        boundary_ratio=0.75,
    )


def sampling(**extra: Any) -> dict[str, Any]:
    return {
        "num_inference_steps": 5,
        "generator": torch.Generator().manual_seed(0),
        "output": "latents",
        "prompt_embeds": noise(1, TEXT_LENGTH, 16, seed=1),
        "height": PIXELS,
        "width": PIXELS,
        **extra,
    }


def pooled(**extra: Any) -> dict[str, Any]:
    return sampling(pooled_prompt_embeds=noise(1, 16, seed=3), **extra)


def guided(**extra: Any) -> dict[str, Any]:
    return sampling(negative_prompt_embeds=noise(1, TEXT_LENGTH, 16, seed=2), **extra)


def masked(**extra: Any) -> dict[str, Any]:
    words = torch.ones(1, TEXT_LENGTH, dtype=torch.int64)
    return guided(prompt_embeds_mask=words, negative_prompt_embeds_mask=words.clone(), **extra)


def pooled_guided(**extra: Any) -> dict[str, Any]:
    negative = noise(1, 16, seed=4)
    return guided(pooled_prompt_embeds=noise(1, 16, seed=3), negative_pooled_prompt_embeds=negative, **extra)


def listed(**extra: Any) -> dict[str, Any]:
    """Prompts in lists."""
    words, negative = noise(TEXT_LENGTH, 16, seed=1), noise(TEXT_LENGTH, 16, seed=2)
    return sampling(**dict(prompt_embeds=[words], negative_prompt_embeds=[negative]) | extra)


PIPELINES = (
    TinyPipeline("modular_flux", build_flux, lambda pipe: pooled(guidance_scale=3.5), "transformer"),
    TinyPipeline(
        "modular_flux_img2img",
        build_flux,
        lambda pipe: pooled(guidance_scale=3.5, image=image(), strength=0.8),
        "transformer",
    ),
    TinyPipeline(
        "modular_flux_kontext",
        lambda: build_flux(FluxKontextAutoBlocks),
        lambda pipe: pooled(guidance_scale=3.5, image=picture(PIXELS), _auto_resize=False, max_area=PIXELS**2),
        "transformer",
    ),
    TinyPipeline(
        "modular_qwen_image",
        lambda: build_qwen_image(ClassifierFreeGuidance(4.0)),
        lambda pipe: masked(),
        "transformer",
    ),
    TinyPipeline(
        # One call in the first step, two in the middle, one in the last.
        "modular_qwen_image_interval",
        lambda: build_qwen_image(ClassifierFreeGuidance(4.0, start=0.1, stop=0.9)),
        lambda pipe: masked(),
        "transformer",
    ),
    TinyPipeline(
        "modular_sd3",
        lambda: build_sd3(ClassifierFreeGuidance(4.0)),
        lambda pipe: pooled_guided(),
        "transformer",
        needs=("StableDiffusion3AutoBlocks",),
    ),
    TinyPipeline(
        # A third call, in which hooks on two blocks make them pass on what they are given.
        "modular_sd3_skip_layers",
        lambda: build_sd3(
            SkipLayerGuidance(
                4.0, skip_layer_config=LayerSkipConfig([2, 3], "transformer_blocks"), skip_layer_guidance_stop=0.9
            )
        ),
        lambda pipe: pooled_guided(),
        "transformer",
        needs=("StableDiffusion3AutoBlocks",),
    ),
    TinyPipeline(
        "modular_z_image", lambda: build_z_image(ClassifierFreeGuidance(4.0)), lambda pipe: listed(), "transformer"
    ),
    TinyPipeline(
        # A third call, in which hooks take the attention out of a block.
        "modular_z_image_perturbed",
        lambda: build_z_image(
            PerturbedAttentionGuidance(
                4.0,
                perturbed_guidance_config=LayerSkipConfig([2], "layers", False, True, False),
                perturbed_guidance_scale=0.5,
                perturbed_guidance_stop=0.9,
            )
        ),
        lambda pipe: listed(),
        "transformer",
    ),
    TinyPipeline(
        "modular_wan",
        lambda: build_wan(ClassifierFreeGuidance(4.0)),
        lambda pipe: guided(num_frames=5, height=64, width=64),
        "transformer",
    ),
    TinyPipeline(
        # Guidance with the momentum of the steps before.
        "modular_wan_projected",
        lambda: build_wan(AdaptiveProjectedGuidance(4.0, adaptive_projected_guidance_momentum=-0.5)),
        lambda pipe: guided(num_frames=5, height=64, width=64),
        "transformer",
    ),
    TinyPipeline(
        "modular_wan22",
        build_wan22,
        lambda pipe: guided(num_frames=5, height=64, width=64),
        "transformer",
        others=("transformer_2",),
        steps=10,
    ),
)
