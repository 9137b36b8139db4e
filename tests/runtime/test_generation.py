"""When a call of a denoiser is part of a generation, and of which: what users do to one, and what must come of it."""

import contextlib
import functools
import gc
import threading
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    HeunDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from torch import Tensor

from asyncdiff import AsyncDiff
from asyncdiff.errors import BusyError, NotANumberError
from asyncdiff.report import Counts
from asyncdiff.runtime.turn import Turn
from tests.tiny import run
from tests.tiny.adapters import SMALL
from tests.tiny.base import image, noise

STEPS = 8
CALLS = STEPS + 1  # PNDM: one more


def attach(pipe: Any, **settings: Any) -> AsyncDiff:
    return AsyncDiff(pipe, **{"components": 2, "executor": "local", **settings})


def counts(async_diff: AsyncDiff) -> Counts:
    return async_diff.report().denoisers[0].counts


def arguments(seed: int = 3) -> dict[str, Any]:
    """Of a call of the denoiser that has nothing to do with a picture."""
    return {
        "sample": noise(1, 4, 16, 16, seed=seed),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": noise(1, 7, 16, seed=seed + 1),
    }


# Calls that no pipeline makes (row 1).


@pytest.mark.filterwarnings("ignore:a call of the 'unet'")
def test_calls_between_generations_are_the_plain_ones() -> None:
    pipe, plain = SMALL.build(), SMALL.build()
    with attach(pipe) as async_diff, torch.no_grad():
        first = run(pipe, SMALL, num_inference_steps=STEPS)
        for timestep in (900, 500, 500, 20, 700, 300, 100):
            given = arguments() | {"timestep": torch.tensor(timestep)}
            assert torch.equal(pipe.unet(**given)[0], plain.unet(**given)[0])
        assert counts(async_diff).steps == CALLS
        assert torch.equal(run(pipe, SMALL, num_inference_steps=STEPS), first)


@pytest.mark.filterwarnings("ignore:a call of the 'unet'")
def test_gradients_are_those_of_the_plain_denoiser() -> None:
    def gradient(pipe: DiffusionPipeline) -> Tensor:
        given = arguments()
        sample = given["sample"].requires_grad_()
        for _ in range(5):
            pipe.unet(**given)[0].square().mean().backward()
        assert sample.grad is not None
        return sample.grad

    pipe = SMALL.build()
    expected = gradient(SMALL.build())
    with attach(pipe):
        run(pipe, SMALL, num_inference_steps=STEPS)
        assert torch.equal(gradient(pipe), expected)


@pytest.mark.filterwarnings("ignore:a call of the 'unet'")
def test_what_a_callback_asks_the_denoiser_disturbs_nothing() -> None:
    pipe, plain = SMALL.build(), SMALL.build()
    asked: list[Tensor] = []

    def ask(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        asked.append(pipe.unet(**arguments())[0])
        return values

    with attach(pipe) as async_diff:
        expected = run(pipe, SMALL, num_inference_steps=STEPS)
        assert torch.equal(run(pipe, SMALL, num_inference_steps=STEPS, callback_on_step_end=ask), expected)
        assert counts(async_diff).steps == CALLS
    with torch.no_grad():
        assert all(torch.equal(each, plain.unet(**arguments())[0]) for each in asked)
    assert len(asked) == CALLS


def test_it_is_said_once_that_a_call_is_outside() -> None:
    pipe = SMALL.build()
    with attach(pipe), torch.no_grad():
        with pytest.warns(UserWarning, match=r"the 'unet' is part of no generation \(no pipeline is generating\)"):
            pipe.unet(**arguments())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pipe.unet(**arguments())


def test_paused() -> None:
    pipe = SMALL.build()
    expected = run(SMALL.build(), SMALL, num_inference_steps=STEPS)
    with attach(pipe) as async_diff, warnings.catch_warnings():
        warnings.simplefilter("error")
        with async_diff.paused(), torch.no_grad():
            pipe.unet(**arguments())
            assert torch.equal(run(pipe, SMALL, num_inference_steps=STEPS), expected)
        assert not torch.equal(run(pipe, SMALL, num_inference_steps=STEPS), expected)


@pytest.mark.filterwarnings("ignore:a call of the 'unet'")
@pytest.mark.parametrize("is_first_drawn", [True, False])
def test_a_method_of_a_pipeline_that_asks_in_any_order(is_first_drawn: bool) -> None:
    class Trained(StableDiffusionPipeline):
        def log_probability(self, given: dict[str, Any]) -> Tensor:
            result: Tensor = self.unet(**given)[0]
            return result

    plain = SMALL.build()
    parts = SMALL.build().components
    pipe = Trained(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    with attach(pipe), torch.no_grad():
        if is_first_drawn:
            run(pipe, SMALL, num_inference_steps=STEPS)
        for timestep in (900, 850, 400, 777, 20, 500):
            given = arguments(timestep) | {"timestep": torch.tensor(timestep)}
            assert torch.equal(pipe.log_probability(given), plain.unet(**given)[0])


@pytest.mark.filterwarnings("ignore:a call of the 'unet'")
def test_a_callback_that_is_wrapped() -> None:
    pipe, plain = SMALL.build(), SMALL.build()
    asked: list[Tensor] = []

    def ask(into: list[Tensor], pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        into.append(pipe.unet(**arguments())[0])
        return values

    with attach(pipe) as async_diff:
        run(pipe, SMALL, num_inference_steps=STEPS, callback_on_step_end=functools.partial(ask, asked))
        assert counts(async_diff).steps == CALLS
    with torch.no_grad():
        assert all(torch.equal(each, plain.unet(**arguments())[0]) for each in asked)


# Loops written by hand.


LATENTS, PROMPT = noise(1, 4, 16, 16, seed=5), noise(1, 7, 16, seed=6)


def by_hand(pipe: DiffusionPipeline) -> Tensor:
    """A loop as in diffusers' own course."""
    latents = LATENTS
    pipe.scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for timestep in pipe.scheduler.timesteps:
            predicted = pipe.unet(latents, timestep, encoder_hidden_states=PROMPT).sample
            latents = pipe.scheduler.step(predicted, timestep, latents).prev_sample
    return latents


def test_a_loop_by_hand_is_a_generation() -> None:
    pipe = SMALL.build()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    given = {"latents": LATENTS, "prompt_embeds": PROMPT, "negative_prompt_embeds": None, "guidance_scale": 1.0}
    with attach(pipe) as async_diff:
        expected = run(pipe, SMALL, num_inference_steps=STEPS, **given)
        for _ in range(2):
            assert torch.equal(by_hand(pipe), expected)
            assert counts(async_diff).rounds == STEPS - 5


@pytest.mark.parametrize("steps", [STEPS - 1, STEPS + 1])
def test_a_loop_by_hand_has_its_own_number_of_steps(steps: int) -> None:
    """What the pipeline says of its steps is said of the call before."""
    pipe = SMALL.build()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    with attach(pipe) as async_diff:
        expected = by_hand(pipe)
        run(pipe, SMALL, num_inference_steps=steps)
        assert torch.equal(by_hand(pipe), expected)
        assert counts(async_diff).rounds == STEPS - 5


@pytest.mark.filterwarnings("ignore:a call of the 'unet'")
def test_a_loop_by_hand_with_a_scheduler_that_has_come_since() -> None:
    pipe = SMALL.build()
    first, later = (DDIMScheduler.from_config(pipe.scheduler.config, trained_betas=None) for _ in range(2))
    pipe.scheduler = first
    with attach(pipe) as async_diff:
        expected = by_hand(pipe)
        pipe.scheduler = later
        with torch.no_grad():  # it is not set up
            pipe.unet(LATENTS, 999, encoder_hidden_states=PROMPT)
        assert torch.equal(by_hand(pipe), expected)
        assert counts(async_diff).rounds == STEPS - 5
        pipe.scheduler = first  # which stands at its end
        assert torch.equal(by_hand(pipe), expected)
        assert counts(async_diff).rounds == STEPS - 5


@pytest.mark.filterwarnings("ignore:a call of the 'unet'")
@pytest.mark.parametrize("looks_at", [None, 1, STEPS - 2])
@pytest.mark.parametrize("settings", [{}, {"components": 1, "bridge": 2}], ids=str)
def test_a_look_at_something_else_in_a_loop_by_hand(looks_at: int | None, settings: dict[str, Any]) -> None:
    """At another time than the next step's it is the plain denoiser's, and the loop goes on; so it is after a loop that
    ends early."""
    other, seen = noise(1, 4, 16, 16, seed=40), []

    def loop(pipe: Any, stop: int) -> Tensor:
        latents = LATENTS
        pipe.scheduler.set_timesteps(STEPS)
        with torch.no_grad():
            for number, timestep in enumerate(pipe.scheduler.timesteps[:stop]):
                predicted = pipe.unet(latents, timestep, encoder_hidden_states=PROMPT).sample
                latents = pipe.scheduler.step(predicted, timestep, latents).prev_sample
                if number == looks_at:
                    seen.append(pipe.unet(other, torch.tensor(20.0), encoder_hidden_states=PROMPT).sample)
        return latents

    plain = SMALL.build()
    pipe = SMALL.build()
    for each in (plain, pipe):
        each.scheduler = DDIMScheduler.from_config(each.scheduler.config)
    with attach(pipe, **settings) as async_diff:
        expected = by_hand(pipe)
        assert torch.equal(loop(pipe, STEPS), expected)
        assert counts(async_diff).rounds + counts(async_diff).bridged == STEPS - 5
        loop(pipe, STEPS - 2)
        with torch.no_grad():
            seen.append(pipe.unet(other, torch.tensor(20.0), encoder_hidden_states=PROMPT).sample)
    with torch.no_grad():
        ordinary = plain.unet(other, torch.tensor(20.0), encoder_hidden_states=PROMPT).sample
    for found in seen:
        assert torch.equal(found, ordinary)


@pytest.mark.filterwarnings("ignore:a call of the 'unet'")
def test_timesteps_in_any_order_are_no_generation() -> None:
    """Log-probabilities of a trajectory: the scheduler is set up, but takes no step."""
    pipe, plain = SMALL.build(), SMALL.build()
    with attach(pipe), torch.no_grad():
        pipe.scheduler.set_timesteps(STEPS)
        for number in (4, 1, 7, 2, 2, 8, 0, 3):
            given = arguments(number) | {"timestep": pipe.scheduler.timesteps[number]}
            assert torch.equal(pipe.unet(**given)[0], plain.unet(**given)[0])


# Several pipelines with one denoiser (rows 2 and 7).


def image_to_image(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """Another pipeline on the same modules, with a scheduler of its own."""
    parts = dict(pipe.components)
    parts["scheduler"] = DDIMScheduler.from_config(pipe.scheduler.config)
    other = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other


def redraw(pipe: DiffusionPipeline, strength: float = 0.8, steps: int = 12) -> Tensor:
    given = SMALL.inputs(pipe) | {"image": image(), "strength": strength, "num_inference_steps": steps}
    return pipe(**given)[0]


def test_a_second_pipeline_on_the_same_denoiser() -> None:
    alone = image_to_image(SMALL.build())
    with attach(alone) as async_diff:
        expected = redraw(alone)
        rounds = counts(async_diff).rounds
    pipe = SMALL.build()
    other = image_to_image(pipe)
    with attach(pipe) as async_diff:
        first = run(pipe, SMALL, num_inference_steps=STEPS)
        for _ in range(2):
            assert torch.equal(redraw(other), expected)
            assert counts(async_diff).rounds == rounds == 4
            assert torch.equal(run(pipe, SMALL, num_inference_steps=STEPS), first)


def test_two_threads_two_pipelines_one_denoiser() -> None:
    pipe = SMALL.build()
    other = image_to_image(pipe)
    draw = {"text": lambda: run(pipe, SMALL, num_inference_steps=STEPS), "image": lambda: redraw(other)}
    with attach(pipe), ThreadPoolExecutor(max_workers=2) as threads:
        expected = {name: work() for name, work in draw.items()}
        begun = {name: threads.submit(lambda work: [work() for _ in range(3)], work) for name, work in draw.items()}
        for name, pictures in begun.items():
            assert all(torch.equal(picture, expected[name]) for picture in pictures.result(timeout=120))


def test_a_turn_is_given_back_or_waited_for_in_vain() -> None:
    turn = Turn(timeout=0.2)
    turn.take(lambda: True)
    refused: list[BaseException] = []

    def take() -> None:
        try:
            turn.take(lambda: True)
        except BusyError as error:
            refused.append(error)

    def in_another_thread() -> None:
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()

    in_another_thread()
    assert "another thread has been generating" in str(refused.pop())
    turn.leave()
    in_another_thread()
    assert not refused
    assert not turn.is_mine


def test_a_generation_that_ended_without_a_word_does_not_hold_the_turn() -> None:
    turn = Turn(timeout=60)
    threading.Thread(target=turn.take, args=(lambda: False,)).start()
    turn.take(lambda: True)
    assert turn.is_mine


# How many steps there really are (rows 14 and 15).


def test_image_to_image_of_low_strength_counts_its_real_steps() -> None:
    """Ten of forty steps: the cool-down is their end, and the goal is aimed at with their number."""
    pipe = image_to_image(SMALL.build())
    with attach(pipe) as async_diff:
        redraw(pipe, strength=0.25, steps=40)
        assert (counts(async_diff).steps, counts(async_diff).rounds) == (10, 5)
    with attach(pipe, components=1, target_speedup=1.5) as async_diff:
        redraw(pipe, strength=0.25, steps=40)
        few = async_diff.report().denoisers[0].modelled_speedup
    assert few >= 1.5


def test_image_to_image_that_begins_with_a_timestep_that_is_there_twice() -> None:
    """PNDM's second timestep is: at a strength that begins with it, the last step is found all the same."""
    plain = SMALL.build()
    pipe = image_to_image(plain)
    pipe.scheduler = plain.scheduler
    with attach(pipe, warmup=3, stride=2, method="paper") as async_diff:
        redraw(pipe, strength=0.8, steps=8)
        assert (counts(async_diff).steps, counts(async_diff).full.total()) == (7, 3)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_few_steps_where_warnings_are_errors(steps: int) -> None:
    pipe = SMALL.build()
    expected = run(SMALL.build(), SMALL, num_inference_steps=steps)
    with attach(pipe, warmup=4), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(run(pipe, SMALL, num_inference_steps=steps), expected)


@pytest.mark.parametrize(("steps", "told"), [(1, "1 step:"), (2, "2 steps:")])
def test_few_steps_are_told(steps: int, told: str) -> None:
    pipe = SMALL.build()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    with attach(pipe), pytest.warns(UserWarning, match=f"accelerates nothing in this generation of {told}"):
        run(pipe, SMALL, num_inference_steps=steps)


# The end of a generation (row 16).


def large_tensors() -> int:
    """How many tensors are alive that are larger than a timestep, weights of modules left out."""
    gc.collect()
    found = [each for each in gc.get_objects() if isinstance(each, Tensor) and not isinstance(each, torch.nn.Parameter)]
    return sum(each.numel() >= 64 and not each.is_meta for each in found)


def failing(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
    if index == 6:
        raise KeyError("enough")
    return values


def stopping(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
    pipe._interrupt = index == 6
    return values


@pytest.mark.parametrize(
    ("callback", "guidance"),
    [
        pytest.param(None, 1, id="whole"),
        pytest.param(None, 2, id="whole-2"),
        pytest.param(failing, 1, id="failed"),
        pytest.param(failing, 2, id="failed-2", marks=pytest.mark.whole),
        pytest.param(stopping, 1, id="stopped", marks=pytest.mark.whole),
        pytest.param(stopping, 2, id="stopped-2"),
    ],
)
def test_a_generation_leaves_nothing_in_memory(callback: Any, guidance: int) -> None:
    def draw() -> int:
        with contextlib.suppress(KeyError):
            run(pipe, SMALL, num_inference_steps=STEPS, callback_on_step_end=callback)
        return large_tensors()

    pipe = SMALL.build()
    plain = draw()  # what the pipeline's own scheduler keeps
    with attach(pipe, guidance=guidance):
        assert draw() <= plain


def test_memory_is_free_while_the_picture_is_decoded() -> None:
    pipe = SMALL.build()
    held: list[int] = []
    decode = pipe.vae.decode

    def watch(*args: Any, **kwargs: Any) -> Any:
        held.append(large_tensors())
        return decode(*args, **kwargs)

    pipe.vae.decode = watch
    run(pipe, SMALL, num_inference_steps=STEPS, output_type="np")
    with attach(pipe):
        run(pipe, SMALL, num_inference_steps=STEPS, output_type="np")
    plain, attached = held
    assert attached <= plain


def test_another_pipeline_that_fails_leaves_nothing_either() -> None:
    """From its second call on: of the first nothing is known when it ends."""
    pipe = SMALL.build()
    other = image_to_image(pipe)
    with attach(pipe):
        redraw(other)
        before = large_tensors()
        given = SMALL.inputs(other) | {"image": image(), "num_inference_steps": 12, "callback_on_step_end": failing}
        with contextlib.suppress(KeyError):
            other(**given)
        del given
        assert large_tensors() <= before
    assert type(other) is StableDiffusionImg2ImgPipeline, StableDiffusionPipeline


def test_what_a_generation_took_is_told_after_it() -> None:
    pipe = SMALL.build()
    with attach(pipe) as async_diff:
        run(pipe, SMALL, num_inference_steps=STEPS)
        assert async_diff.report().denoisers[0].held_bytes > 0


def test_a_pipeline_that_is_forgotten_is_freed() -> None:
    pipe = SMALL.build()
    attach(pipe).disable()
    reference = weakref.ref(pipe.unet)
    del pipe
    gc.collect()
    assert reference() is None


# Numbers that are none (row 21).


def test_numbers_that_rounds_have_lost_are_an_error() -> None:
    pipe = SMALL.build()

    def spoil(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        return {"latents": values["latents"] * float("nan")} if index == 4 else values

    with attach(pipe), pytest.raises(NotANumberError, match="gave numbers in the warm-up, and NaN at the end"):
        run(pipe, SMALL, num_inference_steps=STEPS, callback_on_step_end=spoil)


def test_a_denoiser_that_gives_no_numbers_at_all_is_left_alone() -> None:
    pipe = SMALL.build()
    pipe.unet.conv_out.bias.data.fill_(float("nan"))
    with attach(pipe):
        assert run(pipe, SMALL, num_inference_steps=STEPS).isnan().all()


# Schedulers that hide the names of what they are given (row 22).


class _Hiding(HeunDiscreteScheduler):
    def step(self, *args: Any, **kwargs: Any) -> Any:
        return super().step(*args, **kwargs)


def test_a_scheduler_that_hides_its_arguments() -> None:
    pipe, plain = SMALL.build(), SMALL.build()
    pipe.scheduler = _Hiding.from_config(pipe.scheduler.config)
    plain.scheduler = HeunDiscreteScheduler.from_config(plain.scheduler.config)
    with attach(plain):
        expected = run(plain, SMALL, num_inference_steps=STEPS)
    with attach(pipe) as async_diff:
        assert torch.equal(run(pipe, SMALL, num_inference_steps=STEPS), expected)
        assert counts(async_diff).rounds > 0
