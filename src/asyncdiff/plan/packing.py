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
_SMALLEST = 1e-30


class Packed(NamedTuple):
    """Numbers of which every group shares a scale.

    Attributes:
        codes: uint8, shape (…, groups, bytes of a group): signed numbers, of 4 bits two in a byte.
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

    @property
    def scale(self) -> torch.dtype:
        """The number format of scales: as far as any number reaches; both ends use them as they were rounded."""
        return torch.bfloat16

    def nbytes(self, numbers: int) -> int:
        """What so many numbers take."""
        return numbers // self.group * (self.bytes_of_group + self.scale.itemsize)

    def room(self, numbers: int, device: torch.device, *more: int) -> Packed:
        """Room for so many numbers, once or several times; they are 0."""
        groups = numbers // self.group
        codes = torch.zeros(*more, groups, self.bytes_of_group, dtype=torch.uint8, device=device)
        return Packed(codes, torch.zeros(*more, groups, dtype=self.scale, device=device))

    def part(self, packed: Packed, start: int, stop: int) -> Packed:
        """Some of the numbers."""
        groups = slice(start // self.group, stop // self.group)
        return Packed(packed.codes[..., groups, :], packed.scales[..., groups])

    def pack(self, numbers: Tensor, into: Packed) -> None:
        """Pack numbers, group by group, as many as there is room for. What is no number makes its whole group none."""
        groups = numbers.reshape(*into.scales.shape, self.group)
        into.scales.copy_(torch.linalg.vector_norm(groups, math.inf, -1).float() / self._most)
        of_one = into.scales.float().clamp_min(_SMALLEST).reciprocal().unsqueeze(-1)
        whole = (groups * of_one).round_()  # no larger than it may be: the scale is rounded by less than half a code
        codes = into.codes.view(torch.int8)
        if self.bits == 8:
            codes.copy_(whole)
        else:
            if self.group % 2:
                whole = torch.nn.functional.pad(whole, (0, 1))
            low, high = whole.to(torch.int8).chunk(2, -1)
            torch.bitwise_or(low & 15, high << 4, out=codes)

    def unpack(self, packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
        """The numbers, shape (…, numbers), rounded to a number format."""
        codes, exact = packed.codes.view(torch.int8), dtype if dtype == self.scale else torch.float32
        scales = packed.scales.to(exact).unsqueeze(-1)
        if self.bits == 8:
            numbers = codes * scales
        else:
            half = codes.shape[-1]
            numbers = torch.empty(*codes.shape[:-1], self.group, dtype=exact, device=codes.device)
            torch.mul((codes << 4).bitwise_right_shift_(4), scales, out=numbers[..., :half])
            torch.mul((codes >> 4)[..., : self.group - half], scales, out=numbers[..., half:])
        return narrowed(numbers, dtype).flatten(-2)

    @property
    def _most(self) -> int:
        return int(2 ** (self.bits - 1)) - 1

    @property
    def bytes_of_group(self) -> int:
        """What a group's codes take."""
        return math.ceil(self.group * self.bits / 8)


def wide(numbers: Tensor) -> Tensor:
    """Numbers in a format in which the difference of any two of them is a number."""
    return numbers.float() if numbers.dtype == torch.float16 else numbers


def narrowed(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers rounded to a format, none of them beyond what that reaches: what was rounded before may lie there."""
    if dtype == torch.float16:
        most = torch.finfo(dtype).max
        numbers = numbers.clamp(-most, most)
    return numbers.to(dtype)


def packing_for(bits: int, blocks: Iterable[int]) -> Packing:
    """The packing of what lies in blocks of these sizes, none of which a group reaches out of."""
    return Packing(bits, math.gcd(_LARGEST_GROUP, *blocks))
