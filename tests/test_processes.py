"""The ranks that other tests run on: they stay, and whatever happens to them, the next function finds whole ones."""

import os
import threading
import time

import pytest
import torch
import torch.distributed as dist

from tests.processes import RankError, run_ranks


def whole(rank: int) -> tuple[int, float, float]:
    """The process, the sum over the group of what each rank has, and a random number."""
    number = torch.tensor(float(rank))
    dist.all_reduce(number)
    return os.getpid(), number.item(), torch.rand(()).item()


def fail(rank: int) -> None:
    if rank == 1:
        raise KeyError("a rank's own words")


def die(rank: int) -> None:
    if rank == 1:
        os._exit(9)


def hang(rank: int) -> None:
    if rank == 1:
        threading.Event().wait()


def test_ranks_stay_for_the_next_function() -> None:
    first, second = run_ranks(2, whole), run_ranks(2, whole)
    assert first == second, "the same processes, and the random numbers of new ones"
    assert [total for _, total, _ in first] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (fail, r"rank 1:\n(.|\n)*in fail\n(.|\n)*a rank's own words"),
        (die, "rank 1 died"),
        pytest.param(hang, "rank 1 was not done in 2 s", marks=pytest.mark.whole),
    ],
)
def test_after_a_failure_there_are_others(function: object, message: str) -> None:
    before = {process for process, *_ in run_ranks(2, whole)}
    begin = time.monotonic()
    with pytest.raises(RankError, match=message):
        run_ranks(2, function, limit=2)  # type: ignore[arg-type]
    assert time.monotonic() - begin < 30
    after = run_ranks(2, whole)
    assert not before & {process for process, *_ in after}
    assert [total for _, total, _ in after] == [1.0, 1.0]
    assert not [process for process in before if os.path.exists(f"/proc/{process}")]


def test_ranks_without_a_group_end_afterwards() -> None:
    first, second = run_ranks(2, process_of, joined=False), run_ranks(2, process_of, joined=False)
    assert not {*first} & {*second}


def process_of(rank: int) -> int:
    assert not dist.is_initialized()
    return os.getpid()
