"""Kandinsky, Stable Cascade, StableUnCLIP, Shap-E: a picture by way of its embedding, or that of another."""

from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DDPMWuerstchenScheduler,
    DiffusionPipeline,
    HeunDiscreteScheduler,
    Kandinsky3Img2ImgPipeline,
    Kandinsky3Pipeline,
    Kandinsky3UNet,
    KandinskyV22CombinedPipeline,
    KandinskyV22ControlnetPipeline,
    KandinskyV22Img2ImgPipeline,
    KandinskyV22InpaintPipeline,
    KandinskyV22Pipeline,
    KandinskyV22PriorPipeline,
    PriorTransformer,
    ShapEPipeline,
    StableCascadeDecoderPipeline,
    StableCascadePriorPipeline,
    StableCascadeUNet,
    StableUnCLIPPipeline,
    UnCLIPScheduler,
    VQModel,
)
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel
from diffusers.pipelines.shap_e import ShapERenderer
from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer

from tests.tiny.base import (
    PIXELS,
    SIZE,
    TEXT_LENGTH,
    TinyPipeline,
    assemble,
    ddim,
    image,
    mask,
    noise,
    pillow_processor,
    sampling,
    text,
    tiny_image_encoder,
    tiny_vae,
)
from tests.tiny.stable_diffusion import tiny_unet
from tests.tiny.text_encoders import tiny_text_encoder, tiny_text_encoder_with_projection, tiny_tokenizer


def tiny_movq() -> VQModel:
    """The decoder is normalised by the codes that it decodes."""
    return VQModel(
        block_out_channels=(32, 32),  # one for each group of its normalisation
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        num_vq_embeddings=8,
        vq_embed_dim=4,
        norm_num_groups=8,
        norm_type="spatial",
    )


def build_kandinsky22(
    pipeline: type[DiffusionPipeline] = KandinskyV22Pipeline, scheduler: Any = None, **config: Any
) -> DiffusionPipeline:
    """The decoder: blocks of ResNets that change the size themselves, told of an image's embedding alone."""
    unet = tiny_unet(
        **dict(
            out_channels=8,  # noise and its variance
            block_out_channels=(16, 32, 32),
            down_block_types=("ResnetDownsampleBlock2D",) + ("SimpleCrossAttnDownBlock2D",) * 2,
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D",) * 2 + ("ResnetUpsampleBlock2D",),
            attention_head_dim=8,
            resnet_time_scale_shift="scale_shift",
            addition_embed_type="image",
            encoder_hid_dim=16,
            encoder_hid_dim_type="image_proj",
        )
        | config
    )
    noise_levels = dict(beta_schedule="linear", beta_start=0.00085, beta_end=0.012)
    return assemble(
        pipeline,
        unet=unet,
        scheduler=scheduler or DDPMScheduler(**noise_levels, clip_sample=False, variance_type="learned_range"),
        movq=tiny_movq(),
    )


def build_kandinsky22_img2img() -> DiffusionPipeline:
    scheduler = DDIMScheduler(
        beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False
    )
    return build_kandinsky22(KandinskyV22Img2ImgPipeline, scheduler)


def build_kandinsky22_controlnet() -> DiffusionPipeline:
    """The hint goes into the denoiser beside the latents; the denoiser itself makes it as small as them.

    What does so has widths that no config changes: in a UNet as narrow as the others it would be most of the cost.
    """
    return build_kandinsky22(
        KandinskyV22ControlnetPipeline,
        in_channels=8,
        addition_embed_type="image_hint",
        block_out_channels=(64, 128, 128),
        attention_head_dim=16,
    )


def tiny_prior(**config: Any) -> PriorTransformer:
    """What it denoises is one vector, an image's embedding; the words come before it as in a sequence."""
    return PriorTransformer(
        **dict(
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=4,
            embedding_dim=16,
            num_embeddings=TEXT_LENGTH,
        )
        | config
    )


def unclip() -> UnCLIPScheduler:
    return UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0)


def build_kandinsky22_prior() -> DiffusionPipeline:
    return assemble(
        KandinskyV22PriorPipeline,
        prior=tiny_prior(),
        image_encoder=tiny_image_encoder(),
        text_encoder=tiny_text_encoder_with_projection(),
        tokenizer=tiny_tokenizer(),
        scheduler=unclip(),
        image_processor=pillow_processor("CLIP"),
    )


def build_kandinsky22_combined() -> DiffusionPipeline:
    """Both pipelines in one: two denoisers, one after the other, with a scheduler each."""
    prior = build_kandinsky22_prior()
    combined = KandinskyV22CombinedPipeline(
        **build_kandinsky22().components, **{f"prior_{name}": part for name, part in prior.components.items()}
    )
    combined.set_progress_bar_config(disable=True)
    return combined


def build_unclip() -> DiffusionPipeline:
    """An embedding made of words, then a picture made of the embedding and the words."""
    unet = tiny_unet(class_embed_type="projection", projection_class_embeddings_input_dim=2 * 16)
    return assemble(
        StableUnCLIPPipeline,
        prior_tokenizer=tiny_tokenizer(),
        prior_text_encoder=tiny_text_encoder_with_projection(),
        prior=tiny_prior(),
        prior_scheduler=DDPMScheduler(
            beta_schedule="squaredcos_cap_v2",
            variance_type="fixed_small_log",
            prediction_type="sample",
            clip_sample_range=5.0,
        ),
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=16),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=tiny_tokenizer(),
        text_encoder=tiny_text_encoder(),
        unet=unet,
        scheduler=ddim(prediction_type="v_prediction"),
        vae=tiny_vae(),
    )


def build_shap_e() -> DiffusionPipeline:
    """The prior's other use: a sequence of vectors, the parameters of a shape; two calls in every step of Heun's."""
    prior = tiny_prior(
        num_embeddings=8,
        embedding_dim=16,
        embedding_proj_dim=16,
        time_embed_dim=32,
        clip_embed_dim=2 * 16,  # noise and its variance
        additional_embeddings=0,
        time_embed_act_fn="gelu",
        norm_in_type="layer",
        encoder_hid_proj_type=None,
        added_emb_type=None,
    )
    return assemble(
        ShapEPipeline,
        prior=prior,
        text_encoder=tiny_text_encoder_with_projection(),
        tokenizer=tiny_tokenizer(),
        scheduler=HeunDiscreteScheduler(beta_schedule="exp", prediction_type="sample", use_karras_sigmas=True),
        shap_e_renderer=ShapERenderer(
            param_shapes=((8, 93), (8, 8), (8, 8), (8, 8)), d_latent=16, d_hidden=8, n_output=12
        ),
    )


def build_kandinsky3(pipeline: type[DiffusionPipeline] = Kandinsky3Pipeline) -> DiffusionPipeline:
    unet = Kandinsky3UNet(
        time_embedding_dim=16,
        groups=4,
        attention_head_dim=8,
        layers_per_block=2,
        block_out_channels=(16, 32, 32, 32),
        cross_attention_dim=16,
        encoder_hid_dim=16,
    )
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False)
    return assemble(pipeline, tokenizer=None, text_encoder=None, unet=unet, scheduler=scheduler, movq=tiny_movq())


def tiny_cascade_unet(**config: Any) -> StableCascadeUNet:
    return StableCascadeUNet(
        **dict(
            timestep_ratio_embedding_dim=16,
            conditioning_dim=16,
            num_attention_heads=(2, 2),
            down_num_layers_per_block=(1, 2),
            up_num_layers_per_block=(2, 1),
            clip_text_pooled_in_channels=16,
            clip_seq=2,
        )
        | config
    )


def build_cascade_prior() -> DiffusionPipeline:
    """Stage C: two levels of the same size."""
    prior = tiny_cascade_unet(
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 16),
        clip_text_in_channels=16,
        clip_image_in_channels=16,
        switch_level=(False,),
    )
    return assemble(
        StableCascadePriorPipeline,
        tokenizer=tiny_tokenizer(),
        text_encoder=tiny_text_encoder_with_projection(),
        prior=prior,
        scheduler=DDPMWuerstchenScheduler(),
        resolution_multiple=2.0,
    )


def build_cascade_decoder() -> DiffusionPipeline:
    """Stage B: its lower level is run twice, with a convolution between the two."""
    decoder = tiny_cascade_unet(
        in_channels=4,
        out_channels=4,
        patch_size=2,
        block_out_channels=(16, 32),
        up_blocks_repeat_mappers=(2, 2),
        block_types_per_layer=(
            ("SDCascadeResBlock", "SDCascadeTimestepBlock"),
            ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
        ),
        effnet_in_channels=4,
        timestep_conditioning_type=("sca",),
    )
    return assemble(
        StableCascadeDecoderPipeline,
        decoder=decoder,
        tokenizer=None,
        text_encoder=None,
        scheduler=DDPMWuerstchenScheduler(),
        vqgan=PaellaVQModel(levels=2, bottleneck_blocks=1, embed_dim=16, num_vq_embeddings=8),
        latent_dim_scale=4.0,
    )


def embedded(**extra: Any) -> dict[str, Any]:
    """An image's embedding and that of what it should not be, for guidance."""
    return sampling(
        image_embeds=noise(1, 16, seed=1),
        negative_image_embeds=noise(1, 16, seed=2),
        guidance_scale=4.0,
        height=PIXELS,
        width=PIXELS,
        **extra,
    )


def kandinsky3_text(**extra: Any) -> dict[str, Any]:
    words = torch.ones(1, TEXT_LENGTH)
    words[:, -2:] = 0
    return text(attention_mask=words, negative_attention_mask=words, **extra)


def cascade_text(**extra: Any) -> dict[str, Any]:
    return text(
        prompt_embeds_pooled=noise(1, 1, 16, seed=3), negative_prompt_embeds_pooled=noise(1, 1, 16, seed=4), **extra
    )


PIPELINES = (
    TinyPipeline("kandinsky22", build_kandinsky22, lambda pipe: embedded(), "unet"),
    TinyPipeline(
        "kandinsky22_img2img",
        build_kandinsky22_img2img,
        lambda pipe: embedded(image=image(), strength=0.8),
        "unet",
    ),
    TinyPipeline(
        "kandinsky22_inpaint",
        lambda: build_kandinsky22(KandinskyV22InpaintPipeline, in_channels=9),
        lambda pipe: embedded(image=image(), mask_image=mask()),
        "unet",
    ),
    TinyPipeline(
        "kandinsky22_controlnet",
        build_kandinsky22_controlnet,
        lambda pipe: embedded(hint=image(8 * SIZE), output_type="pt"),
        "unet",
    ),
    TinyPipeline(
        "kandinsky22_prior",
        build_kandinsky22_prior,
        lambda pipe: sampling(prompt="a cat", guidance_scale=4.0, output_type="pt"),
        "prior",
    ),
    TinyPipeline(
        "kandinsky22_combined",
        build_kandinsky22_combined,
        lambda pipe: sampling(prompt="a cat", prior_num_inference_steps=5, height=PIXELS, width=PIXELS),
        "unet",
        others=("prior_prior",),
    ),
    TinyPipeline(
        "unclip",
        build_unclip,
        lambda pipe: sampling(prompt="a cat", prior_num_inference_steps=5, guidance_scale=5.0),
        "unet",
        others=("prior",),
    ),
    TinyPipeline(
        # Heun's correction divides what is stale by the next noise level: long steps make much of it.
        "shap_e",
        build_shap_e,
        lambda pipe: sampling(prompt="a cat", guidance_scale=2.0),
        "prior",
        steps=16,
    ),
    TinyPipeline("kandinsky3", build_kandinsky3, lambda pipe: kandinsky3_text(height=8 * SIZE, width=8 * SIZE), "unet"),
    TinyPipeline(
        "kandinsky3_img2img",
        lambda: build_kandinsky3(Kandinsky3Img2ImgPipeline),
        lambda pipe: kandinsky3_text(image=image(), strength=0.8),
        "unet",
    ),
    TinyPipeline(
        "cascade_prior",
        build_cascade_prior,
        lambda pipe: sampling(prompt="a cat", negative_prompt="a dog", height=PIXELS, width=PIXELS, output_type="pt"),
        "prior",
    ),
    TinyPipeline(
        "cascade_decoder",
        build_cascade_decoder,
        lambda pipe: cascade_text(image_embeddings=noise(1, 4, SIZE // 2, SIZE // 2)),
        "decoder",
    ),
)
