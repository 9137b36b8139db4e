"""Bad input and bad luck: the right error, in bounded time, and nothing left behind."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from asyncdiff import AsyncDiff, ConfigurationError, ExchangeError, SplitError
from tests.processes import RankError, run_ranks
from tests.tiny import PIPELINES, run

TINY = PIPELINES["sd3"]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return TINY.build()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"components": 500}, "too few for components=500; at most components="),
        (
            {"split": [["transformer_blocks.0.attn.to_q"], ["transformer_blocks.1"]]},
            "lies inside the unit .transformer_blocks.0.attn., which",
        ),
    ],
)
def test_refused_in_the_first_call(pipe: Any, arguments: dict[str, Any], message: str) -> None:
    plain = run(pipe, TINY)
    with AsyncDiff(pipe, executor="local", **arguments), pytest.raises(SplitError, match=message):
        run(pipe, TINY)
    assert torch.equal(run(pipe, TINY), plain)


def test_attached_twice(pipe: Any) -> None:
    plain = run(pipe, TINY)
    with AsyncDiff(pipe, executor="local", components=2, method="paper"):
        with pytest.raises(ConfigurationError, match="attached to this pipeline already"):
            AsyncDiff(pipe, executor="local", components=2, method="paper")
        run(pipe, TINY)
    assert torch.equal(run(pipe, TINY), plain)


def test_an_exception_in_a_callback(pipe: Any) -> None:
    def fail(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if index == 3:
            raise KeyError("stop")
        return values

    with AsyncDiff(pipe, executor="local", warmup=2, components=2, method="paper"):
        found = run(pipe, TINY)
        with pytest.raises(KeyError, match="stop"):
            run(pipe, TINY, callback_on_step_end=fail)
        assert torch.equal(run(pipe, TINY), found)


def test_nothing_accelerated_is_a_warning(pipe: Any) -> None:
    with AsyncDiff(pipe, executor="local", warmup=5, components=2, method="paper") as async_diff:
        with pytest.warns(UserWarning, match="accelerates nothing in this generation of 4 steps"):
            run(pipe, TINY, num_inference_steps=4)
        assert "NOTHING WAS ACCELERATED" in str(async_diff.report())


def _attach(rank: int, components: int) -> None:
    AsyncDiff(TINY.build(), components=components, executor="distributed", method="paper")


def test_a_world_size_that_does_not_fit() -> None:
    with pytest.raises(RankError, match=r"components \+ stride - 1 = 3 ranks, but there are 2; .* components=2"):
        run_ranks(2, _attach, 3)


def _die(rank: int) -> float:
    pipe = TINY.build()
    begin = [0.0]

    def die(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        begin[0] = time.monotonic()
        if index == 3 and rank == 1:
            os._exit(9)
        return values

    AsyncDiff(pipe, executor="distributed", warmup=2, timeout=20, components=2, method="paper")
    with pytest.raises(ExchangeError, match=r"rank 0: .* rank 1"):
        run(pipe, TINY, callback_on_step_end=die, num_inference_steps=8)
    return time.monotonic() - begin[0]


def test_a_rank_that_dies() -> None:
    survivor, dead = run_ranks(2, _die, joined=False, limit=60)
    assert isinstance(dead, RankError)
    assert not isinstance(survivor, RankError), survivor
    assert survivor < 25


def _stay_away(rank: int) -> float:
    if rank == 1:
        return 0.0
    begin = time.monotonic()
    with pytest.raises(ExchangeError, match="not all of the 2 ranks joined within 1 s"):
        AsyncDiff(TINY.build(), executor="distributed", timeout=1, components=2, method="paper")
    return time.monotonic() - begin


def test_a_rank_that_never_joins() -> None:
    waited, _ = run_ranks(2, _stay_away, joined=False, limit=60)
    assert not isinstance(waited, RankError), waited
    assert waited < 30


def _fall_behind(rank: int, has_failed: str) -> float:
    """Rank 1 hangs until the other has its error, and finds that it is gone."""
    pipe = TINY.build()
    begin = time.monotonic()

    def sleep(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if index == 3 and rank == 1:
            while time.monotonic() < begin + 30 and not Path(has_failed).exists():
                time.sleep(0.1)
        return values

    async_diff = AsyncDiff(pipe, executor="distributed", warmup=2, timeout=2, components=2, method="paper")
    with pytest.raises(ExchangeError, match=f"rank {rank}"):
        run(pipe, TINY, callback_on_step_end=sleep, num_inference_steps=8)
    Path(has_failed).touch()
    del async_diff
    return time.monotonic() - begin


def test_a_rank_that_hangs(tmp_path: Path) -> None:
    for seconds in run_ranks(2, _fall_behind, str(tmp_path / "has failed"), joined=False, limit=60):
        assert not isinstance(seconds, RankError), seconds
        assert seconds < 40


def _different_inputs(rank: int) -> None:
    pipe = TINY.build()
    AsyncDiff(pipe, executor="distributed", timeout=20, components=2, method="paper")
    run(pipe, TINY, generator=torch.Generator().manual_seed(rank))


def test_ranks_with_different_inputs() -> None:
    with pytest.raises(
        RankError, match=r"RankMismatchError.*the argument 'hidden_states' of rank 1 is not that of rank 0"
    ):
        run_ranks(2, _different_inputs)
