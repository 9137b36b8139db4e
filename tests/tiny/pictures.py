"""Pictures that pipelines are given: in a form that has a size, and encoded without the pipeline's generator."""

from typing import Any

import numpy as np
import PIL.Image
import torch

from tests.tiny.base import image


def picture(size: int, seed: int = 0) -> PIL.Image.Image:
    return PIL.Image.fromarray((image(size, seed)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8))


def seeded(inputs: dict[str, Any]) -> dict[str, Any]:
    """For pipelines that draw a control picture's latents without their generator."""
    torch.manual_seed(0)
    return inputs
