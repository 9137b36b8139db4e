"""A batch shared out in parts of one size. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Parts:
    """A batch of B in parts of one size. Where B is no multiple of it, the last parts overlap those before them."""

    batch: int
    count: int

    @property
    def size(self) -> int:
        """How many members each part has."""
        return -(-self.batch // self.count)

    @property
    def use(self) -> float:
        """How much of the work on all parts is not done twice."""
        return self.batch / (self.count * self.size)

    def start(self, number: int) -> int:
        """The first member of a part."""
        return min(number * self.size, self.batch - self.size)

    def repeated(self, number: int) -> int:
        """How many of its members the parts before it have too."""
        return min(number * self.size - self.start(number), self.size)
