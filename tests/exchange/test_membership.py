"""The default process group that is started here: for whom it is there, how long, and on which store."""

import atexit
import functools
import os
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from asyncdiff import AsyncDiff, ExchangeError
from tests.processes import RankError, run_ranks
from tests.tiny import PIPELINES, run
from tests.tiny.adapters import SMALL

TINY = {"sd3": PIPELINES["sd3"], "unet": SMALL}
NAMES = tuple(TINY)
SETTINGS: dict[str, dict[str, Any]] = {"sd3": {"components": 2}, "unet": {"components": 1, "guidance": 2}}
STEPS = 7


def _draw(pipes: dict[str, Any], name: str) -> Tensor:
    return run(pipes[name], TINY[name], num_inference_steps=STEPS)


@functools.cache
def _alone() -> dict[str, Tensor]:
    pipes = {name: TINY[name].build() for name in NAMES}
    for name in NAMES:
        AsyncDiff(pipes[name], executor="local", **SETTINGS[name])
    return {name: _draw(pipes, name) for name in NAMES}


def _two_pipelines(rank: int, order: tuple[str, ...], agent: int | None) -> list[tuple[str, Tensor]]:
    """Two attached side by side, detached one by one, and attached again, while others are or are not."""
    if agent is not None:
        os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True", MASTER_PORT=str(agent))
    pipes = {name: TINY[name].build() for name in NAMES}
    found: list[tuple[str, Tensor]] = []
    attached: dict[str, AsyncDiff] = {}

    def attach(name: str) -> None:
        attached[name] = AsyncDiff(pipes[name], timeout=60, **SETTINGS[name])
        found.extend((each, _draw(pipes, each)) for each in attached)

    for name in NAMES:
        attach(name)
    first, second = order
    attached.pop(first).disable()
    found.append((second, _draw(pipes, second)))
    attach(first)
    attached.pop(second).disable()
    attached.pop(first).disable()
    assert not dist.is_initialized(), "its last user has left"
    for name in NAMES:
        attach(name)
    while attached:
        attached.popitem()[1].disable()
    # The user's own, on the same store.
    dist.init_process_group("gloo")
    dist.barrier()
    dist.destroy_process_group()
    return found


def _check(ranks: list[Any]) -> None:
    expected = _alone()
    for found in ranks:
        assert not isinstance(found, RankError), found
        assert len(found) == 9
        for name, result in found:
            torch.testing.assert_close(result, expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.whole
@pytest.mark.parametrize("order", [NAMES, NAMES[::-1]], ids=str)
def test_two_pipelines_in_any_order(order: tuple[str, ...]) -> None:
    _check(run_ranks(2, _two_pipelines, order, None, joined=False))


def test_on_the_store_of_torchruns_agent() -> None:
    agent = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    _check(run_ranks(2, _two_pipelines, NAMES, agent.port, joined=False))


def _later_than_the_limit(rank: int, limit: float) -> tuple[Tensor, float, float]:
    """Rank 0 thinks about the next prompt for longer than the time limit, and so it does about another group."""
    pipe = PIPELINES["sd3"].build()
    with AsyncDiff(pipe, timeout=limit, **SETTINGS["sd3"]):
        run(pipe, PIPELINES["sd3"], num_inference_steps=STEPS)
        prompt = torch.tensor(1.0 if rank == 0 else 0.0)
        time.sleep(0 if rank else limit + 0.5)
        dist.broadcast(prompt, 0)
        time.sleep(0 if rank else limit + 0.5)
        both = dist.new_group()
        total = torch.tensor(1.0)
        dist.all_reduce(total, group=both)
        return run(pipe, PIPELINES["sd3"], num_inference_steps=STEPS), prompt.item(), total.item()


def test_our_limit_is_not_that_of_the_users_waits() -> None:
    expected = _alone()["sd3"]
    for rank in run_ranks(2, _later_than_the_limit, 2.0, joined=False):
        assert not isinstance(rank, RankError), rank
        found, prompt, total = rank
        assert (prompt, total) == (1.0, 2.0)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def _left_attached(rank: int) -> bool:
    """Nobody calls disable(); whether the group is there when all that is registered for the process's end has run."""
    for name in NAMES:
        AsyncDiff(TINY[name].build(), timeout=60, **SETTINGS[name])
    assert dist.is_initialized()
    atexit._run_exitfuncs()
    return dist.is_initialized()


def test_it_ends_with_the_process() -> None:
    assert run_ranks(2, _left_attached, joined=False) == [False, False]


def _destroyed_by_the_user(rank: int) -> None:
    pipe = PIPELINES["sd3"].build()
    async_diff = AsyncDiff(pipe, components=2, timeout=60)
    dist.destroy_process_group()
    with pytest.raises(ExchangeError, match=f"rank {rank}: .* (failed|was ended on another rank)"):
        run(pipe, PIPELINES["sd3"])
    dist.init_process_group("gloo")
    async_diff.disable()
    assert dist.is_initialized(), "another group, which is not ours"
    with AsyncDiff(pipe, components=2, timeout=60):
        run(pipe, PIPELINES["sd3"])
    assert dist.is_initialized()


def test_a_group_that_the_user_destroys() -> None:
    assert run_ranks(2, _destroyed_by_the_user, joined=False) == [None, None]
