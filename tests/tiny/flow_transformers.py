"""Other image pipelines whose denoiser is a transformer that predicts a flow."""

from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    ChromaImg2ImgPipeline,
    ChromaPipeline,
    ChromaTransformer2DModel,
    CogView4ControlPipeline,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    Kandinsky5T2IPipeline,
    Kandinsky5Transformer3DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
    LuminaPipeline,
    ZImageImg2ImgPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
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


def build(
    pipeline: type[DiffusionPipeline], transformer: torch.nn.Module, shifting: bool = True, **components: Any
) -> DiffusionPipeline:
    return assemble(
        pipeline,
        **dict(
            text_encoder=None,
            tokenizer=None,
            vae=tiny_vae(shift_factor=0.1),
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=shifting),
        )
        | components,
    )


def build_lumina() -> DiffusionPipeline:
    transformer = LuminaNextDiT2DModel(
        sample_size=SIZE,
        in_channels=4,
        hidden_size=32,
        num_layers=4,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        cross_attention_dim=16,
    )
    return build(LuminaPipeline, transformer, shifting=False)


def build_lumina2() -> DiffusionPipeline:
    transformer = Lumina2Transformer2DModel(
        sample_size=SIZE,
        in_channels=4,
        hidden_size=32,
        num_layers=4,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 6, 6),
        axes_lens=(32, 32, 32),
        cap_feat_dim=16,
    )
    return build(Lumina2Pipeline, transformer)


def lumina_text(**extra: Any) -> dict[str, Any]:
    """The pipeline takes it that the VAE makes pictures 8 times smaller."""
    return masked_text(height=8 * SIZE, width=8 * SIZE, **extra)


def tiny_z_image_transformer() -> ZImageTransformer2DModel:
    return ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=4,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[64, 32, 32],
    )


def build_z_image(pipeline: type[DiffusionPipeline] = ZImagePipeline) -> DiffusionPipeline:
    return build(pipeline, tiny_z_image_transformer())


def z_image_text(**extra: Any) -> dict[str, Any]:
    """Prompts, pictures and predictions are lists."""
    return sampling(
        prompt_embeds=[noise(TEXT_LENGTH, 16, seed=1)],
        negative_prompt_embeds=[noise(5, 16, seed=2)],
        guidance_scale=5.0,
        height=PIXELS,
        width=PIXELS,
        **extra,
    )


def build_aura_flow() -> DiffusionPipeline:
    transformer = AuraFlowTransformer2DModel(
        sample_size=SIZE,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=32,
        pos_embed_max_size=SIZE * SIZE,
    )
    return build(AuraFlowPipeline, transformer, shifting=False)


def build_chroma(pipeline: type[DiffusionPipeline] = ChromaPipeline) -> DiffusionPipeline:
    """One small network makes the modulations of all blocks from the time."""
    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=16,
        approximator_hidden_dim=32,
        approximator_layers=2,
    )
    return build(pipeline, transformer)


def chroma_text(**extra: Any) -> dict[str, Any]:
    """Two calls in every step that no context tells apart."""
    words = masked_text(height=PIXELS, width=PIXELS, **extra)
    for mask in ("prompt_attention_mask", "negative_prompt_attention_mask"):
        words[mask] = words[mask].float()
    return words


def build_cogview4(pipeline: type[DiffusionPipeline] = CogView4Pipeline, in_channels: int = 4) -> DiffusionPipeline:
    transformer = CogView4Transformer2DModel(
        sample_size=SIZE,
        in_channels=in_channels,
        out_channels=4,
        num_layers=4,
        num_attention_heads=2,
        attention_head_dim=16,
        text_embed_dim=16,
        time_embed_dim=16,
        condition_dim=4,
        rope_axes_dim=(SIZE, SIZE),
    )
    return build(pipeline, transformer)


def build_hidream() -> DiffusionPipeline:
    """Every block has several feed-forward networks, of which each token takes two."""
    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=[16, 16],
        text_emb_dim=16,
        axes_dims_rope=(4, 6, 6),
        max_resolution=(SIZE, SIZE),
        llama_layers=[0, 1, 1, 0],
    )
    text_free = {f"{kind}_{number}": None for kind in ("text_encoder", "tokenizer") for number in (2, 3, 4)}
    pipe = build(HiDreamImagePipeline, transformer, **text_free)
    pipe.default_sample_size = SIZE  # the pipeline brings every picture to this area
    return pipe


def hidream_text(**extra: Any) -> dict[str, Any]:
    return sampling(
        prompt_embeds_t5=noise(1, TEXT_LENGTH, 16, seed=1),
        negative_prompt_embeds_t5=noise(1, TEXT_LENGTH, 16, seed=2),
        prompt_embeds_llama3=noise(2, 1, TEXT_LENGTH, 16, seed=3),
        negative_prompt_embeds_llama3=noise(2, 1, TEXT_LENGTH, 16, seed=4),
        pooled_prompt_embeds=noise(1, 16, seed=5),
        negative_pooled_prompt_embeds=noise(1, 16, seed=6),
        guidance_scale=5.0,
        height=PIXELS,
        width=PIXELS,
        **extra,
    )


def build_kandinsky5() -> DiffusionPipeline:
    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=16,
        time_dim=16,
        model_dim=32,
        ff_dim=64,
        num_text_blocks=1,
        num_visual_blocks=4,
        axes_dims=(4, 6, 6),
    )
    pipe = build(Kandinsky5T2IPipeline, transformer, shifting=False, text_encoder_2=None, tokenizer_2=None)
    pipe.resolutions = [(8 * SIZE, 8 * SIZE)]  # of the pictures that it knows
    return pipe


def kandinsky_text(**extra: Any) -> dict[str, Any]:
    """Two calls in every step that no context tells apart, with prompts of two lengths."""
    return sampling(
        prompt_embeds_qwen=noise(1, TEXT_LENGTH, 16, seed=1),
        negative_prompt_embeds_qwen=noise(1, 5, 16, seed=2),
        prompt_embeds_clip=noise(1, 16, seed=3),
        negative_prompt_embeds_clip=noise(1, 16, seed=4),
        prompt_cu_seqlens=torch.tensor([0, TEXT_LENGTH]),
        negative_prompt_cu_seqlens=torch.tensor([0, 5]),
        guidance_scale=3.5,
        height=8 * SIZE,
        width=8 * SIZE,
        **extra,
    )


PIPELINES = (
    TinyPipeline("lumina", build_lumina, lambda pipe: lumina_text(), "transformer"),
    TinyPipeline("lumina2", build_lumina2, lambda pipe: lumina_text(), "transformer"),
    # The second of two calls stays away in the last steps.
    TinyPipeline("lumina2_truncated", build_lumina2, lambda pipe: lumina_text(cfg_trunc_ratio=0.7), "transformer"),
    TinyPipeline("z_image", build_z_image, lambda pipe: z_image_text(), "transformer"),
    # The calls of the last steps are half as large.
    TinyPipeline("z_image_truncated", build_z_image, lambda pipe: z_image_text(cfg_truncation=0.5), "transformer"),
    TinyPipeline(
        "z_image_img2img",
        lambda: build_z_image(ZImageImg2ImgPipeline),
        lambda pipe: z_image_text(image=image(), strength=0.8),
        "transformer",
    ),
    TinyPipeline("aura_flow", build_aura_flow, lambda pipe: masked_text(height=PIXELS, width=PIXELS), "transformer"),
    TinyPipeline("chroma", build_chroma, lambda pipe: chroma_text(), "transformer"),
    TinyPipeline(
        "chroma_img2img",
        lambda: build_chroma(ChromaImg2ImgPipeline),
        lambda pipe: chroma_text(image=image(), strength=0.8),
        "transformer",
    ),
    TinyPipeline("cogview4", build_cogview4, lambda pipe: text(height=PIXELS, width=PIXELS), "transformer"),
    TinyPipeline(
        "cogview4_control",
        lambda: build_cogview4(CogView4ControlPipeline, 8),
        lambda pipe: seeded(text(control_image=image(), height=PIXELS, width=PIXELS)),
        "transformer",
    ),
    TinyPipeline("hidream", build_hidream, lambda pipe: hidream_text(), "transformer"),
    TinyPipeline("kandinsky5_t2i", build_kandinsky5, lambda pipe: kandinsky_text(), "transformer"),
)
