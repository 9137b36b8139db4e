"""How alike two pictures, videos or sounds are, and the two side by side."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from asyncdiff.made.media import Frames, Made, Sound

Pixels = npt.NDArray[np.float64]

# Wang, Bovik, Sheikh, Simoncelli: Image Quality Assessment, IEEE TIP 2004, section III.B and C.
_WINDOW = 11
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03

_READABLE_HEIGHT = 256
_CAPTION_HEIGHT = 28
_GAP = 12


@dataclass(frozen=True)
class Likeness:
    """How alike two are that were made.

    Attributes:
        decibels: of pictures the PSNR over all frames, of sound the ratio of signal to noise; inf for the same.
        worst: that of the frame that is farthest off.
        ssim: mean over the frames; None of sound, and of pictures that are too small for it.
        frames: how many pictures there are; 0 of sound.
        are_pictures: whether each stands for itself, and is none of a video.
    """

    decibels: float
    worst: float
    ssim: float | None
    frames: int
    are_pictures: bool = False

    def __str__(self) -> str:
        if math.isinf(self.decibels):
            return "the same"
        measure = "PSNR" if self.frames else "signal to noise"
        kind = "pictures" if self.are_pictures else "frames"
        worst = f", the worst of {self.frames} {kind} {self.worst:.2f} dB" if self.frames > 1 else ""
        return f"{measure} {self.decibels:.2f} dB{worst}" + ("" if self.ssim is None else f", SSIM {self.ssim:.4f}")


def likeness(first: Made, second: Made) -> Likeness:
    """How alike they are, frame by frame.

    Raises:
        ValueError: they are of different sizes, lengths or kinds.
    """
    if len(first.frames) != len(second.frames) or len(first.sounds) != len(second.sounds):
        raise ValueError("what was made differs in its number of frames or of sounds")
    if not first.frames:
        return _likeness_of_sounds(first.sounds, second.sounds)
    pairs = [(pixels(one), pixels(other)) for one, other in zip(first.frames, second.frames, strict=True)]
    each = [psnr(*pair) for pair in pairs]
    is_readable = all(min(picture.shape[:2]) >= _WINDOW for picture, _ in pairs)
    errors = [0.0 if math.isinf(value) else 10 ** (-value / 10) for value in each]
    mean = statistics.fmean(errors)
    return Likeness(
        decibels=-10 * math.log10(mean) if mean else math.inf,
        worst=min(each),
        ssim=statistics.fmean(ssim(*pair) for pair in pairs) if is_readable else None,
        frames=len(pairs),
        are_pictures=not first.videos,
    )


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


def beside(mades: Sequence[Made], captions: list[str]) -> Made:
    """Their pictures in a row, and their videos in a row that plays; their sounds one after the other.

    Raises:
        ValueError: they differ in how many there are of each.
    """
    return Made(
        pictures=tuple(_rows([made.pictures for made in mades], captions)),
        videos=tuple(
            tuple(_rows(list(videos), captions)) for videos in zip(*(made.videos for made in mades), strict=True)
        ),
        sounds=tuple(sound for made in mades for sound in made.sounds),
    )


def _rows(columns: Sequence[Frames], captions: list[str]) -> list[Image.Image]:
    return [side_by_side(list(row), captions) for row in zip(*columns, strict=True)]


def _likeness_of_sounds(first: Sequence[Sound], second: Sequence[Sound]) -> Likeness:
    each = []
    for one, other in zip(first, second, strict=True):
        if one.samples.shape != other.samples.shape:
            raise ValueError(f"the sounds differ in length: {one.samples.shape} and {other.samples.shape}")
        noise = float(np.sum(np.square(one.samples - other.samples, dtype=np.float64)))
        signal = float(np.sum(np.square(one.samples, dtype=np.float64)))
        each.append(math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal else -math.inf)
    return Likeness(decibels=min(each), worst=min(each), ssim=None, frames=0)


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
