"""How long somebody waits, and whether they still do."""

import time
from collections.abc import Callable

_SECONDS_BETWEEN_LOOKS = 0.1


class TooLongError(Exception):
    """The time is over."""


class Patience:
    """A limit for all that is waited for in one piece of work.

    Args:
        seconds: from now on.
        check: called several times a second; what it raises ends the waiting.
    """

    def __init__(self, seconds: float, check: Callable[[], None]) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds
        self._check = check

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def look(self) -> float:
        """Seconds that may be waited until the next look.

        Raises:
            TooLongError: the time is over.
        """
        self._check()
        if self.left <= 0:
            raise TooLongError(f"it was not done within {self.seconds:g} s")
        return min(self.left, _SECONDS_BETWEEN_LOOKS)

    def sleep(self, seconds: float) -> None:
        """Wait so long.

        Raises:
            TooLongError: the time is over before.
        """
        end = time.monotonic() + seconds
        while (more := end - time.monotonic()) > 0:
            time.sleep(min(more, self.look()))
