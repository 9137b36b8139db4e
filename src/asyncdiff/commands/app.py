"""The command line: the commands put together."""

import os
import sys

import typer

from asyncdiff.commands.evaluate import evaluate
from asyncdiff.commands.generate import generate
from asyncdiff.commands.inspect import inspect
from asyncdiff.commands.models import models
from asyncdiff.commands.plan import plan
from asyncdiff.commands.serve import serve
from asyncdiff.commands.terminal import EXIT_CODES, SIGNALLED

app = typer.Typer(
    name="asyncdiff",
    help="Asynchronous denoising for any diffusers pipeline: one picture, several devices. " + EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)
for _command in (generate, inspect, plan, models, evaluate, serve):
    app.command()(_command)


def main() -> None:
    """Entry point of the `asyncdiff` command."""
    try:
        app()
    except SystemExit as end:
        if not isinstance(end.code, int) or end.code <= SIGNALLED:
            raise
        # Interrupted: torch's launcher may still have threads, with which the interpreter sometimes aborts.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code)
