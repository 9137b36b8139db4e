"""Pipelines of sound whose denoiser is a UNet: spectrograms are pictures."""

from typing import Any

import torch
from diffusers import (
    AudioLDM2Pipeline,
    AudioLDM2ProjectionModel,
    AudioLDM2UNet2DConditionModel,
    AudioLDMPipeline,
    AutoencoderKL,
    DiffusionPipeline,
    MusicLDMPipeline,
)
from transformers import (
    ClapAudioConfig,
    ClapConfig,
    ClapModel,
    ClapTextConfig,
    ClapTextModelWithProjection,
    GPT2Config,
    GPT2LMHeadModel,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    T5Config,
    T5EncoderModel,
)

from tests.tiny.base import SIZE, TEXT_LENGTH, TinyPipeline, assemble, ddim, noise, sampling, tiny_vae
from tests.tiny.stable_diffusion import tiny_unet

_WIDTHS = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)

_CLAP_WORDS = ClapTextConfig(vocab_size=50, projection_dim=16, **_WIDTHS)

FREQUENCIES = 2 * SIZE


def tiny_spectrogram_vae() -> AutoencoderKL:
    return tiny_vae(in_channels=1, out_channels=1)


def tiny_vocoder() -> SpeechT5HifiGan:
    return SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=FREQUENCIES,
            sampling_rate=16000,
            upsample_initial_channel=8,
            upsample_rates=[2, 2],
            upsample_kernel_sizes=[4, 4],
            resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1, 3]],
            normalize_before=False,
        )
    )


def tiny_clap() -> ClapModel:
    sound = ClapAudioConfig(
        spec_size=64,
        patch_size=4,
        patch_stride=[4, 4],
        num_mel_bins=8,
        window_size=4,
        depths=[1, 1],
        num_attention_heads=[2, 2],
        patch_embeds_hidden_size=16,
        hidden_size=32,
        projection_dim=16,
    )
    return ClapModel(ClapConfig(text_config=_CLAP_WORDS.to_dict(), audio_config=sound.to_dict(), projection_dim=16))


def build_audioldm(pipeline: type[DiffusionPipeline] = AudioLDMPipeline, **components: Any) -> DiffusionPipeline:
    """One vector says what is heard, as a class would: it is put beside the time's embedding."""
    unet = tiny_unet(
        cross_attention_dim=(16, 32, 32, 32),  # of the sound itself, for there is nothing else to attend to
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=16,
        class_embeddings_concat=True,
    )
    parts = dict(
        vae=tiny_spectrogram_vae(),
        text_encoder=ClapTextModelWithProjection(_CLAP_WORDS),
        tokenizer=None,
        unet=unet,
        scheduler=ddim(),
        vocoder=tiny_vocoder(),
    )
    return assemble(pipeline, **parts | components)


def build_musicldm() -> DiffusionPipeline:
    return build_audioldm(MusicLDMPipeline, text_encoder=tiny_clap(), feature_extractor=None)


def build_audioldm2() -> DiffusionPipeline:
    """Two sequences of words, read in turn: what a language model has made of the prompt, and the prompt."""
    unet = AudioLDM2UNet2DConditionModel(
        sample_size=SIZE,
        block_out_channels=(16, 32, 32),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=2,  # the number of heads, by its historical name
        cross_attention_dim=([None, 16, 24],) * 3,  # attention to the sound itself, then to both sequences
    )
    return assemble(
        AudioLDM2Pipeline,
        vae=tiny_spectrogram_vae(),
        text_encoder=tiny_clap(),
        text_encoder_2=T5EncoderModel(T5Config(vocab_size=50, d_model=24, d_kv=8, d_ff=16, num_layers=1, num_heads=2)),
        projection_model=AudioLDM2ProjectionModel(text_encoder_dim=16, text_encoder_1_dim=24, langauge_model_dim=16),
        language_model=GPT2LMHeadModel(
            GPT2Config(vocab_size=50, n_embd=16, n_head=2, n_layer=1, bos_token_id=0, eos_token_id=0)
        ),
        tokenizer=None,
        tokenizer_2=None,
        feature_extractor=None,
        unet=unet,
        scheduler=ddim(),
        vocoder=tiny_vocoder(),
    )


def heard(**extra: Any) -> dict[str, Any]:
    """As long a sound as the denoiser's own size says."""
    return sampling(
        prompt_embeds=noise(1, 16, seed=1), negative_prompt_embeds=noise(1, 16, seed=2), guidance_scale=5.0, **extra
    )


def heard_and_read() -> dict[str, Any]:
    words = torch.ones(1, TEXT_LENGTH, dtype=torch.int64)
    words[:, -2:] = 0
    return sampling(
        prompt_embeds=noise(1, TEXT_LENGTH, 24, seed=1),
        negative_prompt_embeds=noise(1, TEXT_LENGTH, 24, seed=2),
        generated_prompt_embeds=noise(1, 4, 16, seed=3),
        negative_generated_prompt_embeds=noise(1, 4, 16, seed=4),
        attention_mask=words,
        negative_attention_mask=words,
        guidance_scale=5.0,
    )


PIPELINES = (
    TinyPipeline("audioldm", build_audioldm, lambda pipe: heard(output_type="np"), "unet"),
    TinyPipeline("musicldm", build_musicldm, lambda pipe: heard(), "unet"),
    TinyPipeline("audioldm2", build_audioldm2, lambda pipe: heard_and_read(), "unet"),
)
