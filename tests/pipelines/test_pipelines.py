"""Every family of pipelines through its own call: all-warm-up, rounds, repetition, and real processes."""

import contextlib
import functools
import inspect
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from asyncdiff import AsyncDiff
from asyncdiff.errors import LabelError
from asyncdiff.report import Counts
from asyncdiff.runtime.clock import find_schedulers
from tests.comparison import relative_error
from tests.processes import run_ranks
from tests.tiny import PIPELINES, TinyPipeline, every, run

# One of every way to call a denoiser; the others' ways are theirs with more channels, or run on two processes below.
IN_ONE = ("sdxl", "sd3", "flux", "panorama", "wan22", "skyreels_forcing_long")


@pytest.mark.parametrize("name", every(*IN_ONE))
def test_one_process(name: str) -> None:
    """w ≥ T is the sequential pipeline bit for bit; rounds change the result a little, and repeatably."""
    _check_in_one_process(name, [(3, 2)] if 2 in PIPELINES[name].strides else [(2, 1), (3, 2)])


@pytest.mark.whole
@pytest.mark.parametrize("name", PIPELINES)
def test_other_divisions_in_one_process(name: str) -> None:
    _check_in_one_process(name, [(2, 1), (2, 2), (3, 1), (4, 1), (4, 2)])


def _check_in_one_process(name: str, settings: list[tuple[int, int]]) -> None:
    tiny = PIPELINES[name]
    pipe = tiny.build()
    sequential, streams = _run_and_watch(pipe, tiny)
    short = run(pipe, tiny, num_inference_steps=2)
    for components, stride in settings:
        with (
            AsyncDiff(pipe, components, stride, warmup=99, executor="local", method="paper"),
            pytest.warns(UserWarning, match="accelerates nothing"),
        ):
            assert torch.equal(run(pipe, tiny, num_inference_steps=2), short)
        if stride not in tiny.strides:
            with (
                AsyncDiff(pipe, components, stride, warmup=3, executor="local", method="paper"),
                pytest.raises(LabelError, match="use stride=1"),
            ):
                run(pipe, tiny, num_inference_steps=tiny.steps)
            continue
        with AsyncDiff(pipe, components, stride, warmup=3, executor="local", method="paper") as async_diff:
            found = run(pipe, tiny, num_inference_steps=tiny.steps)
            reports = async_diff.report().denoisers
            assert {report.name for report in reports} == streams.keys()
            for report in reports:
                _check_counts(report.counts, streams[report.name])
            assert torch.isfinite(found).all(), "a placeholder was read"
            assert not torch.equal(found, sequential)
            assert relative_error(found, sequential) < 1
            if (components, stride) == (3, 2):
                assert torch.equal(run(pipe, tiny, num_inference_steps=tiny.steps), found)
    assert torch.equal(run(pipe, tiny, num_inference_steps=tiny.steps), sequential)


# Skips, texts in one stream and in two, two denoisers, pieces.
FORECAST = ("sd15", "sd3", "flux", "wan22", "skyreels_forcing_long")


@pytest.mark.parametrize("name", every(*FORECAST))
def test_forecasts(name: str) -> None:
    """What is forecast is finite and the same in every run; the second step after the warm-up is bridged."""
    tiny = PIPELINES[name]
    pipe = tiny.build()
    steps = tiny.steps + 5
    sequential = run(pipe, tiny, num_inference_steps=steps)
    with AsyncDiff(pipe, 3, warmup=3, bridge=2, cooldown=0, executor="local") as async_diff:
        found = run(pipe, tiny, num_inference_steps=steps)
        counts = [report.counts for report in async_diff.report().denoisers]
        assert torch.equal(run(pipe, tiny, num_inference_steps=steps), found)
    assert all(each.rounds and not each.stored for each in counts)
    # Three steps of warm-up, a round, a bridged step, three that are not bridged: one of two denoisers may have fewer.
    assert any(each.bridged for each in counts)
    assert torch.isfinite(found).all(), "a placeholder was read"
    assert not torch.equal(found, sequential)
    assert torch.equal(run(pipe, tiny, num_inference_steps=steps), sequential)


def _check_counts(counts: Counts, lengths: list[tuple[int, int]]) -> None:
    """With three steps of warm-up: a stream's first three calls are computed in full, and no others."""
    in_full = sum(min(3, length) for _, length in lengths)
    assert counts.full["warm-up"] == sum(min(3, length) for begin, length in lengths if begin == 0)
    assert counts.full.total() == in_full
    assert counts.rounds + counts.stored == sum(length for _, length in lengths) - in_full
    assert counts.rounds > 0
    assert counts.units_skipped > 0


def _run_and_watch(pipe: DiffusionPipeline, tiny: TinyPipeline) -> tuple[Tensor, dict[str, list[tuple[int, int]]]]:
    """The sequential result; of every denoiser, in which step each stream of its calls began, and how many it had.

    Calls of one step are of different streams; so are calls of different steps, if inputs have other shapes or names.
    What counts are the last timesteps that were set: a pipeline may have several stages, each with its own.
    """
    names = (tiny.denoiser, *tiny.others)
    steps: list[Counter[Any]] = [Counter()]
    stage = 0
    lengths: dict[str, dict[Any, tuple[int, int]]] = {}
    last_stage: dict[str, int] = {}
    views = itertools.count(1)

    def begin_stage() -> None:
        nonlocal stage
        steps[:], stage = [Counter()], stage + 1

    def end_view() -> None:
        if next(views) % tiny.views == 0:
            steps.append(Counter())

    def count(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if last_stage.get(name) != stage:
            last_stage[name], lengths[name] = stage, {}
        form = tuple(
            tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, (Tensor, str))
        )
        stream = form, steps[-1][name, form]
        steps[-1][name, form] += 1
        begin, length = lengths[name].get(stream, (len(steps) - 1, 0))
        lengths[name][stream] = begin, length + 1

    with contextlib.ExitStack() as watching:
        for kind in {type(scheduler) for scheduler in find_schedulers(pipe).values()}:
            watching.enter_context(_heard(kind, "set_timesteps", begin_stage))
            watching.enter_context(_heard(kind, "step", end_view))
        for name in names:
            hook = functools.partial(count, name)
            watching.enter_context(getattr(pipe, name).register_forward_pre_hook(hook, with_kwargs=True))
        sequential = run(pipe, tiny, num_inference_steps=tiny.steps)
    return sequential, {name: list(streams.values()) for name, streams in lengths.items()}


def _heard(kind: type, name: str, listener: Callable[[], None]) -> contextlib.AbstractContextManager[Any]:
    """Tells a listener of every call of a method; of copies of an object too, which pipelines may make."""
    method = getattr(kind, name)

    @functools.wraps(method)
    def heard(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        listener()
        return result

    return mock.patch.object(kind, name, heard)


def _apart(rank: int, name: str, settings: list[tuple[int, int]]) -> list[tuple[Tensor, list[Tensor]]]:
    """Final results of the distributed run, and its latents after every step."""
    tiny = PIPELINES[name]
    pipe = tiny.build()
    latents: list[Tensor] = []

    def remember(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        latents.append(values["latents"].clone())
        return values

    reports_steps = "callback_on_step_end" in inspect.signature(type(pipe).__call__).parameters
    watched = {"callback_on_step_end": remember} if reports_steps else {}
    results = []
    for components, stride in settings:
        latents.clear()
        with AsyncDiff(pipe, components, stride, warmup=1 + stride, executor="distributed", timeout=60, method="paper"):
            apart = run(pipe, tiny, num_inference_steps=tiny.steps, **watched)
        results.append((apart, list(latents) or [apart]))
    return results


def _check(world_size: int, name: str, settings: list[tuple[int, int]]) -> None:
    everyone = run_ranks(world_size, _apart, name, settings)
    tiny = PIPELINES[name]
    pipe = tiny.build()
    for number, (components, stride) in enumerate(settings):
        with AsyncDiff(pipe, components, stride, warmup=1 + stride, executor="local", method="paper"):
            together = run(pipe, tiny, num_inference_steps=tiny.steps)
        for apart, _ in (of_rank[number] for of_rank in everyone):
            assert relative_error(apart, together) < 1e-5
        first = everyone[0][number][1]
        assert first
        for of_rank in everyone[1:]:
            assert all(torch.equal(a, b) for a, b in zip(of_rank[number][1], first, strict=True))


# What other tests let run on several processes (sd15, sdxl, sd3, flux, ...) is left out here.
ON_TWO = (
    "sd21",
    "modular_sd3_skip_layers",
    "wan22",
    "skyreels_forcing_long",
)


@pytest.mark.parametrize("name", every(*ON_TWO))
def test_two_processes(name: str) -> None:
    _check(
        2, name, [(components, stride) for components, stride in ((2, 1), (1, 2)) if stride in PIPELINES[name].strides]
    )


@pytest.mark.parametrize("name", [pytest.param("sd15", marks=pytest.mark.whole), "flux"])
def test_three_processes(name: str) -> None:
    _check(3, name, [(3, 1), (2, 2)])


@pytest.mark.parametrize("name", [pytest.param("sdxl", marks=pytest.mark.whole), "sd3"])
def test_four_processes(name: str) -> None:
    _check(4, name, [(4, 1), (3, 2), (2, 3)])
