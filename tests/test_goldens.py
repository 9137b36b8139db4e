"""The outputs of the reference implementation, reproduced by both executors."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from asyncdiff import AsyncDiff
from tests.comparison import relative_error
from tests.golden import golden_latents, golden_pipeline, golden_split
from tests.processes import run_ranks

SETTINGS = [(2, 1), (3, 1), (4, 1), (2, 2), (3, 2)]
WARMUPS = [1, 3, 5, 12]
TOLERANCE = 1e-4


@functools.cache
def pipeline() -> tuple[Any, dict[str, Any]]:
    return golden_pipeline()


def run(components: int, stride: int, warmup: int, time_shift: bool, executor: Any) -> Tensor:
    pipe, inputs = pipeline()
    with AsyncDiff(
        pipe,
        components,
        stride,
        warmup,
        time_shift=time_shift,
        split=golden_split(components),
        executor=executor,
        timeout=60,
        method="paper",
    ):
        return pipe(**inputs).images


@pytest.mark.parametrize("time_shift", [False, True])
@pytest.mark.parametrize("warmup", WARMUPS)
@pytest.mark.parametrize(("components", "stride"), SETTINGS)
def test_local_executor(components: int, stride: int, warmup: int, time_shift: bool) -> None:
    found = run(components, stride, warmup, time_shift, "local")
    assert relative_error(found, golden_latents(components, stride, warmup, time_shift)) < TOLERANCE


def _every_warmup(rank: int, components: int, stride: int) -> dict[tuple[int, bool], Tensor]:
    return {
        (warmup, time_shift): run(components, stride, warmup, time_shift, "distributed")
        for warmup in WARMUPS
        for time_shift in (False, True)
    }


@pytest.mark.parametrize(("components", "stride"), SETTINGS)
def test_distributed_executor(components: int, stride: int) -> None:
    world_size = components + stride - 1
    for found in run_ranks(world_size, _every_warmup, components, stride):
        for (warmup, time_shift), latents in found.items():
            assert relative_error(latents, golden_latents(components, stride, warmup, time_shift)) < TOLERANCE


def test_a_wrong_recurrence_would_show() -> None:
    """The tolerance tells settings apart: staleness of another kind is far outside it."""
    stale = golden_latents(2, 1, 3, False)
    assert relative_error(golden_latents(3, 1, 3, False), stale) > 10 * TOLERANCE
    assert relative_error(golden_latents(2, 1, 3, True), stale) > 10 * TOLERANCE
    assert torch.isfinite(stale).all()
