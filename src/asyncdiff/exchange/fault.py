"""Why a run's communicators were closed before their time: told by the rank that did it first, read by the others."""

import logging
import time
from collections.abc import Callable, Sequence

from torch.distributed.distributed_c10d import Store

from asyncdiff.errors import StoppedError
from asyncdiff.exchange.asking import ask_within

logger = logging.getLogger(__name__)

_SECONDS_FOR_A_SIGN = 2.0
_SECONDS = 5.0  # the store may be in a process that has stopped


class Fault:
    """One word among all ranks that needs none of their communicators.

    Args:
        store: through which the ranks found each other.
        key: no other run's.
        rank: this process's, as the world counts.
        members: all ranks of the run, likewise.
    """

    def __init__(self, store: Store, key: str, rank: int, members: Sequence[int]) -> None:
        self._store = store
        self._key = key
        self._rank = rank
        self._members = members

    def tell(self, reason: str) -> None:
        """Say why this rank closes its communicators, if no other has said so before."""
        _within_limit(lambda: str(self._store.compare_set(self._key, "", f"rank {self._rank}: {reason}")))

    def told(self) -> str:
        """What a rank has said, its number first; empty if none has, or it cannot be known."""
        return _within_limit(self._read)

    def raise_if_told(self) -> None:
        """Raise StoppedError, if a rank has said something: that is why what this rank waits for does not come."""
        sentence = self.sentence()
        if sentence:
            raise StoppedError(sentence)

    def sentence(self) -> str:
        """What a rank has said, as an error of this one; empty if none has."""
        reason = self.told()
        if not reason:
            return ""
        return f"rank {self._rank}: the generation was ended on another rank ({reason}); the next one begins anew"

    def remark(self, text: str) -> None:
        """Note what explains, should the others wait for this rank in vain, why; the last remark counts."""

        def note() -> str:
            self._store.set(f"{self._key}/remark/{self._rank}", text)
            return ""

        _within_limit(note)

    def remarks(self) -> str:
        """What some ranks have noted and others have not, in brackets; empty if there is nothing."""

        def look() -> str:
            keys = {member: f"{self._key}/remark/{member}" for member in self._members}
            noted = {
                each: self._store.get(key).decode() if self._store.check([key]) else "" for each, key in keys.items()
            }
            if len(set(noted.values())) == 1:
                return ""
            return " (" + "; ".join(f"rank {member}: {text}" for member, text in noted.items() if text) + ")"

        return _within_limit(look)

    def who_is_missing(self) -> str:
        """Which ranks give no sign of life, for an operation that did not end; "a rank" where that is unknown.

        Where one rank is missing, operations fail on all others; each of them says so, and waits a moment for the rest.
        """
        others = {member: f"{self._key}/alive/{member}" for member in self._members if member != self._rank}

        def look() -> str:
            self._store.set(f"{self._key}/alive/{self._rank}", "yes")
            end = time.monotonic() + _SECONDS_FOR_A_SIGN
            missing = [member for member, key in others.items() if not self._store.check([key])]
            while missing and time.monotonic() < end:
                time.sleep(0.05)
                missing = [member for member in missing if not self._store.check([others[member]])]
            return ", ".join(f"rank {member}" for member in missing)

        silent = _within_limit(look)
        return f"no sign of life from {silent}, which" if silent else "a rank"

    def _read(self) -> str:
        return self._store.get(self._key).decode() if self._store.check([self._key]) else ""


def _within_limit(ask: Callable[[], str]) -> str:
    """The store's answer; empty if none comes."""
    try:
        return ask_within(_SECONDS, ask)
    except RuntimeError as error:
        logger.warning("the store of the process group does not answer: %s", error)
        return ""
