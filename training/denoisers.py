"""The two denoisers inside the pipelines that are shipped, each with its training objective."""

from collections.abc import Sequence
from typing import Protocol

import torch
from diffusers import (
    AutoencoderKL,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, GlmConfig, GlmModel

from training.autoencoder import LATENT_CHANNELS, to_sheet
from training.emoji import PICTURE_SIZE
from training.tokenizer import MAX_TOKENS

_LATENT_SIZE = PICTURE_SIZE // 8
_TEXT_WIDTH = 128
_HEAD_WIDTH = 32
_EMPTY_CAPTIONS = 0.1


class Adapter(Protocol):
    """A pipeline and how its denoiser is trained."""

    pipeline: StableDiffusionPipeline | CogView4Pipeline
    modules: nn.ModuleDict
    learning_rate: float

    def loss(self, latents: Tensor, prompts: list[str]) -> Tensor:
        """The training loss of these latents under these prompts."""


class DenoiserTask:
    """Draws captioned latents, some with an empty caption for classifier-free guidance."""

    weight_decay = 0.01

    def __init__(self, adapter: Adapter, latents: Tensor, captions: Sequence[Sequence[str]]) -> None:
        self.modules = adapter.modules
        self.learning_rate = adapter.learning_rate
        self._adapter = adapter
        self._latents = latents
        self._captions = captions

    def loss(self, batch_size: int) -> Tensor:
        indices = torch.randint(len(self._latents), (batch_size,))
        prompts = [self._draw_caption(index) for index in indices.tolist()]
        return self._adapter.loss(self._latents[indices.to(self._latents.device)], prompts)

    def _draw_caption(self, index: int) -> str:
        if torch.rand(()).item() < _EMPTY_CAPTIONS:
            return ""
        captions = self._captions[index]
        return captions[int(torch.randint(len(captions), ()))]

    def preview(self) -> Image.Image:
        pipeline = self._adapter.pipeline
        pipeline.set_progress_bar_config(disable=True)
        pixels = pipeline(
            [captions[0] for captions in self._captions[::8]],
            num_inference_steps=20,
            guidance_scale=4.0,
            output_type="pt",
        ).images
        return to_sheet(pixels * 2 - 1, columns=12)


class UNetAdapter:
    """A StableDiffusionPipeline with the structure of SD 2.1, which predicts the velocity."""

    learning_rate = 8e-4

    def __init__(self, autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer, device: torch.device) -> None:
        # Most of the work at the highest resolution, where a weight is used most: a long call, in a small file.
        channels = (160, 128, 64)
        unet = UNet2DConditionModel(
            sample_size=_LATENT_SIZE,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=channels,
            layers_per_block=2,
            attention_head_dim=tuple(count // _HEAD_WIDTH for count in channels),
            cross_attention_dim=_TEXT_WIDTH,
            use_linear_projection=True,
        )
        scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.02,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            timestep_spacing="trailing",
            clip_sample=False,
            steps_offset=1,
            set_alpha_to_one=True,
        )
        self.pipeline = StableDiffusionPipeline(
            vae=autoencoder,
            text_encoder=CLIPTextModel(_clip_config(tokenizer)),
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).to(device)
        if device.type == "cuda":
            unet.to(memory_format=torch.channels_last)
        _widen_embeddings(self.pipeline.text_encoder)
        self.modules = nn.ModuleDict({"unet": unet, "text_encoder": self.pipeline.text_encoder})

    def loss(self, latents: Tensor, prompts: list[str]) -> Tensor:
        scheduler = self.pipeline.scheduler
        timesteps = (_stratified(latents) * scheduler.config.num_train_timesteps).long()
        noise = torch.randn_like(latents)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        embeddings, _ = self.pipeline.encode_prompt(prompts, latents.device, 1, False)
        predicted = self.pipeline.unet(noisy, timesteps, embeddings).sample
        return F.mse_loss(predicted.float(), scheduler.get_velocity(latents, noise, timesteps))


class DiTAdapter:
    """A CogView4Pipeline, which predicts the flow from picture to noise: a short prompt is 16 tokens beside 256."""

    learning_rate = 1e-3

    def __init__(self, autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer, device: torch.device) -> None:
        transformer = CogView4Transformer2DModel(
            sample_size=_LATENT_SIZE,
            patch_size=1,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            num_layers=12,
            attention_head_dim=_HEAD_WIDTH,
            num_attention_heads=8,
            text_embed_dim=_TEXT_WIDTH,
            time_embed_dim=32,
            condition_dim=16,
            rope_axes_dim=(_LATENT_SIZE, _LATENT_SIZE),
        )
        _zero_modulations(transformer)
        tokenizer.padding_side = "left"
        self.pipeline = CogView4Pipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
            vae=autoencoder,
            text_encoder=GlmModel(_glm_config(tokenizer)),
            tokenizer=tokenizer,
        ).to(device)
        _widen_embeddings(self.pipeline.text_encoder)
        self.modules = nn.ModuleDict({"transformer": transformer, "text_encoder": self.pipeline.text_encoder})

    def loss(self, latents: Tensor, prompts: list[str]) -> Tensor:
        quantiles = _stratified(latents).clamp(1e-4, 1 - 1e-4)
        sigmas = torch.special.ndtri(quantiles).sigmoid()  # logit-normal
        noise = torch.randn_like(latents)
        weights = sigmas.view(-1, 1, 1, 1)
        embeddings, _ = self.pipeline.encode_prompt(prompts, None, False, device=latents.device)
        size = torch.full((len(latents), 2), float(PICTURE_SIZE), device=latents.device)
        predicted = self.pipeline.transformer(
            latents + weights * (noise - latents),
            encoder_hidden_states=embeddings,
            timestep=sigmas * self.pipeline.scheduler.config.num_train_timesteps,
            original_size=size,
            target_size=size,
            crop_coords=torch.zeros_like(size),
        ).sample
        return F.mse_loss(predicted.float(), noise - latents)


def _stratified(latents: Tensor) -> Tensor:
    """One uniform number in [0, 1) for each latent, spread evenly over the batch."""
    count = len(latents)
    order = torch.randperm(count, device=latents.device)
    return (order + torch.rand(count, device=latents.device)) / count


def _clip_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=_TEXT_WIDTH,
        intermediate_size=4 * _TEXT_WIDTH,
        projection_dim=_TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=_TEXT_WIDTH // _HEAD_WIDTH,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _glm_config(tokenizer: CLIPTokenizer) -> GlmConfig:
    """The pipeline takes what goes into the last layer, which is there for nothing else."""
    heads = _TEXT_WIDTH // _HEAD_WIDTH
    return GlmConfig(
        vocab_size=len(tokenizer),
        hidden_size=_TEXT_WIDTH,
        intermediate_size=2 * _TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=_HEAD_WIDTH,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _widen_embeddings(text_encoder: nn.Module) -> None:
    """Initial embeddings are too small to learn quickly without a text encoder's final normalization."""
    for name, parameter in text_encoder.named_parameters():
        if name.endswith(("token_embedding.weight", "embed_tokens.weight")):
            nn.init.normal_(parameter, std=0.5)
        elif name.endswith("position_embedding.weight"):
            nn.init.normal_(parameter, std=0.1)


def _zero_modulations(transformer: CogView4Transformer2DModel) -> None:
    """Start every block as the identity (adaLN-Zero)."""
    modulations = ("norm1.linear", "norm_out.linear", "proj_out")
    for name, module in transformer.named_modules():
        if name.endswith(modulations):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
