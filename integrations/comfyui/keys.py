"""The key that a service asks for: out of the environment of ComfyUI's process, never out of a workflow.

A key belongs to an address. A workflow that somebody else has made may name any address; it gets no key that was not
meant for it.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from .address import Address
from .errors import InputError

ADDRESS = "ASYNCDIFF_ADDRESS"
KEY = "ASYNCDIFF_API_KEY"
FILE = "ASYNCDIFF_KEYS_FILE"
_LOCAL = "http://127.0.0.1:8000"


def usual_address(environment: Mapping[str, str] = os.environ) -> str:
    """Where the service is, if a workflow does not say."""
    return environment.get(ADDRESS) or _LOCAL


def key_for(address: Address, environment: Mapping[str, str] = os.environ) -> str | None:
    """The key of the service at this address, if there is one for it.

    Raises:
        InputError: the environment, or the file that it names, is not as it should be.
    """
    return next((_checked(key, where) for own, key, where in _keys(environment) if own == address), None)


def advice(address: Address) -> str:
    """What to do where there is no key, or a wrong one."""
    return (
        f"set {ADDRESS}={address} and {KEY}, or {FILE} to a file with the line '{address} KEY', before ComfyUI is "
        "started"
    )


def _keys(environment: Mapping[str, str]) -> Iterator[tuple[Address, str, str]]:
    if environment.get(KEY):
        yield Address.of(usual_address(environment)), environment[KEY].strip(), KEY
    if environment.get(FILE):
        yield from _in_file(Path(environment[FILE]).expanduser())


def _in_file(file: Path) -> Iterator[tuple[Address, str, str]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the file that {FILE} names cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        words, where = line.split(), f"line {number} of {file}"
        if words and len(words) != 2:
            raise InputError(f"{where} must have an address and its key, with a space between them")
        if words:
            yield Address.of(words[0]), words[1], where


def _checked(key: str, where: str) -> str:
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(f"the key in {where} must have letters, digits and signs of ASCII alone, and no space")
    return key
