"""Amounts of memory as people write them. Pure."""

import math
import re

from asyncdiff.errors import ConfigurationError
from asyncdiff.plan.numbers import shown

_UNITS = {"": 1.0, "B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_UNITS |= {"KIB": 2.0**10, "MIB": 2.0**20, "GIB": 2.0**30, "TIB": 2.0**40}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([A-Za-z]*)\s*")


def read_bytes(name: str, text: str) -> float:
    """Bytes, from what is written as 24GB (10⁹ bytes each) or 24GiB (2³⁰).

    Args:
        name: what is written so, for the error.

    Raises:
        ConfigurationError: it is no such amount, or none above 0.
    """
    found = _AMOUNT.fullmatch(text)
    unit = _UNITS.get(found.group(2).upper()) if found else None
    amount = float(found.group(1)) * unit if found and unit else 0.0
    if not 0 < amount < math.inf:
        raise ConfigurationError(
            f"{name} must be an amount above 0 with its unit, 24GB or 24GiB say, not {shown(text)}"
        )
    return amount


def written_bytes(amount: float) -> str:
    """Bytes with three digits and a unit: 1.50 GiB, 26.8 MiB."""
    for unit, size in (("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10)):
        if abs(amount) >= size:
            count = amount / size
            return f"{count:.{2 if abs(count) < 10 else 1 if abs(count) < 100 else 0}f} {unit}"
    return f"{amount:.0f} B"
