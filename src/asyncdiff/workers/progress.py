"""How far a generation is: told by the process of rank 0, shown where the pipeline was called."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

from asyncdiff.workers.kinds import Kinds

# What tqdm is to write for `Telling`: how much is done, of how much.
_FORMAT = "{n}/{total}"


@dataclass(frozen=True)
class Bar:
    """How far a progress bar of the pipeline is.

    Attributes:
        number: which of the bars of a call it is.
        done, total: steps; none in all where that is not known.
        kinds: of the steps that are done: "full", "round", "bridged"; None where a step called no denoiser.
    """

    number: int
    done: int
    total: int | None
    kinds: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class Step:
    """A step is over, as `callback_on_step_end` is told.

    Attributes:
        index: of the step.
        timestep: that of the scheduler.
        tensors: those that were asked for with `callback_on_step_end_tensor_inputs`.
    """

    index: int
    timestep: Any
    tensors: Mapping[str, Any]


@dataclass(frozen=True)
class News:
    """What has happened since it was asked for before."""

    bars: tuple[Bar, ...] = ()
    steps: tuple[Step, ...] = ()


class Events:
    """What happened in a generation and was not told yet; for two threads."""

    def __init__(self) -> None:
        self._bars: dict[int, Bar] = {}
        self._steps: list[Step] = []
        self._changed = threading.Condition()
        self._is_over = True

    def begin(self) -> None:
        """A call of the pipeline begins."""
        with self._changed:
            self._is_over = False
            self._bars, self._steps = {}, []

    def end(self) -> News:
        """It is over: what is left to tell."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
            return self._take()

    def add_bar(self, bar: Bar) -> None:
        with self._changed:
            self._bars[bar.number] = bar
            self._changed.notify_all()

    def add_step(self, step: Step) -> None:
        with self._changed:
            self._steps.append(step)
            self._changed.notify_all()

    def wait(self, seconds: float) -> News:
        """What there is to tell, as soon as there is something, or the call is over, or the time is."""
        with self._changed:
            self._changed.wait_for(lambda: self._bars or self._steps or self._is_over, seconds)
            return self._take()

    def _take(self) -> News:
        news = News(tuple(self._bars.values()), tuple(self._steps))
        self._bars, self._steps = {}, []
        return news


class Telling:
    """A stream on which a pipeline's bars are written, which makes events of them.

    Args:
        events: where they go.
        kinds: of the steps that are over.
    """

    def __init__(self, events: Events, kinds: Kinds) -> None:
        self._events = events
        self._kinds = kinds
        self._number = 0
        self._known: list[str | None] = []

    def config(self) -> dict[str, Any]:
        """For `set_progress_bar_config` of the pipeline. Every step is written, so that each one's kind is seen."""
        return {"file": self, "bar_format": _FORMAT, "disable": False, "mininterval": 0, "miniters": 1}

    def begin(self) -> None:
        """A call of the pipeline begins."""
        self._number, self._known = 0, []
        self._kinds.begin()

    def write(self, text: str) -> int:
        done, slash, total = text.strip().partition("/")
        if slash and done.isdecimal():
            self._known += self._kinds.of_steps(int(done) - len(self._known))
            known = tuple(self._known)
            self._events.add_bar(Bar(self._number, int(done), int(total) if total.isdecimal() else None, known))
        if text.endswith("\n"):  # what tqdm writes when a bar is closed
            self._number, self._known = self._number + 1, []
        return len(text)

    def flush(self) -> None:
        return None


class Shown:
    """The bars of one call, shown as diffusers shows them.

    Args:
        config: of `set_progress_bar_config`.
        on_step: told of every step.
        on_bar: told how far each bar is.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        on_step: Callable[[Step], None] | None,
        on_bar: Callable[[Bar], None] | None = None,
    ) -> None:
        self._config = config
        self._on_step = on_step
        self._on_bar = on_bar
        self._bars: dict[int, Any] = {}

    def __enter__(self) -> "Shown":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for bar in self._bars.values():
            bar.close()

    def show(self, news: News) -> None:
        """Show what has happened."""
        for bar in news.bars:
            if bar.number not in self._bars:
                self._bars[bar.number] = tqdm(total=bar.total, **self._config)
            shown = self._bars[bar.number]
            shown.update(bar.done - shown.n)
            if self._on_bar is not None:
                self._on_bar(bar)
        for step in news.steps:
            if self._on_step is not None:
                self._on_step(step)
