"""The check that every number which counts something must pass. Pure."""

from typing import Any

from asyncdiff.errors import ConfigurationError


def check_whole_number(name: str, value: Any, least: int) -> None:
    """Refuse what is no whole number, or a smaller one.

    Raises:
        ConfigurationError: it is not at least `least`.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigurationError(f"{name} must be a whole number of at least {least}, not {value!r}")
