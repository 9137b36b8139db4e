"""The autoencoder that both demo pipelines share."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from training.emoji import PICTURE_SIZE
from training.loop import has_checkpoint, load_average

LATENT_CHANNELS = 12
_KL_WEIGHT = 1e-4
_DECODER_NOISE = 0.15


def build_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 48, 64, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=16,
        sample_size=PICTURE_SIZE,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def _placed(autoencoder: AutoencoderKL, device: torch.device) -> AutoencoderKL:
    """On a GPU with channels last, as its convolutions like it."""
    autoencoder.to(device)
    return autoencoder.to(memory_format=torch.channels_last) if device.type == "cuda" else autoencoder


def to_tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures as one (N, 3, H, W) tensor in [-1, 1]."""
    pixels = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_sheet(pixels: Tensor, columns: int) -> Image.Image:
    """A (N, 3, H, W) tensor in [-1, 1] as one picture of rows and columns."""
    rows = [torch.cat(list(row), dim=-1) for row in torch.split(pixels, columns)]
    values = (torch.cat(rows, dim=-2).clamp(-1, 1) + 1) * 127.5
    return Image.fromarray(values.round().byte().permute(1, 2, 0).cpu().numpy())


class AutoencoderTask:
    """Reconstruction of all emoji, half of every batch from those that have prompts."""

    learning_rate = 1.5e-3
    weight_decay = 0.0

    def __init__(self, prompted: Tensor, others: Tensor, device: torch.device) -> None:
        self.autoencoder = _placed(build_autoencoder(), device)
        self.modules = nn.ModuleDict({"vae": self.autoencoder})
        self._prompted = prompted.to(device)
        self._others = others.to(device)

    def loss(self, batch_size: int) -> Tensor:
        half = batch_size // 2
        pixels = torch.cat([_draw(self._prompted, half), _draw(self._others, batch_size - half)])
        mirrored = torch.rand(len(pixels), 1, 1, 1, device=pixels.device) < 0.3
        pixels = torch.where(mirrored, pixels.flip(-1), pixels)
        posterior = self.autoencoder.encode(pixels).latent_dist
        decoded = self.autoencoder.decode(posterior.sample()).sample.float()
        divergence: Tensor = posterior.kl().mean() / posterior.mean[0].numel()
        return _reconstruction_loss(decoded, pixels) + _KL_WEIGHT * divergence

    def preview(self) -> Image.Image:
        return _compare(self.autoencoder, self._prompted)


class DecoderTask:
    """Reconstruction of the prompted pictures from latents as imperfect as a denoiser's."""

    learning_rate = 1.5e-3
    weight_decay = 0.0

    def __init__(self, autoencoder: AutoencoderKL, pixels: Tensor, device: torch.device) -> None:
        self.autoencoder = _placed(autoencoder, device)
        self.modules = _decoder_modules(autoencoder).requires_grad_(True)
        self._pixels = pixels.to(device)
        self._latents = encode(autoencoder, self._pixels)

    def loss(self, batch_size: int) -> Tensor:
        indices = torch.randint(len(self._pixels), (batch_size,), device=self._pixels.device)
        latents = self._latents[indices]
        noisy = latents + _DECODER_NOISE * torch.randn_like(latents)
        return _reconstruction_loss(self.autoencoder.decode(noisy).sample.float(), self._pixels[indices])

    def preview(self) -> Image.Image:
        return _compare(self.autoencoder, self._pixels)


def _reconstruction_loss(decoded: Tensor, pixels: Tensor) -> Tensor:
    edges = [F.l1_loss(decoded.diff(dim=axis), pixels.diff(dim=axis)) for axis in (-1, -2)]
    return F.l1_loss(decoded, pixels) + F.mse_loss(decoded, pixels) + edges[0] + edges[1]


@torch.no_grad()
def _compare(autoencoder: AutoencoderKL, pixels: Tensor) -> Image.Image:
    """Pictures above their reconstructions."""
    pixels = pixels[:40]
    decoded = autoencoder.decode(encode(autoencoder, pixels)).sample
    return to_sheet(torch.cat([pixels, decoded]), columns=20)


def _draw(pixels: Tensor, count: int) -> Tensor:
    return pixels[torch.randint(len(pixels), (count,), device=pixels.device)]


@torch.no_grad()
def encode(autoencoder: AutoencoderKL, pixels: Tensor) -> Tensor:
    """The latents (posterior means) of many pictures."""
    return torch.cat([autoencoder.encode(part).latent_dist.mean for part in torch.split(pixels, 64)])


@torch.no_grad()
def normalize_latents(autoencoder: AutoencoderKL, pixels: Tensor) -> None:
    """Fold per-channel normalization into the 1x1 convolutions at either side of the latents.

    Afterwards the latents of `pixels` have zero mean and unit variance in every channel, so that
    the scaling factor of the pipelines is 1.
    """
    latents = encode(autoencoder, pixels)
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    into, out_of = autoencoder.quant_conv, autoencoder.post_quant_conv
    channels = LATENT_CHANNELS
    into.bias[:channels] = (into.bias[:channels] - mean) / std
    into.weight[:channels] /= std.view(-1, 1, 1, 1)
    into.bias[channels:] -= 2 * std.log()  # the log-variance half
    out_of.bias += out_of.weight[:, :, 0, 0] @ mean
    out_of.weight *= std.view(1, -1, 1, 1)


def load_autoencoder(work: Path, pixels: Tensor) -> AutoencoderKL:
    """The trained autoencoder, its latents normalized over these pictures, its decoder trained further if it was."""
    autoencoder = build_autoencoder()
    load_average(nn.ModuleDict({"vae": autoencoder}), work / "vae")
    normalize_latents(autoencoder, pixels)
    if has_checkpoint(work / "decoder"):
        load_average(_decoder_modules(autoencoder), work / "decoder")
    autoencoder.eval().requires_grad_(False)
    return autoencoder


def _decoder_modules(autoencoder: AutoencoderKL) -> nn.ModuleDict:
    return nn.ModuleDict({"decoder": autoencoder.decoder, "post_quant_conv": autoencoder.post_quant_conv})
