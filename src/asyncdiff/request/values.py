"""Values of a pipeline's own arguments that are written as text: `--set name=value`."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from asyncdiff.errors import ConfigurationError
from asyncdiff.plan.numbers import shown
from asyncdiff.request.files import read_value
from asyncdiff.request.signature import OTHER, Signature

_CALLED = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "an object",
    OTHER: "what @FILE holds",
}


def read_arguments(written: Sequence[str]) -> dict[str, str]:
    """Names and values of "name=value".

    Raises:
        ConfigurationError: it is not written so, or a name is given twice.
    """
    found: dict[str, str] = {}
    for text in written:
        name, equals, value = text.partition("=")
        if not equals or not name.strip().isidentifier():
            raise ConfigurationError(f"{text!r} is not written NAME=VALUE")
        if name.strip() in found:
            raise ConfigurationError(f"{name.strip()!r} is given twice")
        found[name.strip()] = value
    return found


def read_values(written: Mapping[str, str], signature: Signature | None) -> dict[str, Any]:
    """The values, of the types that the pipeline's annotations say.

    Args:
        signature: of the pipeline's call, if it is known.

    Raises:
        ConfigurationError: a file that cannot be read, or a value of another type.
    """
    return {
        name: _value(name, text, signature.kinds.get(name, ()) if signature else ()) for name, text in written.items()
    }


def check_kind(name: str, value: Any, kinds: Sequence[str]) -> Any:
    """The value, as one of these types; none of them means any.

    Raises:
        ConfigurationError: it is of another.
    """
    kind = type(value).__name__
    if isinstance(value, list) and "tuple" in kinds and "list" not in kinds:
        return tuple(value)  # JSON has no other
    if value is None or not kinds or kind in kinds or (kind == "int" and "float" in kinds):
        return value
    if OTHER in kinds and kind not in ("str", "bool", "int", "float"):
        return value
    wanted = dict.fromkeys(_CALLED[each] for each in kinds)
    raise ConfigurationError(f"{name} must be {' or '.join(wanted)}, not {shown(value)}")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def _value(name: str, text: str, kinds: Sequence[str]) -> Any:
    if text.startswith("@"):
        return read_value(name, Path(text[1:]))
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        value = text
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigurationError(f"{name} must be a finite number, not {text}")
    if isinstance(value, (bool, int, float)) and "str" in kinds and type(value).__name__ not in kinds:
        value = text  # a prompt that is a number
    return check_kind(name, value, kinds)
