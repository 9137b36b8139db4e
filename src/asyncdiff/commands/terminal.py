"""What the commands share: options, where they print, and how they end."""

import contextlib
import signal
from collections.abc import Iterator
from enum import Enum
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from torch.distributed.elastic.multiprocessing import SignalException

from asyncdiff.launch import DEMO_MODELS, WorkerFailedError

WORKER_FAILED = 1
BAD_USAGE = 2

EXIT_CODES = "Exit codes: 0 fine, 1 a process failed, 2 bad usage, 130 interrupted."

stdout = Console()
stderr = Console(stderr=True)


class Dtype(str, Enum):
    """Number formats of the weights."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class MethodName(str, Enum):
    """How components make up for what they have not received yet."""

    PAPER = "paper"
    FORECAST = "forecast"


Model = Annotated[
    str,
    typer.Option(help=f"{' or '.join(DEMO_MODELS)} (both are part of this package), a hub id, or a pipeline's folder."),
]
Weights = Annotated[
    Dtype | None, typer.Option(help="Number format of the weights. [default: float32 on CPU, float16 on GPU]")
]
Warmup = Annotated[
    int,
    typer.Option(min=1, help="w: the first steps, computed as usual. More is closer to the sequential picture."),
]
Bridge = Annotated[
    int | None,
    typer.Option(
        min=1, help="k: of k steps after the warm-up one is computed, the others are forecast. Not exact. [default: 1]"
    ),
]
TargetSpeedup = Annotated[
    float | None,
    typer.Option(
        help="A modelled speed-up: of the steps after the warm-up as many are forecast as it takes. Not with --bridge."
    ),
]
MaxError = Annotated[
    float | None,
    typer.Option(
        help="The guard: compute more whenever forecasts are off by more than this, relative to their size; "
        "0.05 for instance."
    ),
]
Cooldown = Annotated[
    int | None,
    typer.Option(min=0, help="The last steps, computed as usual. [default: 2 with the method forecast, else 0]"),
]
ResyncEvery = Annotated[
    int | None, typer.Option(min=1, help="After the warm-up, compute every so manieth step as usual. [default: none]")
]
Method = Annotated[
    MethodName,
    typer.Option(
        help="What stands in for what other devices are still computing: what they made last (paper), or what the "
        "steps before let expect (forecast), which is much closer to the ordinary picture."
    ),
]
Steps = Annotated[int, typer.Option(min=1, help="Denoising steps.")]


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Turn what ends a run early into an exit code."""
    try:
        yield
    except SignalException as error:
        _interrupted(error.sigval)
    except KeyboardInterrupt:
        _interrupted(signal.SIGINT)
    except WorkerFailedError as error:
        if error.was_interrupted:
            _interrupted(signal.SIGINT)
        fail(str(error))


def fail(message: str) -> NoReturn:
    """End the command: something went wrong on the way."""
    stderr.show_cursor(True)
    stderr.print(f"[bold red]Error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(WORKER_FAILED)


def refuse(message: str) -> NoReturn:
    """End the command: what is asked for cannot be done."""
    stderr.print(f"[bold red]Error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(BAD_USAGE)


def _interrupted(by: signal.Signals) -> NoReturn:
    stderr.show_cursor(True)  # a worker that was drawing a bar had hidden it
    stderr.print(f"Interrupted ({by.name}); all processes have ended.", markup=False)
    raise typer.Exit(128 + by)
