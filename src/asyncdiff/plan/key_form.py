"""In what form that travels which ranks exchange within a step: as it is, or in few bits a number. Pure.

Queries, keys, values and what attention makes of them are vectors; in few bits each vector has a scale of its own. A
rank reads its own as the others do, so that all of them compute with the same numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from asyncdiff.denoiser.trace import Leaf
from asyncdiff.plan.method import Bits
from asyncdiff.plan.packing import Packed, Packing


class KeyForm(Protocol):
    """A form of vectors, shape (batch, heads, tokens, channels), of which parts along one dimension are sent."""

    def along(self, dim: int) -> int:
        """The dimension along which such parts lie in what travels, if it is packed for that one."""

    def pack(self, vectors: Tensor, dim: int) -> Tensor:
        """What travels, for parts along a dimension."""

    def room(self, shape: Sequence[int], dim: int, like: Tensor) -> Tensor:
        """Room for what travels of vectors of that shape, and of the format and device of others."""

    def unpack(self, travelled: Tensor, shape: Sequence[int], dim: int, dtype: torch.dtype) -> Tensor:
        """The vectors, of that shape."""

    def nbytes(self, vectors: Leaf, rows: int) -> int:
        """What so many tokens of all heads take."""

    def passes(self, packed: float, unpacked: float) -> float:
        """Bytes that are gone through to pack so many of vectors, and to unpack so many. Counted in half precision
        (`tests/plan/test_key_form.py`)."""


@dataclass(frozen=True)
class AsItIs:
    """In the denoiser's own number format: nothing is lost."""

    def along(self, dim: int) -> int:
        return dim

    def pack(self, vectors: Tensor, dim: int) -> Tensor:
        del dim
        return vectors

    def room(self, shape: Sequence[int], dim: int, like: Tensor) -> Tensor:
        del dim
        return torch.empty(tuple(shape), dtype=like.dtype, device=like.device)

    def unpack(self, travelled: Tensor, shape: Sequence[int], dim: int, dtype: torch.dtype) -> Tensor:
        del shape, dim, dtype
        return travelled

    def nbytes(self, vectors: Leaf, rows: int) -> int:
        return vectors.bytes // vectors.shape[-2] * rows

    def passes(self, packed: float, unpacked: float) -> float:
        del packed, unpacked
        return 0.0


@dataclass(frozen=True)
class InBits:
    """In few bits a number, and a scale for each vector. What belongs to one place along the dimension lies together:
    the codes of its vectors, then their scales."""

    bits: Bits

    def along(self, dim: int) -> int:
        del dim
        return 0

    def pack(self, vectors: Tensor, dim: int) -> Tensor:
        moved = vectors.movedim(dim, 0)
        travels = self.room(vectors.shape, dim, vectors)
        packing, codes, scales = self._laid_out(travels, moved.shape)
        room = Packed(codes, torch.empty(moved.shape[:-1], dtype=packing.scale, device=vectors.device))
        packing.pack(moved, room)
        scales.copy_(room.scales.view(torch.uint8).view(scales.shape))
        return travels

    def room(self, shape: Sequence[int], dim: int, like: Tensor) -> Tensor:
        size = shape[dim]
        each = self._packing(shape[-1]).nbytes(math.prod(shape) // size) if size else 0
        return torch.empty(size, each, dtype=torch.uint8, device=like.device)

    def unpack(self, travelled: Tensor, shape: Sequence[int], dim: int, dtype: torch.dtype) -> Tensor:
        moved = torch.Size([shape[dim], *(size for axis, size in enumerate(shape) if axis != dim % len(shape))])
        packing, codes, scales = self._laid_out(travelled, moved)
        # A copy, since what lies at an odd place cannot be read as numbers of two bytes.
        scales = scales.clone(memory_format=torch.contiguous_format)
        packed = Packed(codes, scales.view(packing.scale).view(moved[:-1]))
        return packing.unpack(packed, dtype).view(moved).movedim(0, dim)

    def nbytes(self, vectors: Leaf, rows: int) -> int:
        return self._packing(vectors.shape[-1]).nbytes(math.prod(vectors.shape) // vectors.shape[-2] * rows)

    def passes(self, packed: float, unpacked: float) -> float:
        return 8.5 * packed + 1.5 * unpacked

    def rounded(self, vectors: Tensor) -> Tensor:
        """What all ranks read of vectors."""
        return self.unpack(self.pack(vectors, 0), vectors.shape, 0, vectors.dtype)

    def _packing(self, channels: int) -> Packing:
        return Packing(self.bits, channels)

    def _laid_out(self, travels: Tensor, shape: torch.Size) -> tuple[Packing, Tensor, Tensor]:
        """The codes, as vectors lie, and the bytes of the scales, in what travels for vectors of that shape."""
        packing = self._packing(shape[-1])
        of_codes = math.prod(shape[1:-1]) * packing.bytes_of_group
        codes = travels[:, :of_codes].view(*shape[:-1], packing.bytes_of_group)
        return packing, codes, travels[:, of_codes:]


AS_IT_IS = AsItIs()


def key_form(bits: Bits | None) -> KeyForm:
    """The form with so many bits a number; None for as it is."""
    return AS_IT_IS if bits is None else InBits(bits)
