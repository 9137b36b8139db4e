"""A clock for denoiser calls, and counters of what they start. All times are in milliseconds."""

import gc
import itertools
import math
import statistics
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode


class Kind(Enum):
    """What a call is for."""

    FIRST = "first"  # the very first of a generation
    SKIPPED = "skipped"  # not looked at
    FULL = "full"  # an ordinary call of an attached denoiser
    STEADY = "steady"  # one after the other, as in a generation
    ALONE = "alone"  # the device is idle before it, so that the host cannot be held up by earlier work
    OPERATORS = "operators"  # its operators are counted
    KERNELS = "kernels"  # its kernels are counted


HOST_BINDS_FROM = 0.95  # of a call's time spent on the host

_NO_WORK = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"})


@dataclass(frozen=True)
class Lap:
    """One timed call: places on the device's time line, and how long the host was busy with it."""

    begin: Any
    components_done: Any
    end: Any
    host: float


@dataclass(frozen=True)
class Timing:
    """What calls cost.

    Attributes:
        device: a call's time from end to end, in a row of calls; of a round, with the denoiser's last layers.
        end: the part of it after the components are done: the denoiser's last layers.
        host: how long the host took to start all of it.
        first, full: the first call's time, and that of ordinary calls of an attached denoiser.
        operators: tensor operators started that are no views.
        kernels: on the device; None where not counted.
        binds: "host" or "device": what the call's time is made of; None on a CPU.
        peak_bytes: the most memory taken in the generation, weights included; None on a CPU.
        repeats: how many calls `device` is the median of.
    """

    device: float
    end: float
    host: float
    first: float
    full: float
    operators: int | None
    kernels: int | None
    binds: str | None
    peak_bytes: int | None
    repeats: int


class Stopwatch:
    """Times the calls of one generation, each by its kind."""

    def __init__(self, device: torch.device, plan: Sequence[Kind]) -> None:
        self._device = device
        self._plan = plan
        self._laps: dict[Kind, list[Lap]] = {}
        self._components_done: Any = None
        self._operators: int | None = None
        self._kernels: int | None = None
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)

    def __call__(self, index: int, call: Callable[[], Any]) -> Any:
        """Make the call of a step."""
        kind = self._plan[index]
        if kind in (Kind.FIRST, Kind.ALONE):
            _synchronize(self._device)
        if kind is Kind.OPERATORS:
            with OperatorCounter() as counter:
                result = call()
            self._operators = counter.count
            return result
        if kind is Kind.KERNELS:
            return self._count_kernels(call)
        self._components_done = None
        begin, begin_of_host = _now(self._device), time.perf_counter()
        result = call()
        host = 1000 * (time.perf_counter() - begin_of_host)
        end = _now(self._device)
        self._laps.setdefault(kind, []).append(Lap(begin, self._components_done or end, end, host))
        return result

    def components_done(self) -> None:
        """The component of a round has run; what follows are the denoiser's last layers."""
        self._components_done = _now(self._device)

    def timing(self) -> Timing:
        """The medians."""
        _synchronize(self._device)
        device = _median(_between(self._device, lap.begin, lap.end) for lap in self._of(Kind.STEADY))
        host = _median(lap.host for lap in self._of(Kind.ALONE))
        is_gpu = self._device.type == "cuda"
        return Timing(
            device=device,
            end=_median(_between(self._device, lap.components_done, lap.end) for lap in self._of(Kind.STEADY)),
            host=host,
            first=_median(_between(self._device, lap.begin, lap.end) for lap in self._of(Kind.FIRST)),
            full=_median(_between(self._device, lap.begin, lap.end) for lap in self._of(Kind.FULL)),
            operators=self._operators,
            kernels=self._kernels,
            binds=("host" if host >= HOST_BINDS_FROM * device else "device") if is_gpu else None,
            peak_bytes=torch.cuda.max_memory_allocated(self._device) if is_gpu else None,
            repeats=len(self._of(Kind.STEADY)),
        )

    def _of(self, kind: Kind) -> list[Lap]:
        return self._laps.get(kind, [])

    def _count_kernels(self, call: Callable[[], Any]) -> Any:
        if self._device.type != "cuda":
            return call()
        _synchronize(self._device)
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            result = call()
            _synchronize(self._device)
        self._kernels = sum(
            event.device_type == DeviceType.CUDA and not event.name.startswith(("Memcpy", "Memset"))
            for event in seen.events() or ()
        )
        return result


class Marks:
    """Times at which something was done, on the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []

    def set(self) -> None:
        """Now."""
        self._marks.append(_now(self._device))

    def between(self, count: int) -> list[float]:
        """Milliseconds from one to the next, of the last so many."""
        _synchronize(self._device)
        return [_between(self._device, *pair) for pair in itertools.pairwise(self._marks[-count:])]


class OperatorCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators that compute something."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func.overloadpacket.__name__ not in _NO_WORK:
            self.count += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def failures_noted(note: Callable[[str], None]) -> Iterator[None]:
    """Go on after a failure; what it was is noted."""
    try:
        yield
        return
    except Exception as error:  # noqa: BLE001  (the other measurements are worth having)
        lines = str(error).strip().splitlines() or [""]
        places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
        text = f"{type(error).__name__}: {' | '.join(lines[:3])[:400]} ({' '.join(places[-4:])})"
    note(text)
    gc.collect()
    torch.cuda.empty_cache()


def _median(numbers: Iterable[float]) -> float:
    """Not a number if there are none."""
    found = list(numbers)
    return statistics.median(found) if found else math.nan


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _now(device: torch.device) -> Any:
    """A time on the device."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _between(device: torch.device, begin: Any, end: Any) -> float:
    """Milliseconds."""
    return float(begin.elapsed_time(end)) if device.type == "cuda" else 1000 * float(end - begin)
