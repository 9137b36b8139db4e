"""Pipelines whose call is a generator: one picture at a time, and never a mixture of two."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

from asyncdiff import AsyncDiff
from asyncdiff.errors import BusyError
from tests.tiny.adapters import SMALL
from tests.tiny.base import noise

STEPS = 8


class Stepwise(StableDiffusionPipeline):
    """Gives the latents after every step."""

    @torch.no_grad()
    def __call__(self, seed: int, steps: int = STEPS) -> Iterator[Tensor]:  # type: ignore[override]
        latents, text = noise(1, 4, 16, 16, seed=seed), noise(1, 7, 16, seed=seed + 1)
        self.scheduler.set_timesteps(steps)
        for timestep in self.scheduler.timesteps:
            predicted = self.unet(latents, timestep, encoder_hidden_states=text)[0]
            latents = self.scheduler.step(predicted, timestep, latents).prev_sample
            yield latents


def build() -> Stepwise:
    pipe = SMALL.build()
    return Stepwise(**{**pipe.components, "scheduler": DDIMScheduler.from_config(pipe.scheduler.config)})


def sharing(pipe: Stepwise) -> Stepwise:
    """Another pipeline on the same denoiser, with a scheduler of its own."""
    return Stepwise(**{**pipe.components, "scheduler": DDIMScheduler.from_config(pipe.scheduler.config)})


def attach(pipe: Any) -> AsyncDiff:
    return AsyncDiff(pipe, components=2, executor="local")


def last(steps: Iterator[Tensor]) -> Tensor:
    *_, picture = steps
    return picture


def test_one_after_the_other() -> None:
    pipe = build()
    with attach(pipe) as async_diff:
        expected = [last(pipe(seed)) for seed in (1, 2)]
        assert async_diff.report().denoisers[0].counts.rounds == STEPS - 5
        made_at_first = [pipe(seed) for seed in (1, 2)]  # which draws nothing yet
        assert all(torch.equal(last(steps), one) for steps, one in zip(made_at_first, expected, strict=True))


@pytest.mark.parametrize("is_shared", [False, True])
def test_one_that_is_left_for_another_is_refused(is_shared: bool) -> None:
    """And the other one is not disturbed, be it of the same pipeline or of one that shares the denoiser."""
    pipe = build()
    other = sharing(pipe) if is_shared else pipe
    with attach(pipe):
        last(other(2))  # from its second call on, a pipeline's generators are known
        expected = last(other(2))
        first, second = pipe(1), other(2)
        next(first), next(first), next(second)
        with pytest.raises(BusyError, match="this generator was left in the middle"):
            next(first)
        assert torch.equal(last(second), expected)
        assert torch.equal(last(other(2)), expected)


def test_one_that_is_given_up() -> None:
    pipe = build()
    with attach(pipe):
        expected = last(pipe(2))
        for _ in range(3):
            steps = pipe(1)
            next(steps), next(steps)
            assert torch.equal(last(pipe(2)), expected)


@pytest.mark.filterwarnings("ignore:a call of the 'unet'")
def test_what_is_asked_between_two_steps_disturbs_nothing() -> None:
    pipe, plain = build(), build()
    given = {"sample": noise(1, 4, 16, 16, seed=5), "timestep": 500, "encoder_hidden_states": noise(1, 7, 16, seed=6)}
    with attach(pipe), torch.no_grad():
        expected = last(pipe(1))
        drawn = []
        for latents in pipe(1):
            assert torch.equal(pipe.unet(**given)[0], plain.unet(**given)[0])
            drawn.append(latents)
        assert torch.equal(drawn[-1], expected)


def test_every_step_in_a_thread_of_its_own() -> None:
    """As servers do it."""
    pipe = build()
    with attach(pipe) as async_diff:
        expected, steps = last(pipe(1)), pipe(1)
        for _ in range(STEPS):
            with ThreadPoolExecutor(1) as thread:
                latents = thread.submit(next, steps).result()
        assert torch.equal(latents, expected)
        assert async_diff.report().denoisers[0].counts.rounds == STEPS - 5
