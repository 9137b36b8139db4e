"""The files that a command writes of what was made."""

from pathlib import Path

from asyncdiff.commands.checks import check_out
from asyncdiff.commands.terminal import fail, refuse, warn
from asyncdiff.errors import ConfigurationError
from asyncdiff.made.files import check_file, kind_of, usual, write_made
from asyncdiff.made.media import Made

_MOST_OF_A_GIF = 50  # frames a second; players show faster ones slowly


def check_made(out: Path | None, fps: int) -> None:
    """End the command where what is made cannot be written to a file of this name."""
    if out is None:
        check_out("--out", Path("out"))
        return
    if out.suffix.lower() == ".gif" and fps > _MOST_OF_A_GIF:
        refuse(f"--fps {fps}: a .gif has at most {_MOST_OF_A_GIF} frames a second; use .mp4.")
    try:
        check_file(out)
    except ConfigurationError as error:
        refuse(f"--out {out}: {error}.")
    check_out("--out", out)


def write_out(made: Made, out: Path | None, fps: int) -> list[Path]:
    """Write it under a name that suits it, whatever was asked for: it has been made. The files."""
    chosen = Path(f"out{usual(made.kind)}") if out is None else out
    if kind_of(chosen) != made.kind:
        warn(f"--out {chosen} is no file of a {made.kind}, which is what was made; its ending is {usual(made.kind)}.")
    try:
        return write_made(made, chosen, fps)
    except (OSError, ValueError) as error:
        fail(f"--out {chosen} could not be written: {error}")
