"""The measures of likeness, by hand."""

import math

import numpy as np
import pytest
from PIL import Image

from asyncdiff.evaluation.compare import likeness, psnr, side_by_side, ssim
from asyncdiff.made.output import Made


def test_identical_pictures() -> None:
    picture = np.random.default_rng(0).random((20, 30, 3))
    assert psnr(picture, picture) == math.inf
    assert ssim(picture, picture) == pytest.approx(1)


def test_pictures_are_no_frames() -> None:
    dark, light = Image.new("RGB", (16, 16)), Image.new("RGB", (16, 16), "white")
    pictures, others = Made((dark, dark)), Made((dark, light))
    assert "the worst of 2 pictures" in str(likeness(pictures, others))
    videos, others = Made(videos=((dark, dark),)), Made(videos=((dark, light),))
    assert "the worst of 2 frames" in str(likeness(videos, others))


def test_a_constant_offset() -> None:
    dark, light = np.full((16, 16, 3), 0.25), np.full((16, 16, 3), 0.75)
    assert psnr(dark, light) == pytest.approx(20 * math.log10(1 / 0.5))
    c1 = 0.01**2  # without variance only the luminance term is left
    assert ssim(dark, light) == pytest.approx((2 * 0.25 * 0.75 + c1) / (0.25**2 + 0.75**2 + c1))


def test_ssim_is_the_papers_formula() -> None:
    generator = np.random.default_rng(1)
    first = generator.random((17, 14, 3))
    second = np.clip(first + 0.2 * generator.standard_normal(first.shape), 0, 1)
    y, x = np.mgrid[-5:6, -5:6]
    weights = np.exp(-(x**2 + y**2) / (2 * 1.5**2))
    weights /= weights.sum()
    values = []
    for channel in range(3):
        for top in range(17 - 10):
            for left in range(14 - 10):
                window = np.s_[top : top + 11, left : left + 11, channel]
                a, b = first[window], second[window]
                mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
                variance_a = (weights * (a - mean_a) ** 2).sum()
                variance_b = (weights * (b - mean_b) ** 2).sum()
                covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
                luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
                structure = (2 * covariance + 0.03**2) / (variance_a + variance_b + 0.03**2)
                values.append(luminance * structure)
    assert ssim(first, second) == pytest.approx(np.mean(values), abs=1e-9)


def test_pictures_that_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="differ in size"):
        psnr(np.zeros((16, 16, 3)), np.zeros((16, 17, 3)))
    with pytest.raises(ValueError, match="at least 11x11"):
        ssim(np.zeros((16, 8, 3)), np.zeros((16, 8, 3)))


def test_small_pictures_are_enlarged_side_by_side() -> None:
    red, blue = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    sheet = side_by_side([red, blue], ["sequential", "asyncdiff"])
    assert sheet.getpixel((sheet.width // 4, 100)) == (255, 0, 0)
    assert sheet.getpixel((3 * sheet.width // 4, 100)) == (0, 0, 255)
    assert sheet.width > 512 and sheet.height > 256
