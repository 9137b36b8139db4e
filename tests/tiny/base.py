"""What all tiny pipelines share: how they are assembled and run, their inputs, VAEs, encoders and schedulers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, EulerDiscreteScheduler
from diffusers.utils import logging
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from asyncdiff.zoo.specimen import noise, randomise

logging.set_verbosity_error()  # the advice is for real checkpoints

STEPS = 5
SIZE = 16  # height and width of a picture's latents; half of it in videos
PIXELS = 2 * SIZE  # of the picture itself: a tiny VAE has one downsampling
TEXT_LENGTH = 7


@dataclass(frozen=True)
class TinyPipeline:
    """How to build one pipeline, always with the same weights, and what to call it with.

    Attributes:
        others: further denoisers.
        steps: so many that every denoiser is called more than three times.
        strides: those that can be used; more than 1 is refused where later timestep labels follow no rule.
        views: how many parts of a picture every step is taken for, one after the other.
        needs: what it is built of that older versions of diffusers lack.
    """

    name: str
    build: Callable[[], DiffusionPipeline]
    inputs: Callable[[DiffusionPipeline], dict[str, Any]]
    denoiser: str
    others: tuple[str, ...] = ()
    steps: int = 6
    strides: tuple[int, ...] = (1, 2)
    views: int = 1
    needs: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        """What it needs of diffusers and the installed version does not have."""
        return [name for name in self.needs if not hasattr(diffusers, name)]


def run(pipe: DiffusionPipeline, tiny: TinyPipeline, **overrides: Any) -> torch.Tensor:
    """Call the pipeline on fresh inputs; its latents or pixels, whatever form it returns them in."""
    output = pipe(**tiny.inputs(pipe) | overrides)[0]
    return output if isinstance(output, torch.Tensor) else torch.from_numpy(np.stack(output))


def image(size: int = PIXELS, seed: int = 0) -> torch.Tensor:
    """Pixels in [0, 1], as every pipeline's image processor takes them."""
    return torch.rand((1, 3, size, size), generator=torch.Generator().manual_seed(seed))


def mask(size: int = PIXELS) -> torch.Tensor:
    """The left half is to be painted."""
    return (torch.arange(size) < size // 2).float().expand(1, 1, size, size)


def assemble(pipeline: type[DiffusionPipeline], **components: Any) -> DiffusionPipeline:
    """The quiet pipeline of these components, their weights drawn anew."""
    pipe = pipeline(**components)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            randomise(component.eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_vae(latent_channels: int = 4, **config: Any) -> AutoencoderKL:
    return AutoencoderKL(
        **dict(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=latent_channels,
            norm_num_groups=4,
            sample_size=PIXELS,
            force_upcast=False,
        )
        | config
    )


def pillow_processor(model: str, **config: Any) -> Any:
    """An image processor that works with Pillow; in older versions of transformers it has the plain name."""
    name = f"{model}ImageProcessor"
    kind = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
    return kind(**config)


def tiny_image_encoder(projection_dim: int = 16) -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=PIXELS,
            patch_size=8,
            projection_dim=projection_dim,
        )
    )


STABLE_DIFFUSION_NOISE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)


def ddim(**config: Any) -> DDIMScheduler:
    return DDIMScheduler(**STABLE_DIFFUSION_NOISE, clip_sample=False, set_alpha_to_one=False, **config)


def euler() -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(**STABLE_DIFFUSION_NOISE)


def sampling(**extra: Any) -> dict[str, Any]:
    """What every pipeline's call takes."""
    return {
        "num_inference_steps": STEPS,
        "generator": torch.Generator().manual_seed(0),
        "output_type": "latent",
        **extra,
    }


def text(**extra: Any) -> dict[str, Any]:
    """A prompt and a negative prompt, for guidance."""
    return sampling(
        prompt_embeds=noise(1, TEXT_LENGTH, 16, seed=1),
        negative_prompt_embeds=noise(1, TEXT_LENGTH, 16, seed=2),
        guidance_scale=5.0,
        **extra,
    )


def pooled_text(**extra: Any) -> dict[str, Any]:
    return text(pooled_prompt_embeds=noise(1, 16, seed=3), negative_pooled_prompt_embeds=noise(1, 16, seed=4), **extra)


def words() -> torch.Tensor:
    """The attention mask that tells words from padding."""
    mask = torch.ones(1, TEXT_LENGTH, dtype=torch.int64)
    mask[:, -2:] = 0
    return mask


def masked_text(**extra: Any) -> dict[str, Any]:
    """Attention masks tell words from padding."""
    told = words()
    return text(negative_prompt=None, prompt_attention_mask=told, negative_prompt_attention_mask=told, **extra)
