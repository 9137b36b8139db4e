"""The guard: what it looks at, what it does about it, and that all ranks do the same."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from asyncdiff import AsyncDiff, ConfigurationError, Method
from asyncdiff.denoiser.graph import Edge
from asyncdiff.plan.cost import fast_enough, speedup
from asyncdiff.plan.course import Course
from asyncdiff.plan.schedule import Schedule, StepKind, Version
from asyncdiff.report import GUARD, RESYNC, WARM_UP, Counts
from asyncdiff.runtime.guard import forecast_error
from tests.comparison import relative_error
from tests.processes import run_ranks
from tests.tiny import PIPELINES, run
from tests.versions import store_of

STEPS, WARMUP = 16, 4
LINE = Method("linear", residual=False, fresh_sum=False)

guarded = st.builds(
    Schedule,
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 6),
    bridge=st.integers(1, 3),
    cooldown=st.integers(0, 2),
    resync_every=st.none() | st.integers(1, 5),
    versions=st.integers(1, 6),
    guarded=st.just(True),
)


@given(guarded, st.integers(1, 30), st.sets(st.integers(0, 29), max_size=8))
def test_what_is_judged_is_there(schedule: Schedule, count: int, bad: set[int]) -> None:
    """Versions that were made and are kept, the newest first, only before a step that something can be done about."""
    course = Course(schedule, count - 1)
    kept: list[int] = []
    for index in range(count):
        versions = course.judged(index)
        if versions and index in bad:
            before = course.step(index)
            course = course.remedied(index)
            remedy = course.inserted[index]
            assert course.step(index).kind is remedy
            assert before.kind is StepKind.BRIDGED or remedy is StepKind.FULL
            afterwards = course.judged(index)
            assert afterwards == (versions if remedy is StepKind.ROUND else ())
            versions = afterwards
        step = course.step(index)
        if step.kind in (StepKind.FULL, StepKind.STORED):
            assert versions == ()
        else:
            assert [version.step for version in versions] == kept[: schedule.kept_versions]
        if step.keeps or step.kind is StepKind.ROUND:
            kept.insert(0, index)


def _error(tensors: dict[Edge, list[Tensor]], method: Method, times: list[float]) -> float:
    versions = [Version(-number, -number) for number in range(len(times))]
    return forecast_error(method, versions, store_of(tensors), lambda step: times[-step])


def test_the_error_by_hand() -> None:
    """The line through 1 and 2 goes on to 4 where the gap doubles; 5 came for the first picture, 4 for the second."""
    times = [6.0, 8.0, 9.0]
    one = [torch.tensor([5.0, 4.0]).reshape(2, 1, 1), torch.full((2, 1, 1), 2.0), torch.full((2, 1, 1), 1.0)]
    assert _error({Edge(0, 0): one}, LINE, times) == pytest.approx(1 / 5)
    exact = [torch.full((2, 1, 1), 4.0), *one[1:]]
    assert _error({Edge(0, 0): one, Edge(1, 0): exact}, LINE, times) == pytest.approx(math.sqrt((1 / 25 + 0) / 2))
    assert _error({Edge(0, 0): [exact[0], one[1] * math.nan, one[2]]}, LINE, times) != 0
    assert math.isnan(_error({Edge(0, 0): [one[0], one[1] * math.nan, one[2]]}, LINE, times))
    assert _error({}, LINE, times) == 0


def _generate(tiny: str, executor: Any, **knobs: Any) -> tuple[Tensor, Counts]:
    pipe = PIPELINES[tiny].build()
    with AsyncDiff(pipe, warmup=WARMUP, executor=executor, timeout=60, **knobs) as async_diff:
        return run(pipe, PIPELINES[tiny], num_inference_steps=STEPS), async_diff.report().denoisers[0].counts


@pytest.mark.parametrize("tiny", ["sd3", pytest.param("sd21", marks=pytest.mark.whole)])
def test_bounds(tiny: str) -> None:
    """No bound is the run without a guard, the tightest is the ordinary pipeline, and one between lies between."""
    plain = run(PIPELINES[tiny].build(), PIPELINES[tiny], num_inference_steps=STEPS)
    knobs = {"components": 3, "bridge": 2}
    free, free_counts = _generate(tiny, "local", **knobs)
    loose, loose_counts = _generate(tiny, "local", **knobs, max_error=1e9)
    # One version more is held, and sums over versions run in another order.
    assert relative_error(loose, free) < 1e-5
    assert loose_counts.largest_error > 0 and loose_counts.inserted == {}
    assert free_counts.largest_error == 0
    with pytest.warns(UserWarning, match="accelerates nothing"):
        tight, tight_counts = _generate(tiny, "local", **knobs, max_error=1e-9)
    assert torch.equal(tight, plain)
    assert tight_counts.inserted == dict.fromkeys(range(WARMUP, STEPS - 2), StepKind.FULL)
    assert tight_counts.full == {WARM_UP: WARMUP, GUARD: STEPS - WARMUP - 2, RESYNC: 2}
    assert tight_counts.speedup == 1
    medium, counts = _generate(tiny, "local", **knobs, max_error=loose_counts.largest_error / 4)
    assert 0 < len(counts.inserted) < len(tight_counts.inserted)
    assert 1 < counts.speedup < loose_counts.speedup
    assert relative_error(medium, plain) < relative_error(free, plain)


CASES = [
    ("sd3", {"components": 2, "max_error": 0.01}),
    ("sd21", {"components": 2, "bridge": 2, "max_error": 0.01}),
    ("sd21", {"components": 2, "resync_every": 3, "cooldown": 0}),
    ("sd3", {"components": 1, "guidance": 2, "bridge": 2, "max_error": 0.01}),
    ("sd3", {"components": 2, "resync_every": 3, "cooldown": 0}),
]


def _ranks_generate(
    rank: int, cases: list[tuple[str, dict[str, Any]]], bounds: list[float | None]
) -> list[tuple[Tensor, Counts]]:
    del rank
    return [
        _generate(tiny, "distributed", **knobs | ({"max_error": bound} if bound else {}))
        for (tiny, knobs), bound in zip(cases, bounds, strict=True)
    ]


@pytest.mark.parametrize(
    "cases", [CASES[3:], pytest.param(CASES[:3], marks=pytest.mark.whole)], ids=["quick", "others"]
)
def test_all_ranks_insert_the_same_steps(cases: list[tuple[str, dict[str, Any]]]) -> None:
    """Bounds halfway between the errors that there are, so that rounding decides nothing."""
    bounds: list[float | None] = []
    for tiny, knobs in cases:
        loose = _generate(tiny, "local", **knobs | ({"max_error": 1e9} if "max_error" in knobs else {}))[1]
        bounds.append(loose.largest_error * 0.7 or None)
    expected = [
        _generate(tiny, "local", **knobs | ({"max_error": bound} if bound else {}))
        for (tiny, knobs), bound in zip(cases, bounds, strict=True)
    ]
    for (_, knobs), (_, counts) in zip(cases, expected, strict=True):
        assert bool(counts.inserted) == ("max_error" in knobs)
        assert "resync_every" not in knobs or counts.full[RESYNC] == 4
    for everything in run_ranks(2, _ranks_generate, cases, bounds):
        for (found, counts), (other, other_counts) in zip(everything, expected, strict=True):
            assert counts.inserted == other_counts.inserted
            assert counts.full == other_counts.full
            assert relative_error(found, other) < 1e-5


@given(st.integers(2, 8), st.integers(12, 60), st.floats(1.0, 12.0))
def test_as_many_steps_are_bridged_as_a_speed_up_takes(components: int, steps: int, target: float) -> None:
    schedule = Schedule(components, 1, 3, cooldown=2)
    chosen = fast_enough(schedule, steps, target, 1 / components)
    reached = speedup(chosen, steps, 1 / components)
    others = {k: speedup(Schedule(components, 1, 3, bridge=k, cooldown=2), steps, 1 / components) for k in range(1, 9)}
    if reached >= target:
        assert all(other < target for k, other in others.items() if k < chosen.bridge)
    else:
        assert reached == max(others.values())


def test_a_target_speed_up() -> None:
    pipe = PIPELINES["sd21"].build()
    with AsyncDiff(pipe, components=1, warmup=WARMUP, target_speedup=1.5, executor="local") as async_diff:
        for steps in (STEPS, 40):
            run(pipe, PIPELINES["sd21"], num_inference_steps=steps)
            report = async_diff.report().denoisers[0]
            assert report.modelled_speedup >= 1.5
            assert report.bridge > 1 and report.counts.bridged > 0
            assert report.modelled_speedup == pytest.approx(report.counts.speedup)


def test_a_target_out_of_reach_is_said(caplog: pytest.LogCaptureFixture) -> None:
    pipe = PIPELINES["sd21"].build()
    with AsyncDiff(pipe, components=1, warmup=WARMUP, target_speedup=20, executor="local"):
        run(pipe, PIPELINES["sd21"], num_inference_steps=STEPS)
    assert "cannot be made 20.00 times as fast in 16 steps; bridge=" in caplog.text


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"max_error": 0}, "max_error must be a number above 0, not 0"),
        ({"target_speedup": -1}, "target_speedup must be a number above 0, not -1"),
        ({"target_speedup": 2, "bridge": 2}, "give one of them"),
    ],
    ids=str,
)
def test_bad_bounds(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        AsyncDiff(PIPELINES["sd21"].build(), executor="local", **wrong)
