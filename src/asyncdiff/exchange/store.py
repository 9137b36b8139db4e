"""The versions of live edges that a device holds for one stream of denoiser calls, and what they let expect.

All edges lie in one buffer (`plan.storage`), so that a forecast of all of them takes as many operators as one of a few.
Held are the newest version and the differences between neighbouring ones.
"""

import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asyncdiff.denoiser.graph import Edge
from asyncdiff.exchange.buffer import VersionedBuffer
from asyncdiff.exchange.versions import ELEMENTS_AT_ONCE
from asyncdiff.plan.forecast import Formula, formula, rounding_of
from asyncdiff.plan.method import PAPER, Method
from asyncdiff.plan.packing import Packing
from asyncdiff.plan.storage import Span, Storage


@dataclass(frozen=True)
class Reading:
    """From what edges are forecast, and to when.

    Attributes:
        steps: the versions, newest first.
        times: their places in the scheduler's own time.
        target: the place to forecast for.
        method: how.
        among: the spans in which all edges lie that are read so; each is forecast at once.
        is_read_once: whether each edge is asked for once; nothing is held of it then.
    """

    steps: tuple[int, ...]
    times: tuple[float, ...]
    target: float
    method: Method
    among: tuple[Span, ...]
    is_read_once: bool = False

    def formula(self, dtype: torch.dtype) -> Formula:
        """The formula for a buffer."""
        return formula(self.method if dtype.is_floating_point else PAPER, self.times, self.target, rounding_of(dtype))

    def around(self, span: Span) -> Span:
        """That of the spans in which another one lies."""
        return next(own for own in self.among if own.dtype == span.dtype and own.start <= span.start < own.stop)


@dataclass
class _Forecast:
    """What a part of a buffer is expected to be, and of how many elements that was not asked yet."""

    flat: Tensor
    unread: int


class EdgeStore:
    """The newest versions of the live edges that a rank holds; a version is the step that made it.

    Edges of the next version are put, or received into `arriving`, and become the newest version with `arrive`.

    Args:
        storage: where each edge lies.
        depth: how many versions are held.
        device: where.
        packings: of the number formats whose differences are packed.
    """

    def __init__(
        self,
        storage: Storage,
        depth: int,
        device: torch.device,
        packings: Mapping[torch.dtype, Packing] = types.MappingProxyType({}),
    ) -> None:
        self._storage = storage
        self._depth = depth
        self._device = device
        self._buffers = {
            dtype: VersionedBuffer(storage, dtype, depth, device, packings.get(dtype))
            for dtype, size in storage.sizes.items()
            if size
        }
        self._steps: list[int] = []
        self._untaken: Sequence[int] = ()
        self._written: set[Edge] = set()
        self._known: set[Edge] = set()
        self._on_its_way: Callable[[], None] | None = None
        self._spans: dict[tuple[frozenset[Edge], frozenset[int], bool], tuple[Span, ...]] = {}
        self._expected: dict[Reading, dict[Span, _Forecast]] = {}

    @property
    def bytes(self) -> int:
        """The memory that it takes."""
        return sum(buffer.held.bytes for buffer in self._buffers.values())

    def spans_of(
        self, reads: frozenset[Edge], exact: frozenset[int] = frozenset(), in_parts: bool = False
    ) -> tuple[Span, ...]:
        """Where the edges lie that are read together, those of `exact` units left out.

        Args:
            in_parts: whether the spans are to be no larger than what may be held beside all versions.
        """
        key = reads, exact, in_parts
        if key not in self._spans:
            edges = (edge for edge in reads if edge.unit not in exact)
            self._spans[key] = self._storage.joined(edges, ELEMENTS_AT_ONCE if in_parts else math.inf)
        return self._spans[key]

    def put(self, edge: Edge, tensor: Tensor) -> None:
        """Copy an edge of the next version in."""
        self.settle()
        span = self._storage.spans[edge]
        if span.start < span.stop:
            held, place = self._buffers[span.dtype].held, (span.start, span.stop)
            part = held.room(*place)
            self._storage.view(edge, part).copy_(tensor)
            held.put(*place, part)
        self._written.add(edge)

    def arriving(self, span: Span) -> tuple[Tensor, ...]:
        """The parts of the next version's buffers into which something is to be received."""
        self.settle()
        return self._buffers[span.dtype].held.arriving(span.start, span.stop)

    def arrive(
        self, steps: Sequence[int], received: Iterable[Edge] = (), wait: Callable[[], None] | None = None
    ) -> None:
        """What was put, and what is being received, is the newest version from now on.

        Args:
            steps: those that it is the version of, oldest first; nearly always one.
            received: the edges that are being received.
            wait: returns when they are there.
        """
        self.settle()
        self._on_its_way = wait
        self._known = self._written | set(received)
        self._written = set()
        self._untaken = steps
        self._steps = [*reversed(steps), *self._steps][: self._depth]
        self._expected.clear()

    def settle(self) -> None:
        """Wait for the newest version, if it is still on its way, and note how it differs from the one before."""
        wait, self._on_its_way = self._on_its_way, None
        if wait is not None:
            wait()
        steps, self._untaken = self._untaken, ()
        for buffer in self._buffers.values():
            for number in range(len(steps)):
                if number == 0:
                    buffer.take_over()
                else:
                    buffer.repeat()

    def newest(self, edge: Edge, step: int) -> Tensor:
        """An edge's newest version, which must be that of a step.

        Raises:
            RuntimeError: it is not there: schedule and executor disagree.
        """
        self._check(edge, [step])
        span = self._storage.spans[edge]
        if span.start == span.stop:
            return self._nothing(edge)
        return self._storage.view(edge, self._buffers[span.dtype].held.newest[span.start : span.stop])

    def expected(self, edge: Edge, reading: Reading) -> Tensor:
        """What an edge is expected to be.

        Raises:
            RuntimeError: a version is not there: schedule and executor disagree.
        """
        self._check(edge, reading.steps)
        span = self._storage.spans[edge]
        if span.start == span.stop:
            return self._nothing(edge)
        around = reading.around(span)
        made = self._expected.setdefault(reading, {})
        if around not in made:
            flat = self._buffers[span.dtype].forecast(reading.formula(span.dtype), around)
            made[around] = _Forecast(flat, len(flat))
        forecast = made[around]
        forecast.unread -= span.stop - span.start
        if reading.is_read_once and not forecast.unread:
            del made[around]
        return self._storage.view(edge, forecast.flat[span.start - around.start : span.stop - around.start])

    def errors(self, steps: Sequence[int], method: Method, times: tuple[float, ...]) -> Tensor:
        """How far the newest version is from what the older ones let expect.

        Args:
            steps, times: the versions, newest first, at least two.

        Returns:
            |F − F̂|² / |F|² of every row, edge by edge and member by member; empty where nothing can be forecast.
        """
        for edge in self._storage.spans:
            self._check(edge, steps)
        found = [
            buffer.errors(formula(method, times[1:], times[0], rounding_of(dtype)))
            for dtype, buffer in self._buffers.items()
            if dtype.is_floating_point
        ]
        return torch.cat(found) if found else torch.zeros(0)

    def members(self) -> list[int]:
        """How many rows each edge has whose error is told, in the order in which they are told."""
        return [
            members for dtype in self._buffers if dtype.is_floating_point for members in self._storage.members(dtype)
        ]

    def _nothing(self, edge: Edge) -> Tensor:
        """An edge without elements."""
        leaf = self._storage.leaves[edge]
        return torch.empty(leaf.shape, dtype=leaf.dtype, device=self._device)

    def _check(self, edge: Edge, steps: Sequence[int]) -> None:
        if list(steps) != self._steps[: len(steps)] or edge not in self._known:
            raise RuntimeError(
                f"edge {edge} is there of steps {self._steps if edge in self._known else []}, but the schedule reads "
                f"steps {list(steps)}"
            )
        self.settle()
