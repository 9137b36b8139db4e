"""Where the ranks that start a process group come together: a store, and nobody waits longer than the time limit."""

import os
import time
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from asyncdiff.errors import ExchangeError

_ALL_CAME = "all came"

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


def meet(store: Store, rank: int, size: int, timeout: float) -> int:
    """Wait until every rank has come to the same meeting, and return its number: no two meetings have the same.

    A meeting takes place, or the first whose time is up gives it up for all; the others go on to the next one.

    Args:
        store: shared by all ranks.
        timeout: seconds that waiting may take.

    Raises:
        ExchangeError: not every rank came in time.
    """
    number, end = 0, time.monotonic() + timeout
    while True:
        fate = f"meeting {number}"
        seats = [f"{fate}, rank {other}" for other in range(size)]
        if not store.check([fate]):
            store.set(seats[rank], "")
            if store.check(seats):
                store.compare_set(fate, "", _ALL_CAME)
            else:
                _wait(store, fate, end - time.monotonic(), f"given up by rank {rank}")
            decided = store.get(fate).decode()
            if decided == _ALL_CAME:
                return number
            if time.monotonic() >= end:
                absent = [other for other, seat in enumerate(seats) if not store.check([seat])]
                raise ExchangeError(f"did not come: {', '.join(f'rank {other}' for other in absent) or decided}")
        number += 1


def _wait(store: Store, fate: str, seconds: float, otherwise: str) -> None:
    """Wait until the fate of a meeting is decided; when the time is up, decide it."""
    try:
        store.wait([fate], timedelta(seconds=max(seconds, 0.001)))
    except dist.DistStoreError:
        store.compare_set(fate, "", otherwise)
