"""Pictures as ComfyUI has them."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from .errors import ServiceError


def images_of(pictures: Sequence[bytes]) -> torch.Tensor:
    """The `IMAGE` of PNG files of one size: (pictures, height, width, 3), from 0 to 1. Saving it gives the same pixels.

    Raises:
        ServiceError: they are no such files.
    """
    try:
        return torch.stack([_image_of(picture) for picture in pictures])
    except (OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError) as error:
        raise ServiceError(f"the service has sent something that is no picture: {error}") from error


def _image_of(picture: bytes) -> torch.Tensor:
    with Image.open(io.BytesIO(picture), formats=("PNG",)) as image:
        return torch.from_numpy(np.array(image.convert("RGB"), dtype=np.float32) / 255.0)
