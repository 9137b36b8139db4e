"""What a process says when a task is done: the result, or the error, and what its log would have said."""

import builtins
import contextlib
import logging
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from asyncdiff import errors
from asyncdiff.errors import ExchangeError, ProcessError, StoppedError

# Whose warnings are for the user.
_LOGS = ("asyncdiff", "diffusers")
# What ranks come to because another one has failed; the second, because it has said so.
_CONSEQUENCES = {ExchangeError.__name__: 1, StoppedError.__name__: 2}


@dataclass(frozen=True)
class Failure:
    """An error that another process raised.

    Attributes:
        rank: of that process.
        kind: the name of the error's class.
        text: what it says.
        trace: where it was raised.
    """

    rank: int
    kind: str
    text: str
    trace: str


@dataclass(frozen=True)
class Remark:
    """What a process would have written into its log."""

    log: str
    level: int
    text: str


@dataclass(frozen=True)
class Answer:
    """What a process has to say of a task."""

    result: Any = None
    failure: Failure | None = None
    remarks: tuple[Remark, ...] = ()


def failure_of(rank: int, error: BaseException) -> Failure:
    """An error as data."""
    (text,) = error.args if len(error.args) == 1 and isinstance(error.args[0], str) else (str(error),)
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return Failure(rank, type(error).__name__, text, trace)


def first_failure(failures: Sequence[Failure]) -> Failure:
    """The one that is the reason of the others: ranks that wait for one that has failed, fail too."""
    return min(failures, key=lambda failure: _CONSEQUENCES.get(failure.kind, 0))


def raise_failure(failure: Failure) -> NoReturn:
    """Raise the error as it was raised in the other process, whose traceback is its cause."""
    cause = ProcessError(f"on rank {failure.rank}:\n{failure.trace}")
    raise _error(failure) from cause


def _error(failure: Failure) -> Exception:
    known = getattr(errors, failure.kind, None) or getattr(builtins, failure.kind, None)
    if failure.kind == "OutOfMemoryError":
        import torch

        known = torch.OutOfMemoryError
    if isinstance(known, type) and issubclass(known, Exception):
        with contextlib.suppress(TypeError):  # some classes want more than a sentence
            return known(failure.text)
    return ProcessError(f"rank {failure.rank}: {failure.kind}: {failure.text}")


@contextlib.contextmanager
def remarks() -> Iterator[list[Remark]]:
    """Collect what is logged meanwhile that a user should know."""
    listener = _Listener()
    logs = [logging.getLogger(name) for name in _LOGS]
    for log in logs:
        log.addHandler(listener)
    try:
        yield listener.heard
    finally:
        for log in logs:
            log.removeHandler(listener)


def repeat(heard: Sequence[Remark]) -> None:
    """Log here what was logged in another process."""
    for remark in heard:
        logging.getLogger(remark.log).log(remark.level, "%s", remark.text)


class _Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[Remark] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(Remark(record.name, record.levelno, record.getMessage()))
