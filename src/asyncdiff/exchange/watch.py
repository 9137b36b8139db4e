"""Ends a run in which an operation does not finish, where waiting for it does not hold the host.

On NCCL a wait only orders the device's streams: the host goes on, until something reads a number, and then it hangs for
good. The host may be far ahead of its device, so that the time limit counts from when the device comes to an operation:
what it has to compute before is no waiting for another rank.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from asyncdiff.errors import ExchangeError, StoppedError

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 1.0
# The host, if it is not held, comes by here in this time, and raises; after it the process ends.
_SECONDS_TO_RAISE = 5.0


class Operation(Protocol):
    """What is watched."""

    def is_completed(self) -> bool:
        """Whether it has finished."""


@dataclass
class _Outstanding:
    """Operations that were started together.

    Attributes:
        names: what they are called in an error.
        has_begun: whether the device has come to them.
        begin: when it was first seen to have; None if it was not yet.
    """

    works: Sequence[Operation]
    names: Sequence[str]
    has_begun: Callable[[], bool]
    begin: float | None = None


class Watcher:
    """Looks at outstanding operations from a thread of its own.

    Args:
        rank: this process's.
        timeout: seconds that an operation may take.
        told: the sentence for why another rank has ended the generation; empty if none has.
        abort: ends what the device waits for; whether it could.
    """

    def __init__(
        self,
        rank: int,
        timeout: float,
        told: Callable[[], str] = lambda: "",
        abort: Callable[[], bool] = lambda: False,
    ) -> None:
        self._rank = rank
        self._told = told
        self._abort = abort
        self._is_stopped = False
        self._timeout = timeout
        self._outstanding: list[_Outstanding] = []
        self._lock = threading.Lock()
        self._is_closed = threading.Event()
        self._failure = ""
        self._has_told = threading.Event()
        threading.Thread(target=self._look, name="asyncdiff watcher", daemon=True).start()

    def watch(self, works: Sequence[Operation], names: Sequence[str], has_begun: Callable[[], bool]) -> None:
        """Operations were started.

        Args:
            names: what they are called in the error.
            has_begun: tells whether the device has come to them, in any thread.
        """
        with self._lock:
            self._outstanding.append(_Outstanding(works, names, has_begun))

    @property
    def has_failed(self) -> bool:
        """Whether an operation did not finish in time."""
        return bool(self._failure)

    def check(self) -> None:
        """Raise ExchangeError if an operation did not finish in time, or another rank has ended the generation."""
        if self._failure:
            self._has_told.set()
            raise (StoppedError if self._is_stopped else ExchangeError)(self._failure)

    def close(self, patience: float) -> bool:
        """Look no more. Returns whether all operations have finished, for which it waits so many seconds."""
        self._is_closed.set()
        end = time.monotonic() + patience
        while self._forget_finished() and time.monotonic() < end:
            time.sleep(_SECONDS_BETWEEN_LOOKS / 100)
        return not self._outstanding

    def _look(self) -> None:
        while not self._is_closed.wait(min(_SECONDS_BETWEEN_LOOKS, self._timeout / 10)):
            overdue = self._overdue()
            told = self._told() if self._outstanding and not overdue else ""
            if told:
                self._is_stopped, self._failure = True, told
                comes_by = self._has_told.wait(_SECONDS_TO_RAISE) or self._is_closed.is_set()
                if not comes_by and not self._abort():
                    self._end()
                return
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
        now = time.monotonic()
        for entry in self._forget_finished():
            if entry.begin is None and entry.has_begun():
                entry.begin = now
            if entry.begin is not None and entry.begin < now - self._timeout:
                return joined(entry.names)
        return ""

    def _forget_finished(self) -> list[_Outstanding]:
        """Those that have not finished."""
        with self._lock:
            self._outstanding = [entry for entry in self._outstanding if not all(map(_is_over, entry.works))]
            return self._outstanding

    def _end(self) -> None:
        """End the process: its host is held by a device that waits for another rank, so that it cannot raise."""
        print(f"asyncdiff: {self._failure}", file=sys.stderr, flush=True)
        handler = get_error_handler()
        handler.record_exception(ExchangeError(self._failure))
        os._exit(1)


def joined(names: Sequence[str]) -> str:
    """What several transfers are called together."""
    return "; ".join(dict.fromkeys(names))


def _is_over(operation: Operation) -> bool:
    """Whether an operation has finished; one that cannot be asked any more has not."""
    try:
        return operation.is_completed()
    except RuntimeError as error:
        logger.warning("an operation cannot be asked whether it has finished: %s", error)
        return False
