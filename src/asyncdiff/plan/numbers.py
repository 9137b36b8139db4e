"""The checks that numbers must pass. Pure."""

import math
from numbers import Integral, Real
from typing import Any

from asyncdiff.errors import ConfigurationError

_LONGEST = 60  # characters of a value in an error


def check_whole_number(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Refuse what is no whole number, or out of bounds; returns it as Python's own, whichever library's it is.

    Raises:
        ConfigurationError: it is not at least `least`, or greater than `most`.
    """
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or value < least:
        raise ConfigurationError(f"{name} must be a whole number of at least {least}, not {shown(value)}")
    if most is not None and value > most:
        raise ConfigurationError(f"{name} must be a whole number of at most {most}, not {shown(value)}")
    return int(value)


def check_number(name: str, value: Any, above: float, most: float | None = None) -> float:
    """Refuse what is no finite number, or out of bounds; returns it as Python's own, whichever library's it is.

    Raises:
        ConfigurationError: it is not above `above`, greater than `most`, or infinite.
    """
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not number > above:
        raise ConfigurationError(f"{name} must be a number above {above:g}, not {shown(value)}")
    if math.isinf(number):
        raise ConfigurationError(f"{name} must be a finite number, not {shown(value)}")
    if most is not None and number > most:
        raise ConfigurationError(f"{name} must be a number of at most {most:g}, not {shown(value)}")
    return number


def shown(value: Any) -> str:
    """A value as it is written, in one line that is not too long."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python refuses to write whole numbers of thousands of digits
        return "one of thousands of digits"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
