"""What happens in a stretch of a run: on this rank as data, on all ranks as one file."""

import contextlib
import functools
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from asyncdiff.call import Call
from asyncdiff.chrome_trace import rank_text, whole_text
from asyncdiff.errors import AsyncDiffError, ConfigurationError
from asyncdiff.events import Events, Mark
from asyncdiff.exchange.world import World
from asyncdiff.happening import Event, Kind
from asyncdiff.hooks import intercept_method
from asyncdiff.runtime.clock import find_schedulers
from asyncdiff.writable import why_not_writable

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def noting(pipe: Any, denoisers: Collection[nn.Module], world: World) -> Iterator[list[Event]]:
    """See `AsyncDiff.noted`."""
    events, noted = world.events, list[Event]()
    if events.is_on:
        raise ConfigurationError("this run is being traced already; leave the first trace() before the next")
    undo = list(_noted_parts(pipe, denoisers, events))
    events.start()
    try:
        yield noted
    finally:
        noted += events.stop()
        for put_back in reversed(undo):
            put_back()


@contextlib.contextmanager
def tracing(pipe: Any, denoisers: Collection[nn.Module], world: World, path: Path) -> Iterator[None]:
    """See `AsyncDiff.trace`."""
    reason = why_not_writable(path)
    if reason is not None:
        raise ConfigurationError(f"no trace can be written: {reason}")
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(noting(pipe, denoisers, world))
        try:
            yield
        except BaseException:
            stack.close()
            _write_own(path, world, own)
            raise
    try:
        texts = world.gather_texts(rank_text(world.rank, own), "what happened")
    except AsyncDiffError as error:
        written = _write_own(path, world, own)
        logger.warning("%s has what happened on this rank alone: %s", written, error)
        return
    if not world.rank:
        path.write_text(whole_text(texts))


def _write_own(path: Path, world: World, events: Sequence[Event]) -> Path:
    """Write what happened on this rank, beside where that of all would have gone."""
    own = path if world.rank is None else path.with_name(f"{path.stem}.rank{world.rank}{path.suffix}")
    own.write_text(whole_text([rank_text(world.rank, events)]))
    return own


def _noted_parts(pipe: Any, denoisers: Collection[nn.Module], events: Events) -> Iterator[Callable[[], None]]:
    """Note calls of the pipeline's other parts, and the schedulers' steps; gives how to undo each."""
    divided = {id(module) for denoiser in denoisers for module in denoiser.modules()}
    for name, part in pipe.components.items():
        if not isinstance(part, nn.Module) or any(id(module) in divided for module in part.modules()):
            continue
        yield from _noted_calls(name, part, events)
        for method in ("encode", "decode"):
            if hasattr(part, method):
                yield intercept_method(part, method, functools.partial(_noted, events, f"{name}.{method}"))
    for scheduler in find_schedulers(pipe).values():
        yield intercept_method(scheduler, "step", functools.partial(_noted, events, "scheduler.step"))


def _noted_calls(name: str, part: nn.Module, events: Events) -> Iterator[Callable[[], None]]:
    begun: list[Mark] = []

    def begin(*_: Any) -> None:
        begun.append(events.mark())

    def end(*_: Any) -> None:
        events.note(Kind.PART, name, begun.pop())

    yield part.register_forward_pre_hook(begin, prepend=True).remove
    yield part.register_forward_hook(end, always_call=True).remove


def _noted(events: Events, name: str, call: Call) -> Any:
    with events.span(Kind.PART, name):
        return call()
