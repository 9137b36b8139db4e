"""How alike two pictures are, and the two side by side."""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Pixels = npt.NDArray[np.float64]

# Wang, Bovik, Sheikh, Simoncelli: Image Quality Assessment, IEEE TIP 2004, section III.B and C.
_WINDOW = 11
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03

_READABLE_HEIGHT = 256
_CAPTION_HEIGHT = 28
_GAP = 12


def pixels(picture: Image.Image) -> Pixels:
    """A picture as numbers from 0 to 1, of shape (height, width, 3)."""
    return np.asarray(picture.convert("RGB"), dtype=np.float64) / 255


def psnr(first: Pixels, second: Pixels) -> float:
    """Peak signal-to-noise ratio in dB of pictures with values from 0 to 1; inf for equal ones."""
    _check_shapes(first, second)
    error = float(np.mean((first - second) ** 2))
    return float("inf") if error == 0 else float(-10 * np.log10(error))


def ssim(first: Pixels, second: Pixels) -> float:
    """Structural similarity of pictures with values from 0 to 1: the mean over all windows and channels."""
    _check_shapes(first, second)
    if min(first.shape[:2]) < _WINDOW:
        raise ValueError(f"SSIM needs pictures of at least {_WINDOW}x{_WINDOW} pixels, not {first.shape[:2]}")
    mean_1, mean_2 = _blur(first), _blur(second)
    variance_1 = _blur(first * first) - mean_1**2
    variance_2 = _blur(second * second) - mean_2**2
    covariance = _blur(first * second) - mean_1 * mean_2
    c1, c2 = _K1**2, _K2**2
    similarity = ((2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)) / (
        (mean_1**2 + mean_2**2 + c1) * (variance_1 + variance_2 + c2)
    )
    return float(similarity.mean())


def side_by_side(pictures: list[Image.Image], captions: list[str]) -> Image.Image:
    """The pictures in a row, small ones enlarged, with a caption under each."""
    factor = max(1, _READABLE_HEIGHT // pictures[0].height)
    shown = [
        picture.convert("RGB").resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
        for picture in pictures
    ]
    width = sum(picture.width for picture in shown) + _GAP * (len(shown) + 1)
    height = max(picture.height for picture in shown)
    sheet = Image.new("RGB", (width, _GAP + height + _CAPTION_HEIGHT), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    left = _GAP
    for picture, caption in zip(shown, captions, strict=True):
        sheet.paste(picture, (left, _GAP))
        middle = (left + picture.width / 2, _GAP + height + _CAPTION_HEIGHT / 2)
        draw.text(middle, caption, fill="black", font=font, anchor="mm")
        left += picture.width + _GAP
    return sheet


def _check_shapes(first: Pixels, second: Pixels) -> None:
    if first.shape != second.shape:
        raise ValueError(f"the pictures differ in size: {first.shape} and {second.shape}")


def _blur(picture: Pixels) -> Pixels:
    """Weighted mean of every whole window (Gaussian weights, along one axis after the other)."""
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    for axis in (0, 1):
        picture = np.lib.stride_tricks.sliding_window_view(picture, _WINDOW, axis=axis) @ weights
    return picture
