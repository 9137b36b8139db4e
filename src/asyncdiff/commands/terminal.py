"""Where the commands print, and how they end."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from asyncdiff.endings import BAD_INPUT, RefusedError, SignalledError, WorkerFailedError

WORKER_FAILED = 1
BAD_USAGE = 2
SIGNALLED = 128  # and the signal's number

EXIT_CODES = "Exit codes: 0 fine, 1 a process failed, 2 bad usage, 130 interrupted."

stdout = Console()
stderr = Console(stderr=True)


@contextlib.contextmanager
def exit_codes(left: str = "all processes have ended", advice: str = "") -> Iterator[None]:
    """Turn what ends a run early into an exit code.

    Args:
        left: what is said of what was begun, where the run is interrupted.
        advice: what is said after a process's traceback.
    """
    try:
        yield
    except SignalledError as error:
        _interrupted(error.by, left)
    except KeyboardInterrupt:
        _interrupted(signal.SIGINT, left)
    except (*BAD_INPUT, RefusedError) as error:
        refuse(str(error))
    except WorkerFailedError as error:
        if error.was_interrupted:
            _interrupted(signal.SIGINT, left)
        fail("\n".join(filter(None, (str(error).rstrip(), advice))))


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end what runs as Ctrl-C does, by an error that is raised in it."""

    def end(number: int, frame: Any) -> None:
        raise SignalledError(signal.Signals(number))

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def fail(message: str) -> NoReturn:
    """End the command: something went wrong on the way."""
    stderr.show_cursor(True)
    stderr.print(f"[bold red]Error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(WORKER_FAILED)


def refuse(message: str) -> NoReturn:
    """End the command: what is asked for cannot be done."""
    stderr.print(f"[bold red]Error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(BAD_USAGE)


def warn(message: str) -> None:
    """Say what the user should know; the command goes on."""
    stderr.print(f"[bold yellow]Warning:[/] {escape(message)}", highlight=False, soft_wrap=True)


def _interrupted(by: signal.Signals, left: str) -> NoReturn:
    stderr.show_cursor(True)  # a worker that was drawing a bar had hidden it
    stderr.print(f"Interrupted ({by.name}); {left}.", markup=False)
    raise typer.Exit(SIGNALLED + by)
