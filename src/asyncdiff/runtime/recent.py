"""What was found out for one call and may be of use for the next: kept for those that came last."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

# A service may be asked for any size, and a text may be of any length: each is of a kind of its own.
MOST_KINDS = 32

Key = TypeVar("Key")
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """Values by key, of which those go that were not asked for the longest. The same calls leave the same ones."""

    def __init__(self) -> None:
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def of(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value of a key, made where there is none."""
        if key not in self._values:
            self._values[key] = make()
        self._values.move_to_end(key)
        while len(self._values) > MOST_KINDS:
            self._values.popitem(last=False)
        return self._values[key]

    def items(self) -> Iterator[tuple[Key, Value]]:
        """All that are kept."""
        return iter(self._values.items())
