"""What pipelines of videos share: a few frames of a few pixels, in the forms in which pipelines take them."""

from typing import Any

import PIL.Image

from tests.tiny.base import SIZE, TEXT_LENGTH, noise, sampling
from tests.tiny.pictures import picture

FRAMES = 5


def frames(count: int = FRAMES, size: int = SIZE) -> list[PIL.Image.Image]:
    """Every frame is another picture."""
    return [picture(size, seed=seed) for seed in range(count)]


def video_sampling(**extra: Any) -> dict[str, Any]:
    return sampling(**dict(height=SIZE, width=SIZE, num_frames=FRAMES) | extra)


def video_text(**extra: Any) -> dict[str, Any]:
    """A prompt and a negative prompt, for guidance."""
    return video_sampling(
        prompt_embeds=noise(1, TEXT_LENGTH, 16, seed=1),
        negative_prompt_embeds=noise(1, TEXT_LENGTH, 16, seed=2),
        guidance_scale=4.0,
        **extra,
    )
