"""Differences between versions in a few bits a number, in groups of numbers that share a scale. Pure arithmetic.

With s the scale of a group, s = max |d| / (2^(b−1) − 1), a number travels as the whole number nearest to d / s. What
rounding leaves is part of the next difference, since differences are taken to what the reader has: it does not add up.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

_LARGEST_GROUP = 128  # numbers
_SCALE = torch.bfloat16  # as far as any number reaches; both ends use it as it was rounded
_SMALLEST = 1e-30


class Packed(NamedTuple):
    """Numbers of which every group shares a scale.

    Attributes:
        codes: uint8, shape (…, groups, bytes of a group).
        scales: shape (…, groups).
    """

    codes: Tensor
    scales: Tensor

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return self.codes.nbytes + self.scales.nbytes


@dataclass(frozen=True)
class Packing:
    """How numbers are packed.

    Attributes:
        bits: of a number; 4 or 8.
        group: how many numbers share a scale; whatever is packed is a multiple of it.
    """

    bits: int
    group: int

    def nbytes(self, numbers: int) -> int:
        """What so many numbers take."""
        return numbers // self.group * (self._bytes + _SCALE.itemsize)

    def room(self, numbers: int, device: torch.device, *more: int) -> Packed:
        """Room for so many numbers, once or several times; they are 0."""
        groups = numbers // self.group
        codes = torch.full((*more, groups, self._bytes), self._zeros, dtype=torch.uint8, device=device)
        return Packed(codes, torch.zeros(*more, groups, dtype=_SCALE, device=device))

    def part(self, packed: Packed, start: int, stop: int) -> Packed:
        """Some of the numbers."""
        groups = slice(start // self.group, stop // self.group)
        return Packed(packed.codes[..., groups, :], packed.scales[..., groups])

    def pack(self, numbers: Tensor, into: Packed) -> None:
        """Pack numbers, shape (numbers,). What is no number makes its whole group none."""
        groups = numbers.view(-1, self.group).float()
        into.scales.copy_(torch.linalg.vector_norm(groups, math.inf, -1) / self._most)
        scales = into.scales.float().clamp_min(_SMALLEST).unsqueeze(-1)
        whole = (groups / scales).round().clamp(-self._most, self._most).nan_to_num()
        codes = (whole + self._offset).to(torch.uint8)
        if self.bits == 4:
            low, high = torch.nn.functional.pad(codes, (0, self.group % 2)).chunk(2, -1)
            codes = low | high << 4
        into.codes.copy_(codes)

    def unpack(self, packed: Packed) -> Tensor:
        """The numbers, shape (…, numbers), in single precision."""
        codes = packed.codes
        if self.bits == 4:
            codes = torch.cat((codes & 15, codes >> 4), -1)[..., : self.group]
        return ((codes.float() - self._offset) * packed.scales.float().unsqueeze(-1)).flatten(-2)

    @property
    def _most(self) -> int:
        return int(2 ** (self.bits - 1)) - 1

    @property
    def _offset(self) -> int:
        return int(2 ** (self.bits - 1))

    @property
    def _bytes(self) -> int:
        """Of a group's codes."""
        return math.ceil(self.group * self.bits / 8)

    @property
    def _zeros(self) -> int:
        """The code of zeros, a byte."""
        return self._offset if self.bits == 8 else self._offset | self._offset << 4


def packing_for(bits: int, blocks: Iterable[int]) -> Packing:
    """The packing of what lies in blocks of these sizes, none of which a group reaches out of."""
    return Packing(bits, math.gcd(_LARGEST_GROUP, *blocks))
