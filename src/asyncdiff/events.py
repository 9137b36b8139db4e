"""What happens in this process, and when, for as long as somebody wants to know.

While nobody does, a span costs a comparison. A GPU does later what the host starts now: of what the device does its own
times are noted as well, from marks that it passes.
"""

import contextlib
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch

from asyncdiff.happening import Event, Kind


class Mark(NamedTuple):
    """A moment: by the host's clock, and in what the device is to do."""

    seconds: float
    passed: torch.cuda.Event | None


_NEVER = Mark(0.0, None)


class _Noted(NamedTuple):
    kind: Kind
    name: str
    begin: Mark
    end: Mark
    details: dict[str, str]


class Events:
    """Notes what happens.

    Args:
        device: where this process computes.

    Attributes:
        is_on: whether somebody wants to know.
    """

    def __init__(self, device: torch.device) -> None:
        self.is_on = False
        self._device = device
        self._noted: list[_Noted] = []
        self._start = _NEVER
        self._epoch = 0.0

    def start(self) -> None:
        """From now on events are noted."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._noted = []
        self._epoch = time.time() - time.perf_counter()
        self.is_on = True
        self._start = self.mark()

    def stop(self) -> tuple[Event, ...]:
        """No more events are noted; returns those that were, in the order in which they ended."""
        self.is_on = False
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        noted, self._noted = self._noted, []
        return tuple(
            Event(
                kind=each.kind,
                name=each.name,
                begin=self._epoch + each.begin.seconds,
                end=self._epoch + each.end.seconds,
                on_device=self._on_device(each.begin, each.end),
                details=each.details,
            )
            for each in noted
        )

    def mark(self) -> Mark:
        """Now, if somebody wants to know."""
        if not self.is_on:
            return _NEVER
        if self._device.type != "cuda":
            return Mark(time.perf_counter(), None)
        passed = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        passed.record(torch.cuda.current_stream(self._device))
        return Mark(time.perf_counter(), passed)

    def note(self, kind: Kind, name: str, begin: Mark, /, **details: str) -> None:
        """Something that began at a mark is over."""
        if self.is_on and begin is not _NEVER:
            self._noted.append(_Noted(kind, name, begin, self.mark(), details))

    def span(self, kind: Kind, name: str, /, **details: str) -> AbstractContextManager[None]:
        """Note what happens in a block, if somebody wants to know."""
        return self._span(kind, name, details) if self.is_on else _NOTHING

    @contextlib.contextmanager
    def _span(self, kind: Kind, name: str, details: dict[str, str]) -> Iterator[None]:
        begin = self.mark()
        try:
            yield
        finally:
            self.note(kind, name, begin, **details)

    def _on_device(self, begin: Mark, end: Mark) -> tuple[float, float] | None:
        """When the device came to two marks, by the host's clock."""
        if self._start.passed is None or begin.passed is None or end.passed is None:
            return None
        start = self._epoch + self._start.seconds
        return (
            start + self._start.passed.elapsed_time(begin.passed) / 1000,
            start + self._start.passed.elapsed_time(end.passed) / 1000,
        )


_NOTHING = contextlib.nullcontext()
