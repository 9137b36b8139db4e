"""Ranks that come together on a store: all of them, at the same meeting, or an error in time."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from asyncdiff import ExchangeError
from asyncdiff.exchange import meeting
from asyncdiff.exchange.meeting import meet

SIZE = 3
TIMEOUT = 20.0


@pytest.fixture
def come() -> Any:
    """Lets a rank come, in a thread of its own, on its own connection to a store."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with ThreadPoolExecutor() as threads:

        def start(rank: int, timeout: float = TIMEOUT) -> "Future[int]":
            store = dist.TCPStore("127.0.0.1", server.port, timeout=timedelta(seconds=TIMEOUT))
            return threads.submit(meet, store, rank, range(SIZE), timeout)

        yield start


Come = Callable[..., "Future[int]"]


def test_every_meeting_has_its_number(come: Come) -> None:
    numbers = []
    for _ in range(3):
        ranks = [come(rank) for rank in range(SIZE)]
        numbers.append({rank.result() for rank in ranks})
    assert all(len(number) == 1 for number in numbers)
    assert len(set.union(*numbers)) == 3


def test_who_does_not_come_is_told_in_time(come: Come) -> None:
    begin = time.monotonic()
    with pytest.raises(ExchangeError, match=r"did not come: rank 0, rank 2$"):
        come(1, 0.5).result()
    assert time.monotonic() - begin < TIMEOUT / 2


def test_a_store_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that is in a process that has stopped."""
    monkeypatch.setattr(meeting, "_SECONDS_FOR_ANSWERS", 0.2)
    has_ended = threading.Event()

    class Stopped(dist.Store):
        def check(self, keys: list[str]) -> bool:
            return not has_ended.wait(TIMEOUT)

    begin = time.monotonic()
    with pytest.raises(ExchangeError, match="does not answer"):
        meet(Stopped(), 0, range(SIZE), 0.3)
    assert time.monotonic() - begin < TIMEOUT / 2
    has_ended.set()


def test_a_meeting_that_was_given_up_is_so_for_all(come: Come) -> None:
    """Rank 1 waits on while rank 0 gives up, comes again, and rank 2 comes: all meet once."""
    waiting, impatient = come(1), come(0, 0.5)
    with pytest.raises(ExchangeError, match="did not come: rank 2"):
        impatient.result()
    late, again = come(2), come(0)
    assert len({each.result() for each in (waiting, late, again)}) == 1
