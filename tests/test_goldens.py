"""The outputs of the reference implementation, reproduced by both executors."""

import functools
import itertools
from collections.abc import Iterator
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
# Of the largest division among processes, with the shift and without; in one process of every other one with the shift,
# of one without, and of the largest nothing but ordinary steps.
QUICK = [(1, True), (3, False)]
AMONG_PROCESSES = [(3, 2)]
MORE = [(4, 1, 3, False), (3, 2, 12, True)]
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


def _local() -> Iterator[Any]:
    for components, stride in SETTINGS:
        for warmup, time_shift in itertools.product(WARMUPS, (False, True)):
            case = components, stride, warmup, time_shift
            is_quick = (warmup, time_shift) == QUICK[0] and (components, stride) not in AMONG_PROCESSES
            is_quick = is_quick or case in MORE
            yield case if is_quick else pytest.param(*case, marks=pytest.mark.whole)


@pytest.mark.parametrize(("components", "stride", "warmup", "time_shift"), _local())
def test_local_executor(components: int, stride: int, warmup: int, time_shift: bool) -> None:
    found = run(components, stride, warmup, time_shift, "local")
    assert relative_error(found, golden_latents(components, stride, warmup, time_shift)) < TOLERANCE


def _in_turn(rank: int, components: int, stride: int, cases: list[tuple[int, bool]]) -> list[Tensor]:
    return [run(components, stride, warmup, time_shift, "distributed") for warmup, time_shift in cases]


@pytest.mark.parametrize(
    "cases",
    [
        QUICK,
        pytest.param(
            [case for case in itertools.product(WARMUPS, (False, True)) if case not in QUICK],
            marks=pytest.mark.whole,
        ),
    ],
    ids=["quick", "others"],
)
@pytest.mark.parametrize(
    ("components", "stride"),
    [each if each in AMONG_PROCESSES else pytest.param(*each, marks=pytest.mark.whole) for each in SETTINGS],
)
def test_distributed_executor(components: int, stride: int, cases: list[tuple[int, bool]]) -> None:
    world_size = components + stride - 1
    for found in run_ranks(world_size, _in_turn, components, stride, cases, limit=60.0 * len(cases)):
        for (warmup, time_shift), latents in zip(cases, found, strict=True):
            assert relative_error(latents, golden_latents(components, stride, warmup, time_shift)) < TOLERANCE


def test_a_wrong_recurrence_would_show() -> None:
    """The tolerance tells settings apart: staleness of another kind is far outside it."""
    stale = golden_latents(2, 1, 3, False)
    assert relative_error(golden_latents(3, 1, 3, False), stale) > 10 * TOLERANCE
    assert relative_error(golden_latents(2, 1, 3, True), stale) > 10 * TOLERANCE
    assert torch.isfinite(stale).all()
