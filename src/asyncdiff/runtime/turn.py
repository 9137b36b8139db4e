"""Whose turn it is: of several threads that generate with one denoiser, one after the other does."""

import threading
import time
from collections.abc import Callable

from asyncdiff.errors import BusyError

_SECONDS_BETWEEN_LOOKS = 0.05


class Turn:
    """Held by one thread from the beginning of a generation to its end.

    Args:
        timeout: seconds that another thread waits for it.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._changed = threading.Condition()
        self._holder: int | None = None
        self._is_in_use: Callable[[], bool] = _never

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread holds it."""
        return self._holder == threading.get_ident()

    def take(self, is_in_use: Callable[[], bool]) -> None:
        """Wait for it, and hold it.

        Args:
            is_in_use: whether the holder still needs it; a generation may end without a word.

        Raises:
            BusyError: another thread has held it all the time.
        """
        me, end = threading.get_ident(), time.monotonic() + self._timeout
        with self._changed:
            while self._holder not in (None, me) and self._is_in_use():
                if time.monotonic() > end:
                    raise BusyError(
                        f"another thread has been generating with this denoiser for {self._timeout:g} s (a loop by "
                        "hand does until its last step, or its thread ends); one generation at a time can run on it: "
                        "wait for the other one, or load the denoiser twice"
                    )
                self._changed.wait(_SECONDS_BETWEEN_LOOKS)
            self._holder, self._is_in_use = me, is_in_use

    def leave(self) -> None:
        """Let another thread have it, if this one holds it."""
        with self._changed:
            if self.is_mine:
                self._holder, self._is_in_use = None, _never
                self._changed.notify_all()


def _never() -> bool:
    return False
