"""What is held of a flat buffer's versions: the newest, what is arriving, and how neighbouring versions differ."""

from typing import Protocol

import torch
from torch import Tensor

from asyncdiff.plan.packing import Packed, Packing, narrowed, wide

ELEMENTS_AT_ONCE = 2**22  # of a buffer, where more is computed than is held; a multiple of every packed group


class Versions(Protocol):
    """The versions of one buffer, of whatever form.

    Attributes:
        newest: the newest version, shape (elements,).
        count: how many differences are held.
        at_once: for how many elements differences are at hand at a time; None for all.
    """

    newest: Tensor
    count: int
    at_once: int | None

    @property
    def bytes(self) -> int:
        """The memory that they take."""

    def room(self, start: int, stop: int) -> Tensor:
        """Where a part of the next version is written to, to be put then."""

    def put(self, start: int, stop: int, part: Tensor) -> None:
        """A part of the next version is there, in its room."""

    def arriving(self, start: int, stop: int) -> tuple[Tensor, ...]:
        """What is received, or sent, of a part of the next version."""

    def take_over(self, slot: int | None) -> None:
        """What has arrived is the newest version now; how it differs from the one before is held in a slot."""

    def repeat(self, slot: int) -> None:
        """The newest version does not differ from the one before."""

    def differences(self, start: int, stop: int) -> Tensor:
        """All differences of a part, slot by slot, shape (differences, elements)."""

    def difference(self, slot: int, start: int, stop: int) -> Tensor:
        """One of them, shape (elements,)."""


class WholeVersions:
    """All of them as they are."""

    def __init__(self, size: int, dtype: torch.dtype, depth: int, device: torch.device) -> None:
        self.newest = torch.zeros(size, dtype=dtype, device=device)
        self.count = depth - 1 if dtype.is_floating_point else 0
        self.at_once: int | None = None
        self.next = torch.zeros(size, dtype=dtype, device=device)
        self._differences = torch.zeros(self.count, size, dtype=dtype, device=device)

    @property
    def bytes(self) -> int:
        return self.newest.nbytes + self.next.nbytes + self._differences.nbytes

    def room(self, start: int, stop: int) -> Tensor:
        return self.next[start:stop]

    def put(self, start: int, stop: int, part: Tensor) -> None:
        del start, stop, part  # it was written where it belongs

    def arriving(self, start: int, stop: int) -> tuple[Tensor, ...]:
        return (self.next[start:stop],)

    def take_over(self, slot: int | None) -> None:
        if slot is not None:
            torch.sub(self.next, self.newest, out=self._differences[slot])
        self.newest, self.next = self.next, self.newest

    def repeat(self, slot: int) -> None:
        self._differences[slot].zero_()

    def differences(self, start: int, stop: int) -> Tensor:
        return self._differences[:, start:stop]

    def difference(self, slot: int, start: int, stop: int) -> Tensor:
        return self._differences[slot, start:stop]


class PackedVersions:
    """The newest one as it is, the differences packed as they arrive. The first version comes whole.

    What is no number in a version counts as 0 for the next one.
    """

    def __init__(self, size: int, dtype: torch.dtype, depth: int, device: torch.device, packing: Packing) -> None:
        self.newest = torch.zeros(size, dtype=dtype, device=device)
        self.count = depth - 1
        self.at_once: int | None = ELEMENTS_AT_ONCE
        self._packing = packing
        self._next = packing.room(size, device)
        self._differences = packing.room(size, device, self.count)
        self._is_empty = True

    @property
    def bytes(self) -> int:
        return self.newest.nbytes + self._next.nbytes + self._differences.nbytes

    def room(self, start: int, stop: int) -> Tensor:
        return self.newest[start:stop] if self._is_empty else torch.empty_like(self.newest[start:stop])

    def put(self, start: int, stop: int, part: Tensor) -> None:
        if not self._is_empty:
            self._packing.pack(wide(part) - self._base(start, stop), self._packing.part(self._next, start, stop))

    def arriving(self, start: int, stop: int) -> tuple[Tensor, ...]:
        return tuple(self._packing.part(self._next, start, stop))

    def take_over(self, slot: int | None) -> None:
        if self._is_empty:
            self._is_empty = False
            return
        for start in range(0, len(self.newest), ELEMENTS_AT_ONCE):
            stop = min(start + ELEMENTS_AT_ONCE, len(self.newest))
            base = self._base(start, stop)
            difference = self._packing.unpack(self._packing.part(self._next, start, stop), base.dtype)
            self.newest[start:stop] = narrowed(base.add_(difference), self.newest.dtype)
        if slot is not None:
            self._differences.codes[slot] = self._next.codes
            self._differences.scales[slot] = self._next.scales

    def repeat(self, slot: int) -> None:
        self._differences.scales[slot].zero_()

    def differences(self, start: int, stop: int) -> Tensor:
        return self._packing.unpack(self._packing.part(self._differences, start, stop), self.newest.dtype)

    def difference(self, slot: int, start: int, stop: int) -> Tensor:
        packed = Packed(self._differences.codes[slot], self._differences.scales[slot])
        return self._packing.unpack(self._packing.part(packed, start, stop), self.newest.dtype)

    def _base(self, start: int, stop: int) -> Tensor:
        """What the next version is told apart from, a copy."""
        return wide(self.newest[start:stop]).nan_to_num(0.0, 0.0, 0.0)
