"""The files that a command writes of what was made."""

from pathlib import Path

from asyncdiff.commands.checks import check_out
from asyncdiff.commands.terminal import fail, refuse, warn
from asyncdiff.errors import ConfigurationError
from asyncdiff.made.files import check_file, kind_of, usual, write_made
from asyncdiff.made.media import Made


def check_made(out: Path | None) -> None:
    """End the command where what is made cannot be written to a file of this name."""
    if out is None:
        check_out("--out", Path("out"))
        return
    try:
        check_file(out)
    except ConfigurationError as error:
        refuse(f"--out {out}: {error}.")
    check_out("--out", out)


def write_out(made: Made, out: Path | None, fps: int) -> list[Path]:
    """Write it under a name that suits it, whatever was asked for: it has been made. The files."""
    chosen = Path(f"out{usual(made.kind)}") if out is None else out
    if kind_of(chosen) != made.kind:
        warn(f"--out {chosen} is no file of a {made.kind}, which is what was made; another ending is used.")
    try:
        return write_made(made, chosen, fps)
    except (OSError, ValueError) as error:
        fail(f"--out {chosen} could not be written: {error}")
