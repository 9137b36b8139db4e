"""Where the ranks that start a process group come together: a store, and nobody waits longer than the time limit."""

import bisect
import os
import time
from collections.abc import Sequence
from datetime import timedelta

from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from asyncdiff.errors import ExchangeError
from asyncdiff.exchange.asking import ask_within

_ALL_CAME = "all came"
_SECONDS_FOR_ANSWERS = 5.0  # of the store, beside what is waited for
_SECONDS_EARLY = 0.1  # that a store's wait may end before its time is up

# Kept to the end of the process, by address: rank 0 may be the one that serves it, and the others still need it.
_stores: dict[tuple[str, str], Store] = {}


def store_of_environment(timeout: float) -> Store:
    """The store at torchrun's MASTER_ADDR and MASTER_PORT: its agent's, or one that rank 0 serves.

    Raises:
        RuntimeError: it cannot be reached in time.
    """
    address = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    if address not in _stores:
        _stores[address], _, _ = next(rendezvous("env://", timeout=timedelta(seconds=timeout)))
    return _stores[address]


def meet(store: Store, rank: int, ranks: Sequence[int], timeout: float) -> int:
    """Wait until every rank has come to the same meeting, and return its number: no two meetings have the same.

    A meeting takes place, or the first whose time is up gives it up for all; the others go on to the next one.

    Args:
        store: shared by all ranks, and with no other meetings than theirs.
        rank: this process's.
        ranks: all of them.
        timeout: seconds that waiting may take.

    Raises:
        ExchangeError: not every rank came in time, or the store does not answer (its process may have stopped).
    """
    return ask_within(timeout + _SECONDS_FOR_ANSWERS, lambda: _meet(store, rank, ranks, timeout))


def _meet(store: Store, rank: int, ranks: Sequence[int], timeout: float) -> int:
    number, end, given_up = _first_undecided(store), time.monotonic() + timeout, f"given up by rank {rank}"
    while True:
        fate = _fate(number)
        seats = {other: f"{fate}, rank {other}" for other in ranks}
        store.set(seats[rank], "")
        if store.check([*seats.values()]):
            store.compare_set(fate, "", _ALL_CAME)
        else:
            _wait(store, fate, end, given_up)
        decided = store.get(fate).decode()
        if decided == _ALL_CAME:
            return number
        if decided == given_up or time.monotonic() >= end:
            absent = [f"rank {other}" for other, seat in seats.items() if not store.check([seat])]
            raise ExchangeError(f"did not come: {', '.join(absent) or decided}")
        number += 1


def _fate(number: int) -> str:
    return f"meeting {number}"


def _first_undecided(store: Store) -> int:
    """Meetings are decided one after another."""
    end = 1
    while store.check([_fate(end - 1)]):
        end *= 2
    return bisect.bisect_left(range(end - 1), True, lo=end // 2, key=lambda number: not store.check([_fate(number)]))


def _wait(store: Store, fate: str, end: float, otherwise: str) -> None:
    """Wait until the fate of a meeting is decided; when the time is up, decide it."""
    try:
        store.wait([fate], timedelta(seconds=max(end - time.monotonic(), 0.001)))
    except RuntimeError:  # stores do not agree on what they raise
        if end - time.monotonic() > _SECONDS_EARLY:
            raise
        store.compare_set(fate, "", otherwise)
