"""The line between ranks: whatever their pace, by way of the host's memory, and when somebody does not come."""

import contextlib
import functools
import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from asyncdiff import AsyncDiff, ExchangeError
from asyncdiff.exchange import line, watch
from asyncdiff.exchange.watch import Watcher
from tests.comparison import relative_error
from tests.processes import RankError, run_ranks
from tests.tiny import PIPELINES, run

STEPS = 10
TIMEOUT = 2


def _delay(generator: random.Random, slowness: float, module: nn.Module, given: Any) -> None:
    del module, given
    time.sleep(slowness * generator.uniform(0, 0.0008))


def _at_uneven_pace(rank: int, name: str, settings: dict[str, Any], slow: int) -> Tensor:
    """Random delays before many modules; one rank is ten times as slow."""
    pipe = PIPELINES[name].build()
    generator, slowness = random.Random(rank), 10.0 if rank == slow else 1.0
    denoiser = getattr(pipe, PIPELINES[name].denoiser)
    for module in denoiser.modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            module.register_forward_pre_hook(functools.partial(_delay, generator, slowness))
    with AsyncDiff(pipe, executor="distributed", timeout=60, **settings):
        return run(pipe, PIPELINES[name], num_inference_steps=STEPS)


def _alone(name: str, settings: dict[str, Any]) -> Tensor:
    pipe = PIPELINES[name].build()
    with AsyncDiff(pipe, executor="local", **settings):
        return run(pipe, PIPELINES[name], num_inference_steps=STEPS)


@pytest.mark.parametrize(
    ("name", "settings", "slow"),
    [
        ("sd3", {"components": 3, "stride": 2}, 1),
        pytest.param("sd3", {"components": 2, "guidance": 2, "bridge": 2}, 0, marks=pytest.mark.whole),
        pytest.param("sd15", {"components": 4}, 3, marks=pytest.mark.whole),
        pytest.param("sd15", {"components": 2, "guidance": 2, "bridge": 2}, 0, marks=pytest.mark.whole),
        pytest.param("sd3", {"components": 4}, 0, marks=pytest.mark.whole),
        pytest.param("sd15", {"components": 3, "stride": 2}, 3, marks=pytest.mark.whole),
    ],
    ids=str,
)
def test_ranks_at_an_uneven_pace(name: str, settings: dict[str, Any], slow: int) -> None:
    expected = _alone(name, settings)
    found, *others = run_ranks(4, _at_uneven_pace, name, settings, slow)
    assert relative_error(found, expected) < 1e-5
    assert all(torch.equal(other, found) for other in others)


def _staged(rank: int, settings: dict[str, Any]) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line, "goes_by_way_of_the_host", lambda device, backend: True)
        pipe = PIPELINES["sd15"].build()
        with AsyncDiff(pipe, executor="distributed", timeout=60, **settings):
            return run(pipe, PIPELINES["sd15"], num_inference_steps=STEPS)


def test_by_way_of_the_host() -> None:
    """As for GPUs with gloo, where every tensor is copied before it is sent, and after it was received."""
    expected = _alone("sd15", {"components": 2})
    for found in run_ranks(2, _staged, {"components": 2}):
        assert torch.equal(found, expected)


def _stuck(rank: int, waits_return: bool, said: str, fails: bool = False) -> float:
    """Rank 1 stops in the middle, or fails; waits of rank 0 do not hold its host, or hold it for good.

    What rank 0 prints goes to the file `said`; then, or when it has its error, rank 1 need not be stuck any longer.
    """
    has_ended = Path(f"{said}.ended")
    if rank == 0:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    pipe = PIPELINES["sd3"].build()
    begin = [time.monotonic()]

    def dawdle(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if index == 3:
            begin[0] = time.monotonic()
        if rank == 1 and index == 3 and fails:
            raise KeyError("enough")
        if rank == 1 and index == 3:
            end = begin[0] + TIMEOUT + 9
            while time.monotonic() < end and not has_ended.exists() and "did not finish" not in Path(said).read_text():
                time.sleep(0.1)
        if rank == 0 and index >= 3:
            time.sleep(0.5)  # what a pipeline does beside
        return values

    def finish(self: Any, work: Any, what: str, traffic: Any) -> None:
        # Gloo's operations count as done only when they were waited for.
        waiting = threading.Thread(target=work.wait, daemon=True)
        waiting.start()
        waiting.join(timeout=0.3)

    with pytest.MonkeyPatch.context() as patch:
        if rank == 0:
            patch.setattr(line, "holds_host", lambda backend: False)
        if rank == 0 and waits_return:
            patch.setattr(line.Line, "finish", finish)
        elif rank == 0:
            patch.setattr(watch, "_SECONDS_TO_RAISE", 1)  # nobody comes by to raise
        AsyncDiff(pipe, executor="distributed", warmup=2, components=2, timeout=TIMEOUT)
        what = rf"rank 0: (the live edges|the noise prediction) .* rank 1.* did not finish within {TIMEOUT} s"
        if fails:
            what = "rank 0: the generation was ended on another rank .rank 1: KeyError: 'enough'"
        with pytest.raises((ExchangeError, KeyError), match=what if rank == 0 else "enough" if fails else "rank 1"):
            run(pipe, PIPELINES["sd3"], callback_on_step_end=dawdle, num_inference_steps=40)
        has_ended.touch()
    return time.monotonic() - begin[0]


def test_a_stuck_rank_where_waits_do_not_hold_the_host(tmp_path: Path) -> None:
    """The next that comes by raises."""
    seconds, _ = run_ranks(2, _stuck, True, str(tmp_path / "said"), joined=False, limit=TIMEOUT + 30)
    assert not isinstance(seconds, RankError), seconds
    assert seconds < TIMEOUT + 10


def test_a_rank_that_fails_where_waits_do_not_hold_the_host(tmp_path: Path) -> None:
    """The others are told why, long before the time limit."""
    seconds, _ = run_ranks(2, _stuck, True, str(tmp_path / "said"), True, joined=False, limit=TIMEOUT + 30)
    assert not isinstance(seconds, RankError), seconds
    assert seconds < TIMEOUT + 10


def test_a_stuck_rank_where_the_host_is_held_by_its_device(tmp_path: Path) -> None:
    """Nobody comes by: the process is ended, and says why."""
    begin = time.monotonic()
    ended, _ = run_ranks(2, _stuck, False, str(tmp_path / "said"), joined=False, limit=TIMEOUT + 40)
    assert isinstance(ended, RankError) and "rank 0 died" in str(ended)
    said = (tmp_path / "said").read_text()
    assert "asyncdiff: rank 0: the" in said and "rank 1" in said and f"did not finish within {TIMEOUT} s" in said
    assert time.monotonic() - begin < TIMEOUT + 10 + 30


class _Work:
    def __init__(self, is_done: bool) -> None:
        self.is_done = is_done

    def is_completed(self) -> bool:
        return self.is_done


def test_the_watcher_lets_what_is_done_be() -> None:
    watcher = Watcher(3, 0.5)
    try:
        watcher.watch([_Work(True)], ["what is done"], lambda: True)
        slow = _Work(False)
        watcher.watch([slow], ["what is done in the end"], lambda: True)
        time.sleep(0.3)
        slow.is_done = True
        time.sleep(0.6)
        watcher.check()
        watcher.watch([_Work(True), _Work(False)], ["a batch", "of two", "a batch"], lambda: True)
        time.sleep(1.0)
        with pytest.raises(ExchangeError, match=r"rank 3: a batch; of two did not finish within 0\.5 s"):
            watcher.check()
    finally:
        assert not watcher.close(0.0)


def test_the_watcher_does_not_count_what_the_device_computes_before() -> None:
    """A host far ahead of its device: the time limit begins when the device has come to the operation."""
    watcher, has_come = Watcher(0, 0.5), threading.Event()
    try:
        watcher.watch([_Work(False)], ["a message"], has_come.is_set)
        time.sleep(1.0)
        watcher.check()
        has_come.set()
        time.sleep(0.3)
        watcher.check()
        time.sleep(0.6)
        with pytest.raises(ExchangeError, match="a message did not finish"):
            watcher.check()
    finally:
        watcher.close(0.0)


def test_the_watcher_waits_for_what_is_still_on_its_way() -> None:
    watcher, last = Watcher(0, 5.0), _Work(False)
    watcher.watch([last], ["the last message"], lambda: True)
    threading.Timer(0.3, lambda: setattr(last, "is_done", True)).start()
    assert watcher.close(5.0)


def _left(rank: int, after_a_failure: bool) -> list[str]:
    """What is aborted where waits do not hold the host, when it is left."""
    aborted: list[str] = []
    pipe = PIPELINES["sd3"].build()

    def stay_away(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if index == 3 and after_a_failure:
            raise KeyError("away")
        return values

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line, "holds_host", lambda backend: False)
        patch.setattr(line, "SECONDS_BEHIND", 1)  # of gloo, which waits for what NCCL would have aborted
        patch.setattr(dist.ProcessGroup, "abort", lambda group: aborted.append(group.group_desc), raising=False)
        async_diff = AsyncDiff(pipe, executor="distributed", warmup=2, components=2, timeout=TIMEOUT)
        away = {"callback_on_step_end": stay_away} if rank == 1 else {}
        with pytest.raises((ExchangeError, KeyError)) if after_a_failure else contextlib.nullcontext():
            run(pipe, PIPELINES["sd3"], num_inference_steps=8, **away)
        async_diff.disable()
    return aborted


@pytest.mark.parametrize("after_a_failure", [False, True])
def test_what_is_outstanding_after_a_failure_is_aborted(after_a_failure: bool) -> None:
    """Destroying NCCL's group waits for it."""
    for aborted in run_ranks(2, _left, after_a_failure, joined=False):
        assert not isinstance(aborted, RankError), aborted
        assert bool(aborted) is after_a_failure
