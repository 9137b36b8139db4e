"""What is looked at before anything is loaded: a command ends here where it could not end well."""

import json
from pathlib import Path
from typing import cast

from asyncdiff.commands.terminal import fail, refuse, warn
from asyncdiff.errors import AsyncDiffError
from asyncdiff.model_files import PICKLE_WARNING, check_model
from asyncdiff.plan.split import Split, check_split
from asyncdiff.writable import why_not_writable

# What a random generator can be set to.
_LEAST_SEED, _MOST_SEED = -(2**63), 2**64 - 1


def read_split(file: Path) -> Split:
    """The split in a JSON file; ends the command where there is none."""
    try:
        split = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        refuse(f"--split {file} cannot be read: {error}")
    except (ValueError, RecursionError) as error:
        refuse(f"--split {file} is no JSON: {error}")
    try:
        check_split(split)
    except AsyncDiffError as error:
        refuse(f"--split {file}: {error}")
    return cast(Split, split)


def check_weights(model: str, allow_pickle: bool) -> None:
    """End the command where a model's folder cannot be loaded; warn where its files may run code."""
    try:
        check_model(model, allow_pickle)
    except AsyncDiffError as error:
        refuse(f"--model: {error}.")
    if allow_pickle:
        warn(PICKLE_WARNING)


def check_out(option: str, out: Path) -> None:
    """End the command where a file cannot be written."""
    reason = why_not_writable(out)
    if reason is not None:
        refuse(f"{option} {reason}.")


def write_file(option: str, out: Path, text: str) -> None:
    """Write it; a disk may be full in spite of `check_out`."""
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        fail(f"{option} {out} could not be written: {error}")


def check_seed(option: str, seed: int) -> None:
    """End the command where no generator can be set to the seed."""
    if not _LEAST_SEED <= seed <= _MOST_SEED:
        refuse(f"{option} {seed}: a seed is from {_LEAST_SEED} to {_MOST_SEED}.")
