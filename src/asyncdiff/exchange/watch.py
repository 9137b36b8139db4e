"""Ends a run in which an operation does not finish, where waiting for it does not hold the host.

On NCCL a wait only orders the device's streams: the host goes on, until something reads a number, and then it hangs for
good.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Protocol

from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from asyncdiff.errors import ExchangeError

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 1.0
# The host, if it is not held, comes by here in this time, and raises; after it the process ends.
_SECONDS_TO_RAISE = 5.0


class Operation(Protocol):
    """What is watched."""

    def is_completed(self) -> bool:
        """Whether it has finished."""


class Watcher:
    """Looks at outstanding operations from a thread of its own.

    Args:
        rank: this process's.
        timeout: seconds that an operation may take.
    """

    def __init__(self, rank: int, timeout: float) -> None:
        self._rank = rank
        self._timeout = timeout
        self._outstanding: list[tuple[float, Sequence[Operation], str]] = []
        self._lock = threading.Lock()
        self._is_closed = threading.Event()
        self._failure = ""
        self._has_told = threading.Event()
        threading.Thread(target=self._look, name="asyncdiff watcher", daemon=True).start()

    def watch(self, works: Sequence[Operation], what: str) -> None:
        """Operations were started; `what` names them in the error."""
        with self._lock:
            self._outstanding.append((time.monotonic(), works, what))

    def check(self) -> None:
        """Raise ExchangeError if an operation did not finish in time."""
        if self._failure:
            self._has_told.set()
            raise ExchangeError(self._failure)

    def close(self) -> None:
        """Look no more."""
        self._is_closed.set()

    def _look(self) -> None:
        while not self._is_closed.wait(min(_SECONDS_BETWEEN_LOOKS, self._timeout / 10)):
            overdue = self._overdue()
            if overdue:
                self._failure = (
                    f"rank {self._rank}: {overdue} did not finish within {self._timeout:g} s; "
                    "that rank may have died or be doing other work"
                )
                if self._has_told.wait(_SECONDS_TO_RAISE) or self._is_closed.is_set():
                    return
                if self._overdue():
                    self._end()
                self._failure = ""  # it came after all

    def _overdue(self) -> str:
        """The first operation that has taken too long; forgets those that are done."""
        with self._lock:
            self._outstanding = [entry for entry in self._outstanding if not all(map(_is_over, entry[1]))]
            late = time.monotonic() - self._timeout
            return next((what for begin, _, what in self._outstanding if begin < late), "")

    def _end(self) -> None:
        """End the process: its host is held by a device that waits for another rank, so that it cannot raise."""
        print(f"asyncdiff: {self._failure}", file=sys.stderr, flush=True)
        handler = get_error_handler()
        handler.record_exception(ExchangeError(self._failure))
        os._exit(1)


def _is_over(operation: Operation) -> bool:
    """Whether an operation has finished; one that cannot be asked any more has not."""
    try:
        return operation.is_completed()
    except RuntimeError as error:
        logger.warning("an operation cannot be asked whether it has finished: %s", error)
        return False
