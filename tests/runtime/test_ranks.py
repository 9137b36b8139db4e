"""Ranks that do not do the same, and ranks that stop: an error in the same round, and a next call that works."""

import itertools
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import Tensor

from asyncdiff import AsyncDiff
from asyncdiff.errors import ExchangeError, OtherUnitsError, RankMismatchError, StoppedError
from tests.processes import run_ranks
from tests.tiny import PIPELINES, run
from tests.tiny.adapters import SMALL, load_lora

SD15, SD3 = PIPELINES["sd15"], PIPELINES["sd3"]
STEPS = 8  # three of warm-up, rounds, two of cool-down
MIDDLE = 4  # after a round, before another


def _attach(pipe: DiffusionPipeline, **settings: Any) -> AsyncDiff:
    return AsyncDiff(pipe, **{"components": 2, "executor": "distributed", "timeout": 30, **settings})


# What is not the same on all ranks (rows 3 and 4).


def _loaded(scale: float) -> Callable[[DiffusionPipeline], None]:
    def change(pipe: DiffusionPipeline) -> None:
        load_lora(pipe, "a", 1)
        pipe.set_adapters(["a"], adapter_weights=[scale])

    return change


def _switched_off(pipe: DiffusionPipeline) -> None:
    _loaded(1.0)(pipe)
    pipe.disable_lora()


def _with_two(active: str) -> Callable[[DiffusionPipeline], None]:
    def change(pipe: DiffusionPipeline) -> None:
        load_lora(pipe, "a", 1)
        load_lora(pipe, "b", 2)
        pipe.set_adapters([active])

    return change


def _other_weight(pipe: DiffusionPipeline) -> None:
    pipe.unet.mid_block.resnets[0].conv1.weight.data.mul_(1.01)


# What the first rank does, what the second does, and what the error names.
DIFFERENCES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any], str]] = {
    "an adapter on one": (_loaded(1.0), lambda pipe: None, "of the module '"),
    "another scale": (_loaded(1.0), _loaded(0.5), "'scaling' of the module '"),
    "adapters that are off": (_loaded(1.0), _switched_off, "'disable_adapters' of the module '"),
    "another adapter of two": (_with_two("a"), _with_two("b"), "'active_adapters' of the module '"),
    "another weight": (lambda pipe: None, _other_weight, "the weight 'mid_block.resnets.0.conv1.weight' of the 'unet'"),
    "another setting of a module": (
        lambda pipe: None,
        lambda pipe: pipe.enable_freeu(0.9, 0.2, 1.2, 1.4),
        "'[sb][12]' of the module 'up_blocks",
    ),
}


def _different(rank: int, name: str) -> str:
    pipe = SMALL.build()
    DIFFERENCES[name][rank](pipe)  # type: ignore[operator]
    with _attach(pipe), pytest.raises((RankMismatchError, StoppedError)) as caught:
        run(pipe, SMALL, num_inference_steps=STEPS)
    return str(caught.value)


@pytest.mark.parametrize("name", DIFFERENCES)
def test_what_differs_is_named(name: str) -> None:
    for text in run_ranks(2, _different, name):
        assert "is not the same on all ranks (rank 0: " in text
        assert re.search(DIFFERENCES[name][2], text), text


def _steps(rank: int) -> str:
    """Timetables that begin with the same timestep."""
    pipe = SMALL.build()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    with _attach(pipe), pytest.raises((RankMismatchError, StoppedError)) as caught:
        run(pipe, SMALL, num_inference_steps=STEPS + rank)
    return str(caught.value)


def test_another_number_of_steps_is_named_at_once() -> None:
    for text in run_ranks(2, _steps):
        assert "the timetable of the generation is not the same on all ranks (rank 0: 8 steps, rank 1: 9 steps)" in text


def _without_guidance(rank: int, settings: dict[str, Any], times: int) -> list[str]:
    """On one rank a callback ends the guidance, as the handbook of diffusers shows it."""
    pipe, texts = SMALL.build(), []

    def end_guidance(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if index == MIDDLE:
            pipe._guidance_scale = 0.0
            values["prompt_embeds"] = values["prompt_embeds"].chunk(2)[-1]
        return values

    given = {"callback_on_step_end": end_guidance, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    with _attach(pipe, timeout=3, **settings):
        for _ in range(times):
            with pytest.raises(ExchangeError) as caught:
                run(pipe, SMALL, num_inference_steps=STEPS, **(given if rank == 1 else {}))
            texts.append(str(caught.value))
        run(pipe, SMALL, num_inference_steps=STEPS)
    return texts


@pytest.mark.parametrize(
    ("settings", "times"),
    [
        ({}, 1),
        pytest.param({"components": None, "guidance": 2}, 1, marks=pytest.mark.whole),
        pytest.param({}, 2, marks=pytest.mark.whole),
    ],
)
def test_a_rank_that_goes_over_to_other_calls_is_named(settings: dict[str, Any], times: int) -> None:
    for texts in run_ranks(2, _without_guidance, settings, times):
        assert len(texts) == times
        for text in texts:
            assert "rank 1: from step 6 on its calls are of (1, 4, " in text
            assert "before, they were of (2, 4, " in text


# One rank stops (row 9), or fails.


def _stop(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
    pipe._interrupt = index == MIDDLE
    return values


def _fail(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
    if index == MIDDLE:
        raise KeyError("enough")
    return values


def _out_of_memory(pipe: DiffusionPipeline) -> Callable[[], None]:
    """As a device says it: in a round, in a unit that every rank runs."""
    seen = []

    def fail(*args: Any) -> None:
        seen.append(args)
        if len(seen) == MIDDLE + 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    return pipe.transformer.time_text_embed.register_forward_pre_hook(fail).remove


MISHAPS = {"stopped": _stop, "failed": _fail}


def _mishap(rank: int, kind: str, who: int, settings: dict[str, Any]) -> tuple[str, float, list[Tensor]]:
    """What came of a generation that goes wrong on one rank, after how long, and the next one beside one before."""
    pipe = SD3.build()
    with _attach(pipe, **settings):
        pictures = [run(pipe, SD3, num_inference_steps=STEPS)]
        begin, text = time.monotonic(), ""
        undo = _out_of_memory(pipe) if kind == "out of memory" and rank == who else None
        try:
            run(pipe, SD3, num_inference_steps=STEPS, callback_on_step_end=MISHAPS.get(kind) if rank == who else None)
        except (StoppedError, KeyError, torch.OutOfMemoryError) as error:
            text = f"{type(error).__name__}: {error}"
        seconds = time.monotonic() - begin
        if undo is not None:
            undo()
        pictures.append(run(pipe, SD3, num_inference_steps=STEPS))
    return text, seconds, pictures


def _mishaps() -> Iterator[Any]:
    """Every kind, and every layout; all kinds of each in `make test-all`."""
    layouts: dict[str, tuple[int, dict[str, Any]]] = {
        "2": (2, {}),
        "3": (3, {"components": 3}),
        "2x2": (4, {"guidance": 2}),
    }
    for layout, kind in itertools.product(layouts, ("stopped", "failed", "out of memory")):
        is_quick = layout == "2" or (layout, kind) in (("3", "failed"), ("2x2", "stopped"))
        marks = () if is_quick else (pytest.mark.whole,)
        yield pytest.param(kind, *layouts[layout], id=f"{layout}-{kind}", marks=marks)


@pytest.mark.parametrize(("kind", "world_size", "settings"), _mishaps())
def test_a_mishap_on_one_rank_ends_the_generation_on_all(kind: str, world_size: int, settings: dict[str, Any]) -> None:
    who = world_size - 1
    results = run_ranks(world_size, _mishap, kind, who, settings)
    reasons = {
        "stopped": "it was stopped after step 5 of 8",
        "failed": "KeyError",
        "out of memory": "OutOfMemoryError",
    }
    for rank, (text, seconds, (before, *after)) in enumerate(results):
        if rank != who:
            assert text.startswith("StoppedError"), text
            assert f"rank {who}: {reasons[kind]}" in text
        elif kind != "stopped":
            assert text.startswith(reasons[kind])
        assert seconds < 10
        assert all(torch.equal(picture, before) for picture in after)
        assert torch.equal(before, results[0][2][0])


def _first_call_of_another(rank: int) -> tuple[str, float, list[Tensor]]:
    """Of a pipeline that shares the denoiser, and fails on one rank, which then goes on with the first one."""
    pipe = SMALL.build()
    other = type(pipe)(**pipe.components)
    with _attach(pipe):
        pictures = [run(pipe, SMALL, num_inference_steps=STEPS)]
        begin, text = time.monotonic(), ""
        try:
            run(other, SMALL, num_inference_steps=STEPS, callback_on_step_end=_fail if rank else None)
        except (StoppedError, KeyError) as error:
            text = f"{type(error).__name__}: {error}"
        pictures += [run(each, SMALL, num_inference_steps=STEPS) for each in (pipe, other)]
        return text, time.monotonic() - begin, pictures


def test_the_first_call_of_another_pipeline_that_fails_on_one_rank() -> None:
    (stopped, *_), (failed, *_) = results = run_ranks(2, _first_call_of_another)
    assert "rank 1: a call of another pipeline (StableDiffusionPipeline) ended after step 5 of 9" in stopped
    assert failed.startswith("KeyError")
    for _, seconds, (before, *after) in results:
        assert seconds < 15
        assert all(torch.equal(picture, before) for picture in after)


def _settings_in_a_callback(rank: int, is_small: bool) -> str:
    """FreeU, put on by a callback of one rank."""
    tiny = SMALL if is_small else SD15
    pipe = tiny.build()

    def change(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if index == MIDDLE:
            pipe.enable_freeu(0.9, 0.2, 1.2, 1.4)
        return values

    with _attach(pipe), pytest.raises((RankMismatchError, StoppedError, OtherUnitsError)) as caught:
        run(pipe, tiny, num_inference_steps=STEPS, callback_on_step_end=change if rank else None)
    return str(caught.value)


def test_what_one_rank_changes_in_the_middle_is_named_at_the_end() -> None:
    for text in run_ranks(2, _settings_in_a_callback, False):
        assert "of the module 'up_blocks" in text


def test_or_at_once_where_it_meets_what_was_recorded_before() -> None:
    """Here it writes to what stands for another component's output, of which torch would tell in its own words.

    The other rank hears of it though the error, and all that its frames hold, lives on where it was caught.
    """
    begin = time.monotonic()
    for text in run_ranks(2, _settings_in_a_callback, True):
        assert "modules of the denoiser 'unet', or their settings, have changed within a generation" in text
    assert time.monotonic() - begin < 20  # the time limit is 30


def _detached(rank: int) -> str:
    pipe = SMALL.build()
    async_diff = _attach(pipe)

    def detach(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if index == MIDDLE:
            async_diff.disable()
        return values

    try:
        run(pipe, SMALL, num_inference_steps=STEPS, callback_on_step_end=detach if rank else None)
    except StoppedError as error:
        return str(error)
    return ""


def test_detaching_on_one_rank_while_it_generates() -> None:
    (text, nothing) = run_ranks(2, _detached)
    assert "rank 1: asyncdiff was detached there" in text
    assert not nothing


def _attached_again(rank: int) -> tuple[float, Tensor]:
    """What our own error used to advise."""
    pipe = SMALL.build()
    async_diff = _attach(pipe)
    try:
        run(pipe, SMALL, num_inference_steps=STEPS, callback_on_step_end=_stop if rank == 1 else None)
    except StoppedError:
        assert rank == 0
    begin = time.monotonic()
    async_diff.disable()
    with _attach(pipe):
        return time.monotonic() - begin, run(pipe, SMALL, num_inference_steps=STEPS)


def test_attaching_again_after_a_stop() -> None:
    (seconds, first), (_, second) = run_ranks(2, _attached_again)
    assert seconds < 5
    assert torch.equal(first, second)
