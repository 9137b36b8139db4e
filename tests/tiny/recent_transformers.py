"""Image pipelines of transformers of the years 2025 and 2026, to latents: without text encoders and VAEs."""

from typing import Any

import diffusers
import torch
from diffusers import (
    AdaptiveProjectedMixGuidance,
    BriaPipeline,
    BriaTransformer2DModel,
    DiffusionPipeline,
    ErnieImagePipeline,
    ErnieImageTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    GlmImagePipeline,
    GlmImageTransformer2DModel,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
    LongCatImagePipeline,
    LongCatImageTransformer2DModel,
    NucleusMoEImagePipeline,
    NucleusMoEImageTransformer2DModel,
    OvisImagePipeline,
    OvisImageTransformer2DModel,
    PRXPipeline,
    PRXTransformer2DModel,
)

from tests.tiny.base import SIZE, TEXT_LENGTH, TinyPipeline, assemble, masked_text, noise, sampling, text, tiny_vae

HEADS: dict[str, Any] = dict(attention_head_dim=16, num_attention_heads=2)
ROPE = (4, 6, 6)
TWO_STREAMS: dict[str, Any] = HEADS | dict(
    num_layers=2, num_single_layers=4, joint_attention_dim=16, axes_dims_rope=list(ROPE)
)


def build(
    pipeline: type[DiffusionPipeline], transformer: torch.nn.Module, *empty: str, **given: Any
) -> DiffusionPipeline:
    """A pipeline whose other parts are left empty."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    parts = dict.fromkeys(("vae", "text_encoder", *empty))
    return assemble(pipeline, **parts | dict(transformer=transformer, scheduler=scheduler) | given)


def build_bria() -> DiffusionPipeline:
    transformer = BriaTransformer2DModel(in_channels=16, **TWO_STREAMS)
    return build(BriaPipeline, transformer, "tokenizer", "image_encoder", "feature_extractor", vae=tiny_vae())


def build_ovis() -> DiffusionPipeline:
    return build(
        OvisImagePipeline, OvisImageTransformer2DModel(in_channels=16, out_channels=16, **TWO_STREAMS), "tokenizer"
    )


class LongCatOfEmbeddings(LongCatImagePipeline):
    """Takes embeddings: as it is, the pipeline forbids a prompt beside them, and then asks for its length."""

    def encode_prompt(self, prompt: Any = None, num_images_per_prompt: int = 1, prompt_embeds: Any = None) -> Any:
        return super().encode_prompt("", num_images_per_prompt, prompt_embeds)


def build_longcat() -> DiffusionPipeline:
    transformer = LongCatImageTransformer2DModel(in_channels=64, pooled_projection_dim=16, **TWO_STREAMS)
    return build(LongCatOfEmbeddings, transformer, "tokenizer", "text_processor")


def build_hunyuan_image() -> DiffusionPipeline:
    """Its guider remembers the steps before, and guides otherwise in the first ones."""
    transformer = HunyuanImageTransformer2DModel(
        in_channels=8,
        out_channels=8,
        num_layers=2,
        num_single_layers=4,
        num_refiner_layers=1,
        text_embed_dim=16,
        text_embed_2_dim=12,
        rope_axes_dim=(8, 8),
        **HEADS,
    )
    return build(
        HunyuanImagePipeline,
        transformer,
        "tokenizer",
        "text_encoder_2",
        "tokenizer_2",
        "ocr_guider",
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        guider=AdaptiveProjectedMixGuidance(guidance_scale=3.5, adaptive_projected_guidance_start_step=3),
    )


def build_krea2() -> DiffusionPipeline:
    """The denoiser reads several layers of a text encoder."""
    transformer = diffusers.Krea2Transformer2DModel(
        in_channels=16,
        num_layers=5,
        num_key_value_heads=1,
        intermediate_size=64,
        timestep_embed_dim=16,
        text_hidden_dim=16,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=ROPE,
        **HEADS,
    )
    return build(diffusers.Krea2Pipeline, transformer, "tokenizer")


def build_prx() -> DiffusionPipeline:
    transformer = PRXTransformer2DModel(
        in_channels=4, context_in_dim=16, hidden_size=32, num_heads=2, depth=5, axes_dim=[8, 8]
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return build(PRXPipeline, transformer, "tokenizer", scheduler=scheduler, default_sample_size=SIZE)


def build_ernie() -> DiffusionPipeline:
    transformer = ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=5,
        ffn_hidden_size=64,
        in_channels=16,
        out_channels=16,
        text_in_dim=16,
        rope_axes_dim=ROPE,
    )
    return build(ErnieImagePipeline, transformer, "tokenizer", scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))


def build_nucleus() -> DiffusionPipeline:
    """In the middle, blocks with several feed-forward networks that choose their tokens."""
    transformer = NucleusMoEImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=6,
        num_key_value_heads=1,
        joint_attention_dim=16,
        axes_dims_rope=ROPE,
        mlp_ratio=6.0,
        num_experts=4,
        moe_intermediate_dim=32,
        capacity_factors=2.0,
        **HEADS,
    )
    return build(NucleusMoEImagePipeline, transformer, "processor")


def build_glm() -> DiffusionPipeline:
    """A language model has drawn the picture roughly, in words of its own."""
    transformer = GlmImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=5,
        text_embed_dim=16,
        time_embed_dim=16,
        condition_dim=8,
        prior_vq_quantizer_codebook_size=32,
        **HEADS,
    )
    return build(GlmImagePipeline, transformer, "tokenizer", "processor", "vision_language_encoder")


def build_qwen_image_21() -> DiffusionPipeline:
    transformer = diffusers.QwenImage21Transformer2DModel(
        in_channels=8, out_channels=8, num_layers=5, context_in_dim=16, axes_dims_rope=ROPE, **HEADS
    )
    return build(diffusers.QwenImage21Pipeline, transformer, processor=NoWords())


class NoWords:
    """A processor of which is asked how long its instruction is and which token is a picture's, and nothing more."""

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        return [[]]

    @property
    def tokenizer(self) -> "NoWords":
        return self

    def encode(self, words: str) -> list[int]:
        return [0]


def sized(scale: int, inputs: dict[str, Any]) -> dict[str, Any]:
    """With the size of the picture, which an absent VAE would have made `scale` times smaller."""
    return inputs | dict(height=scale * SIZE, width=scale * SIZE)


def attended(name: str, **extra: Any) -> dict[str, Any]:
    """Prompts with masks; `name` is how the pipeline calls its guidance scale."""
    words = torch.ones(1, TEXT_LENGTH, dtype=torch.int64)
    return sampling(
        prompt_embeds=noise(1, TEXT_LENGTH, 16, seed=1),
        negative_prompt_embeds=noise(1, TEXT_LENGTH, 16, seed=2),
        prompt_embeds_mask=words,
        negative_prompt_embeds_mask=words.clone(),
        **{name: 4.0},
        **extra,
    )


def krea_text() -> dict[str, Any]:
    layers = dict(
        prompt_embeds=noise(1, TEXT_LENGTH, 3, 16, seed=1), negative_prompt_embeds=noise(1, TEXT_LENGTH, 3, 16, seed=2)
    )
    mask = torch.ones(1, TEXT_LENGTH, dtype=torch.bool)
    return attended("guidance_scale") | layers | dict(prompt_embeds_mask=mask, negative_prompt_embeds_mask=mask.clone())


def hunyuan_text() -> dict[str, Any]:
    """The second prompt is what is to be written in the picture."""
    words = torch.ones(1, TEXT_LENGTH, dtype=torch.int64)
    return attended(
        "distilled_guidance_scale",
        prompt_embeds_2=noise(1, TEXT_LENGTH, 12, seed=3),
        negative_prompt_embeds_2=noise(1, TEXT_LENGTH, 12, seed=4),
        prompt_embeds_mask_2=words,
        negative_prompt_embeds_mask_2=words.clone(),
    )


def listed_text() -> dict[str, Any]:
    return sampling(
        prompt_embeds=[noise(TEXT_LENGTH, 16, seed=1)],
        negative_prompt_embeds=[noise(5, 16, seed=2)],
        guidance_scale=4.0,
    )


def drawn() -> dict[str, Any]:
    """As many words of the picture as it has patches."""
    drawing = torch.arange((SIZE // 2) ** 2)[None] % 32
    return text(prior_token_ids=drawing)


PIPELINES = (
    TinyPipeline("bria", build_bria, lambda pipe: sized(4, text()), "transformer"),
    TinyPipeline("ovis_image", build_ovis, lambda pipe: sized(8, text(negative_prompt=None)), "transformer"),
    TinyPipeline(
        "longcat_image", build_longcat, lambda pipe: sized(8, text(enable_prompt_rewrite=False)), "transformer"
    ),
    TinyPipeline("hunyuan_image", build_hunyuan_image, lambda pipe: sized(32, hunyuan_text()), "transformer"),
    TinyPipeline("krea2", build_krea2, lambda pipe: sized(8, krea_text()), "transformer", needs=("Krea2Pipeline",)),
    TinyPipeline("prx", build_prx, lambda pipe: sized(8, masked_text(use_resolution_binning=False)), "transformer"),
    TinyPipeline("ernie_image", build_ernie, lambda pipe: sized(16, listed_text()), "transformer"),
    TinyPipeline("nucleus_image", build_nucleus, lambda pipe: sized(8, attended("guidance_scale")), "transformer"),
    TinyPipeline("glm_image", build_glm, lambda pipe: sized(8, drawn()), "transformer"),
    # The first call of each stream keeps what the prompt's tokens say to the others; the calls after it read that.
    TinyPipeline(
        "qwen_image_21",
        build_qwen_image_21,
        lambda pipe: sized(16, attended("true_cfg_scale")),
        "transformer",
        needs=("QwenImage21Pipeline",),
    ),
)
