"""What is written as JSON in a node's field of text."""

import json
from typing import Any

from .errors import InputError


def read_split(text: str) -> list[Any]:
    """Lists of module names; what is in them is for the service to judge.

    Raises:
        InputError: they are none. So in those below.
    """
    split = _read(text)
    if not isinstance(split, list):
        raise InputError(
            f'split must be lists of module names, as [["down_blocks", "mid_block"], ["up_blocks"]], not {text!r}'
        )
    return split


def read_arguments(text: str) -> dict[str, Any]:
    """Further arguments of the pipeline; none where nothing is written."""
    arguments = _read(text) if text.strip() else {}
    if not isinstance(arguments, dict):
        raise InputError(f'arguments must be names and values, as {{"strength": 0.6}}, not {text!r}')
    return arguments


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
