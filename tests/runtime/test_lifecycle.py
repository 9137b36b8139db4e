"""One attachment, many calls: whatever changes between them, each is as if it were the first."""

import copy
import functools
import inspect
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from peft import LoraConfig
from torch import Tensor

from asyncdiff import AsyncDiff
from asyncdiff.denoiser.trace import record
from asyncdiff.hooks import is_intercepted
from asyncdiff.runtime import dividing, recent
from asyncdiff.runtime.guidance import Guidance
from tests.processes import run_ranks
from tests.tiny import PIPELINES, run
from tests.tiny.adapters import SMALL

NAMES = ["sd15", "sd3"]
STEPS = 6


def calls(name: str) -> list[dict[str, Any]]:
    """Arguments of calls that have little in common."""
    tiny = PIPELINES[name]
    given = tiny.inputs(tiny.build())
    two_prompts = {key: torch.cat([value, value.flip(-1)]) for key, value in given.items() if "embeds" in key}
    return [
        {"num_inference_steps": STEPS},
        {"num_inference_steps": STEPS + 3},
        {"num_inference_steps": STEPS, **two_prompts},
        {"num_inference_steps": STEPS, "height": 48, "width": 32},
        {"num_inference_steps": STEPS, "guidance_scale": 1.0},
        {"num_inference_steps": 2},
        {"num_inference_steps": STEPS},
    ]


@functools.cache
def alone(name: str, number: int) -> Tensor:
    """The result of one of these calls, on a pipeline that was attached for it."""
    tiny = PIPELINES[name]
    pipe = tiny.build()
    with AsyncDiff(pipe, warmup=3, executor="local", components=2, method="paper"):
        return run(pipe, tiny, **calls(name)[number])


@pytest.mark.filterwarnings("ignore:asyncdiff accelerates nothing")
@pytest.mark.parametrize("name", [pytest.param("sd15", marks=pytest.mark.whole), "sd3"])
def test_every_call_is_as_if_it_were_the_first(name: str) -> None:
    tiny = PIPELINES[name]
    pipe = tiny.build()
    with AsyncDiff(pipe, warmup=3, executor="local", components=2, method="paper"):
        for number, arguments in enumerate(calls(name)):
            found, expected = run(pipe, tiny, **arguments), alone(name, number)
            assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_the_class_of_an_attached_pipeline() -> None:
    pipe = SMALL.build()
    kind = type(pipe)
    with AsyncDiff(pipe, executor="local", components=2):
        assert isinstance(pipe, kind) and type(pipe) is not kind
    assert type(pipe) is kind


def _all_calls(rank: int, name: str) -> list[Tensor]:
    tiny = PIPELINES[name]
    pipe = tiny.build()
    with AsyncDiff(pipe, warmup=3, executor="distributed", timeout=60, components=2, method="paper"):
        return [run(pipe, tiny, **arguments) for arguments in calls(name)]


@pytest.mark.filterwarnings("ignore:asyncdiff accelerates nothing")
def test_so_on_several_ranks() -> None:
    first, second = run_ranks(2, _all_calls, "sd3")
    assert len(first) == len(calls("sd3"))
    for number, (found, other) in enumerate(zip(first, second, strict=True)):
        assert torch.equal(found, other)
        expected = alone("sd3", number)
        assert (found - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("name", NAMES)
def test_disable_leaves_nothing_behind(name: str) -> None:
    tiny = PIPELINES[name]
    pipe = tiny.build()

    def state() -> list[Any]:
        modules = getattr(pipe, tiny.denoiser).named_modules()
        return [(own, sorted(vars(module)), module.forward) for own, module in modules]

    before, plain, scheduler = state(), run(pipe, tiny), set(vars(pipe.scheduler))
    async_diff = AsyncDiff(pipe, executor="local", components=2, method="paper")
    run(pipe, tiny)
    assert state() != before
    async_diff.disable()
    assert state() == before
    assert set(vars(pipe.scheduler)) == scheduler
    assert torch.equal(run(pipe, tiny), plain)
    async_diff.disable()


def test_another_scheduler_between_two_calls() -> None:
    pipe, other = SMALL.build(), SMALL.build()
    other.scheduler = EulerDiscreteScheduler.from_config(other.scheduler.config)
    with AsyncDiff(other, warmup=3, executor="local", components=2, method="paper"):
        expected = run(other, SMALL, num_inference_steps=STEPS)
    with AsyncDiff(pipe, warmup=3, executor="local", components=2, method="paper") as async_diff:
        run(pipe, SMALL, num_inference_steps=STEPS)
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        assert torch.equal(run(pipe, SMALL, num_inference_steps=STEPS), expected)
        assert async_diff.report().accelerated


def test_a_copied_scheduler_drives_itself() -> None:
    pipe = SMALL.build()
    with AsyncDiff(pipe, executor="local", components=2, method="paper"):
        assert list(inspect.signature(pipe.scheduler.step).parameters)[:3] == ["model_output", "timestep", "sample"]
        pipe.scheduler.set_timesteps(4)
        copied = copy.deepcopy(pipe.scheduler)
        copied.set_timesteps(7)
        assert (len(pipe.scheduler.timesteps), len(copied.timesteps)) == (5, 8)  # PNDM: one more


def test_two_pipelines_share_nothing() -> None:
    tiny = PIPELINES["sd3"]
    one, other = tiny.build(), tiny.build()
    with AsyncDiff(one, warmup=2, executor="local", components=2, method="paper"):
        expected = run(one, tiny)
        with AsyncDiff(other, components=3, warmup=1, executor="local", method="paper"):
            run(other, tiny)
            assert torch.equal(run(one, tiny), expected)


def test_report_counts_what_ran() -> None:
    tiny = PIPELINES["sd3"]
    pipe = tiny.build()
    with AsyncDiff(pipe, components=2, stride=2, warmup=3, executor="local", method="paper") as async_diff:
        run(pipe, tiny, num_inference_steps=9)
        report = async_diff.report()
    (denoiser,) = report.denoisers
    assert (denoiser.counts.full, denoiser.counts.rounds, denoiser.counts.stored) == ({"warm-up": 3}, 3, 3)
    assert report.world_size == 3
    assert 0.45 < max(denoiser.shares) < 0.6
    assert denoiser.modelled_speedup == pytest.approx(9 / (3 + 3 * max(denoiser.shares)))
    assert "3 parallel rounds" in str(report)


def test_a_denoiser_is_recorded_once_for_each_structure_and_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = []

    def counting(*args: Any) -> Any:
        recorded.append(args)
        return record(*args)

    monkeypatch.setattr(dividing, "record", counting)
    pipe = SMALL.build()
    with AsyncDiff(pipe, warmup=2, executor="local", components=2, method="paper"):
        plain = run(pipe, SMALL)
        run(pipe, SMALL, num_inference_steps=STEPS + 2)
        assert len(recorded) == 1
        run(pipe, SMALL, height=48, width=32)
        assert len(recorded) == 2
        pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
        assert not torch.equal(run(pipe, SMALL), plain)
        assert len(recorded) == 3
        pipe.unload_lora_weights()
        for arguments in ({}, {"height": 48, "width": 32}):
            run(pipe, SMALL, **arguments)
        assert torch.equal(run(pipe, SMALL), plain)
        assert len(recorded) == 3


SIZES = [(32, 32), (32, 48), (48, 32), (48, 48)]


def _in_many_sizes(rank: int, executor: str) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """Calls of four sizes with room for two, and then of the last two again: the results, and what is held after each.

    Held: divisions, and modules with a hook.
    """
    found, held, all_known = [], [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recent, "MOST_KINDS", 2)
        plain = dividing.Divisions.__init__

        def noting(self: dividing.Divisions, *given: Any) -> None:
            plain(self, *given)
            all_known.append(self)

        patch.setattr(dividing.Divisions, "__init__", noting)
        tiny = PIPELINES["sd3"]
        pipe = tiny.build()
        with AsyncDiff(pipe, warmup=2, executor=executor, timeout=60, components=2, method="paper"):
            for height, width in (*SIZES, *SIZES[-2:], SIZES[0]):
                found.append(run(pipe, tiny, height=height, width=width))
                divisions = [division for known in all_known for _, made in known._known.items() for division in made]
                held.append((len(divisions), sum(is_intercepted(module) for module in pipe.transformer.modules())))
    return found, held


def test_what_is_kept_of_many_sizes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were not used the longest go, and are found anew where they come again."""
    recorded = []

    def counting(*args: Any) -> Any:
        recorded.append(args)
        return record(*args)

    monkeypatch.setattr(dividing, "record", counting)
    found, held = _in_many_sizes(0, "local")
    assert [number for number, _ in held] == [1, 2, 2, 2, 2, 2, 2]
    assert max(hooked for _, hooked in held) == held[0][1], "the same units in all sizes"
    assert len(recorded) == 5
    for result, (height, width) in zip(found, (*SIZES, *SIZES[-2:], SIZES[0]), strict=True):
        expected = alone_in("sd3", height, width)
        assert torch.equal(result, expected)


@functools.cache
def alone_in(name: str, height: int, width: int) -> Tensor:
    tiny = PIPELINES[name]
    pipe = tiny.build()
    with AsyncDiff(pipe, warmup=2, executor="local", components=2, method="paper"):
        return run(pipe, tiny, height=height, width=width)


def test_so_on_all_ranks() -> None:
    expected = [alone_in("sd3", height, width) for height, width in (*SIZES, *SIZES[-2:], SIZES[0])]
    first, second = run_ranks(2, _in_many_sizes, "distributed")
    assert first[1] == second[1]
    for found, other, together in zip(first[0], second[0], expected, strict=True):
        assert torch.equal(found, other)
        assert (found - together).norm() <= 1e-5 * together.norm()


def test_what_is_kept_of_how_batches_are_divided_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "MOST_KINDS", 2)
    looked = []
    plain = Guidance._look

    def counting(self: Guidance, call: Any) -> Any:
        looked.append(call)
        return plain(self, call)

    monkeypatch.setattr(Guidance, "_look", counting)
    tiny = PIPELINES["sd3"]
    pipe = tiny.build()
    with AsyncDiff(pipe, warmup=2, executor="local", guidance=2, components=1):
        for height, width in (*SIZES[:3], *SIZES[1:3], SIZES[0]):
            run(pipe, tiny, height=height, width=width)
    assert len(looked) == 4
