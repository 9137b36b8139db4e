"""A user is told where rounds gain nothing; once, and only where that was really measured."""

import warnings
from collections import Counter
from dataclasses import replace

import pytest

from asyncdiff import AsyncDiff
from asyncdiff.report import WARM_UP, Counts, Report
from asyncdiff.runtime.advice import Advice
from asyncdiff.settings import Settings
from tests.tiny import PIPELINES, run


@pytest.fixture(scope="module")
def drawn() -> Report:
    """Of a picture."""
    pipe = PIPELINES["sd15"].build()
    with AsyncDiff(pipe, components=2, warmup=2, executor="local") as async_diff:
        run(pipe, PIPELINES["sd15"])
        return async_diff.report()


def with_times(report: Report, full: float, rounds: float, count: int = 8, executor: str = "distributed") -> Report:
    """As if two steps in full and some rounds had taken so long each."""
    counts = Counts(full=Counter({WARM_UP: 2}), rounds=count, seconds_full=2 * full, seconds_rounds=count * rounds)
    return replace(report, executor=executor, denoisers=(replace(report.denoisers[0], counts=counts),))


def test_rounds_that_take_longer_are_told_once(drawn: Report) -> None:
    advice = Advice(Settings(components=2))
    slow = with_times(drawn, full=0.2, rounds=0.3)
    with pytest.warns(UserWarning, match=r"rounds of the denoiser 'unet' took longer \(0.3 s\) .* in full \(0.2 s\)"):
        advice.on_generation(slow, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        advice.on_generation(slow, 10)


@pytest.mark.parametrize(
    "times",
    [
        {"full": 0.3, "rounds": 0.2},
        {"full": 0.3, "rounds": 0.31},  # what else a machine does
        {"full": 0.02, "rounds": 0.03},  # so short that anything may be the cause
        {"full": 0.2, "rounds": 0.3, "count": 2},
        {"full": 0.2, "rounds": 0.3, "executor": "local"},  # one process computes for all
    ],
    ids=str,
)
def test_others_are_not(drawn: Report, times: dict[str, float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Advice(Settings(components=2)).on_generation(with_times(drawn, **times), 10)  # type: ignore[arg-type]


def test_groups_alone_have_rounds_like_steps_in_full(drawn: Report) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = replace(with_times(drawn, full=0.2, rounds=0.3), components=1)
        Advice(Settings(guidance=2, components=1)).on_generation(alone, 10)


def test_advice_ends_no_call(drawn: Report) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Advice(Settings(tokens=2)).on_generation(with_times(drawn, full=0.2, rounds=0.3), 10)
