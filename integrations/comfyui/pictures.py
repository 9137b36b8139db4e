"""Pictures as ComfyUI has them."""

import base64
import io
from collections.abc import Sequence
from typing import Any

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


def texts_of(images: torch.Tensor) -> list[str]:
    """The PNG files of an `IMAGE`, or of a `MASK` (pictures, height, width), in base64, as a request holds them."""
    rows = (images.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return [_text_of(row) for row in (rows if rows.ndim >= 3 else rows[None])]


def _text_of(row: "np.ndarray[Any, Any]") -> str:
    written = io.BytesIO()
    Image.fromarray(row).convert("RGB").save(written, "png")
    return base64.b64encode(written.getvalue()).decode("ascii")
