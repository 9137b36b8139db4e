"""Guidance branches that pipelines name: known from a generation's first call on, whoever is attached in it."""

from typing import Any

import pytest
import torch

from asyncdiff import AsyncDiff
from tests.tiny import PIPELINES, run

NAMES = ("flux_true_cfg", "qwen_image")


@pytest.mark.parametrize("settings", [{}, {"bridge": 3}], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_first_generation_is_like_the_next_where_it_decides_who_computes_what(
    name: str, settings: dict[str, Any]
) -> None:
    """With nothing told of groups and components, what computes is made within the first call, in its branch."""
    tiny, pipe = PIPELINES[name], PIPELINES[name].build()
    with AsyncDiff(pipe, executor="local", **settings) as async_diff:
        pictures, counts = [], []
        for _ in range(2):
            pictures.append(run(pipe, tiny, num_inference_steps=9))
            counts.append(async_diff.report().denoisers[0].counts)
    assert torch.equal(*pictures)
    assert all(set(each.full) <= {"warm-up", "resync or cool-down"} for each in counts)
    assert counts[0].kinds == counts[1].kinds


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_on_the_denoiser(name: str) -> None:
    pipe = PIPELINES[name].build()
    denoiser = getattr(pipe, PIPELINES[name].denoiser)
    before = dict(vars(denoiser))
    AsyncDiff(pipe, executor="local").disable()
    assert vars(denoiser).keys() == before.keys() and "cache_context" not in vars(denoiser)
