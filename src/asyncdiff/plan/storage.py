"""Where each live edge lies in what a rank holds: one buffer for each number format, message by message. Pure."""

import functools
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from asyncdiff.denoiser.graph import Edge, Graph
from asyncdiff.denoiser.trace import Leaf


class Span(NamedTuple):
    """A part of a buffer, in elements.

    Attributes:
        dtype: which buffer.
        start, stop: the first element, and the one after the last.
    """

    dtype: torch.dtype
    start: int
    stop: int


class Rows(NamedTuple):
    """What of a buffer belongs together when it is forecast: an edge's part for one member of the batch is a row.

    Attributes:
        total: how many rows there are.
        block: elements of a block; every block lies in one row.
        of_block: the row of each block, shape (blocks,).
    """

    total: int
    block: int
    of_block: Tensor


@dataclass(frozen=True)
class Storage:
    """The layout of what a rank holds.

    Attributes:
        leaves: shape, stride and format of every edge.
        spans: where each lies.
    """

    leaves: Mapping[Edge, Leaf]
    spans: Mapping[Edge, Span]

    def view(self, edge: Edge, flat: Tensor) -> Tensor:
        """A buffer's part as an edge's tensor, in the memory order that the tensor was recorded with."""
        leaf = self.leaves[edge]
        return flat.as_strided(leaf.shape, self._strides[edge], flat.storage_offset())

    @functools.cached_property
    def _strides(self) -> dict[Edge, tuple[int, ...]]:
        return {edge: _packed_stride(leaf) for edge, leaf in self.leaves.items()}

    @property
    def sizes(self) -> dict[torch.dtype, int]:
        """Elements of each buffer."""
        sizes: dict[torch.dtype, int] = {}
        for span in self.spans.values():
            sizes[span.dtype] = max(sizes.get(span.dtype, 0), span.stop)
        return sizes

    def joined(self, edges: Iterable[Edge], most: float = math.inf) -> tuple[Span, ...]:
        """The spans of some edges, neighbours joined where they have at most so many elements together."""
        found: list[Span] = []
        spans = (self.spans[edge] for edge in edges)
        filled = (span for span in spans if span.start < span.stop)
        for span in sorted(filled, key=lambda span: (str(span.dtype), span.start)):
            is_next = bool(found) and (found[-1].dtype, found[-1].stop) == (span.dtype, span.start)
            if is_next and span.stop - found[-1].start <= most:
                found[-1] = Span(span.dtype, found[-1].start, span.stop)
            else:
                found.append(span)
        return tuple(found)

    def members(self, dtype: torch.dtype) -> list[int]:
        """How many rows each edge of one buffer has, as they lie."""
        return [_runs(self.leaves[edge])[0] for edge, _ in self._filling(dtype)]

    def rows(self, dtype: torch.dtype) -> Rows:
        """The rows of one buffer, edge by edge and member by member."""
        rows, sizes, count, block = [], [], 0, self.block(dtype)
        for edge, span in self._filling(dtype):
            members, run = _runs(self.leaves[edge])
            repeats = (span.stop - span.start) // (members * run)
            rows.append(torch.arange(count, count + members).repeat(repeats))
            sizes.append(torch.full((members * repeats,), run))
            count += members
        return Rows(count, block, torch.cat(rows).repeat_interleave(torch.cat(sizes) // block))

    def block(self, dtype: torch.dtype) -> int:
        """Elements of a block of one buffer, each of which lies in one row."""
        return math.gcd(*(_runs(self.leaves[edge])[1] for edge, _ in self._filling(dtype)))

    def _filling(self, dtype: torch.dtype) -> list[tuple[Edge, Span]]:
        """The edges of one buffer that are not empty, as they lie."""
        found = [item for item in self.spans.items() if item[1].dtype == dtype and item[1].start < item[1].stop]
        return sorted(found, key=lambda item: item[1].start)


def lay_out(graph: Graph, groups: Iterable[Collection[Edge]]) -> Storage:
    """Lay edges out group by group: what arrives together lies together."""
    ends: dict[torch.dtype, int] = {}
    leaves, spans = {}, {}
    for group in groups:
        for edge in sorted(group):
            leaf = graph.units[edge.unit].outputs[edge.leaf]
            if leaf.dtype is None or edge in spans:
                continue
            start = ends.get(leaf.dtype, 0)
            ends[leaf.dtype] = start + math.prod(leaf.shape)
            leaves[edge], spans[edge] = leaf, Span(leaf.dtype, start, ends[leaf.dtype])
    return Storage(leaves, spans)


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """That of a tensor without gaps, the last dimension densest."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _packed_stride(leaf: Leaf) -> tuple[int, ...]:
    """The stride of an edge in its buffer: its own, if that leaves no gaps, or else a contiguous one."""
    expected = 1
    for step, size in sorted((step, size) for step, size in zip(leaf.stride, leaf.shape, strict=True) if size > 1):
        if step != expected:
            return contiguous_stride(leaf.shape)
        expected *= size
    return tuple(leaf.stride)


def _runs(leaf: Leaf) -> tuple[int, int]:
    """Members of the batch, and how many elements in a row belong to the same one, as the edge lies in its buffer.

    The batch is the first axis of what has three or more; what has fewer is one member.
    """
    if len(leaf.shape) < 3 or leaf.shape[0] == 1:
        return 1, math.prod(leaf.shape)
    batch, *others = _packed_stride(leaf)
    return leaf.shape[0], math.prod(
        size for step, size in zip(others, leaf.shape[1:], strict=True) if size == 1 or step < batch
    )
