"""What a shipped pipeline can do: its prompt agreement and a grid of samples."""

from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw, ImageFont

from asyncdiff.demo import demo_prompts, prompt_agreement

_BATCH_SIZE = 64
_COLUMNS = 6
_LABEL_HEIGHT = 16
_GRID_PROMPTS = (
    "red apple", "a red apple", "cat face", "a cat", "rocket", "a picture of a rocket",
    "strawberry", "pineapple", "watermelon", "pizza", "burger", "donut",
    "dog", "panda", "penguin", "fish", "butterfly", "elephant",
    "sun", "rainbow", "fire", "cactus", "sunflower", "christmas tree",
    "laughing face", "cool face", "ghost", "robot", "broken heart", "thumbs up",
    "red car", "bicycle", "airplane", "soccer ball", "guitar", "house",
)  # fmt: skip


def measure_agreement(
    pipeline: DiffusionPipeline, guidance: float, steps: int, seeds: int, every: int
) -> dict[str, Any]:
    """The prompt agreement over the demo's prompts, each drawn from a few seeds."""
    requests = [(prompt, seed) for seed in range(seeds) for prompt in demo_prompts()[::every]]
    images: list[Image.Image] = []
    for start in range(0, len(requests), _BATCH_SIZE):
        images += _sample(pipeline, requests[start : start + _BATCH_SIZE], guidance, steps)
    agreement = prompt_agreement(images, [prompt for prompt, _ in requests])
    return {
        "prompt_agreement_percent": round(agreement, 1),
        "guidance_scale": guidance,
        "denoising_steps": steps,
        "pictures": len(images),
    }


def sample_grid(pipeline: DiffusionPipeline, guidance: float, steps: int, seed: int) -> Image.Image:
    """Labelled samples for prompts as people type them."""
    images = _sample(pipeline, [(prompt, seed) for prompt in _GRID_PROMPTS], guidance, steps)
    side = images[0].width
    rows = -(-len(images) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * side, rows * (side + _LABEL_HEIGHT)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=11)
    for index, (prompt, image) in enumerate(zip(_GRID_PROMPTS, images, strict=True)):
        left, top = index % _COLUMNS * side, index // _COLUMNS * (side + _LABEL_HEIGHT)
        sheet.paste(image, (left, top))
        draw.text((left + side // 2, top + side + 2), prompt, fill="black", font=font, anchor="ma")
    return sheet


def _sample(
    pipeline: DiffusionPipeline, requests: list[tuple[str, int]], guidance: float, steps: int
) -> list[Image.Image]:
    pipeline.set_progress_bar_config(disable=True)
    images: list[Image.Image] = pipeline(
        [prompt for prompt, _ in requests],
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(seed) for _, seed in requests],
    ).images
    return images
