"""Why a run's communicators were closed before their time: told by the rank that did it first, read by the others."""

import logging
import threading
from collections.abc import Callable
from typing import Protocol

from asyncdiff.errors import StoppedError

logger = logging.getLogger(__name__)

_SECONDS = 5.0  # the store may be in a process that has stopped


class Store(Protocol):
    """What is used of torch's stores."""

    def compare_set(self, key: str, expected: str, new: str, /) -> bytes: ...

    def check(self, keys: list[str], /) -> bool: ...

    def get(self, key: str, /) -> bytes: ...


class Fault:
    """One word among all ranks that needs none of their communicators.

    Args:
        store: through which the ranks found each other.
        key: no other run's.
        rank: this process's, as the world counts.
    """

    def __init__(self, store: Store, key: str, rank: int) -> None:
        self._store = store
        self._key = key
        self._rank = rank

    def tell(self, reason: str) -> None:
        """Say why this rank closes its communicators, if no other has said so before."""
        _within_limit(lambda: str(self._store.compare_set(self._key, "", f"rank {self._rank}: {reason}")))

    def told(self) -> str:
        """What a rank has said, its number first; empty if none has, or it cannot be known."""
        return _within_limit(self._read)

    def raise_if_told(self) -> None:
        """Raise StoppedError, if a rank has said something: that is why what this rank waits for does not come."""
        reason = self.told()
        if reason:
            raise StoppedError(
                f"rank {self._rank}: the generation was ended on another rank ({reason}); the next one begins anew"
            )

    def _read(self) -> str:
        return self._store.get(self._key).decode() if self._store.check([self._key]) else ""


def _within_limit(ask: Callable[[], str]) -> str:
    """The store's answer; empty if none comes."""
    answers: list[str] = []

    def run() -> None:
        try:
            answers.append(ask())
        except RuntimeError as error:
            logger.warning("the store of the process group does not answer: %s", error)

    asking = threading.Thread(target=run, name="asyncdiff store", daemon=True)
    asking.start()
    asking.join(_SECONDS)
    return next(iter(answers), "")
