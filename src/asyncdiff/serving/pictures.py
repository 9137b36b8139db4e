"""Pictures that wait to be fetched: in memory, under names that nobody can guess, some of them, for some minutes."""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

MOST_BYTES = 256 * 2**20
SECONDS = 600.0
_NAME_BYTES = 32


class Pictures:
    """The pictures.

    Args:
        most_bytes: that are kept; those that came first go first.
        seconds: for which each is kept.
        clock: seconds that only grow.
    """

    def __init__(
        self, most_bytes: int = MOST_BYTES, seconds: float = SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most_bytes = most_bytes
        self._seconds = seconds
        self._clock = clock
        self._held: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0

    def add(self, picture: bytes) -> str:
        """Keep it; its name."""
        name = secrets.token_urlsafe(_NAME_BYTES)
        self._held[name] = (self._clock() + self._seconds, picture)
        self._bytes += len(picture)
        self._let_go()
        return name

    def get(self, name: str) -> bytes | None:
        """The picture of that name, if it is still kept."""
        self._let_go()
        held = self._held.get(name)
        return None if held is None else held[1]

    def _let_go(self) -> None:
        while self._held:
            name, (end, picture) = next(iter(self._held.items()))
            if end > self._clock() and self._bytes <= self._most_bytes:
                return
            del self._held[name]
            self._bytes -= len(picture)
