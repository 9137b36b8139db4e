"""What is compared, as it is written and shown: settings in words, and the names of the metrics."""

from dataclasses import replace
from typing import Any

from asyncdiff.errors import ConfigurationError, SplitError
from asyncdiff.plan.method import Method
from asyncdiff.settings import Knob, Settings, in_options, knobs

METRIC_NAMES = ("lpips", "clip", "fid")
"""Of the measures of likeness that need torchmetrics and downloaded weights."""

_BOOLEANS = {"true": True, "false": False}

# Settings that say where a study is drawn, and not what of.
_NOT_COMPARED = {"split", "timeout"}


def compared() -> dict[str, Knob]:
    """The settings that a study can compare, by the names under which they are written."""
    return {knob.option: knob for knob in knobs() if knob.is_option and knob.name not in _NOT_COMPARED}


def devices_of(settings: Settings) -> int:
    """How many devices it takes.

    Raises:
        ConfigurationError: the number of components is not told.
    """
    if settings.told_components is None:
        raise ConfigurationError("a study has to be told how many components it compares")
    return settings.mesh(settings.told_components).world_size


def title_of(settings: Settings) -> str:
    """What tells settings from others, in a few letters."""
    method = settings.method if isinstance(settings.method, str) else _title_of_method(settings.method)
    divided = f"N={settings.told_components} S={settings.stride}"
    if settings.tokens is not None:
        divided = f"P={settings.tokens}" + f" N={settings.components}" * ((settings.components or 1) > 1)
    parts = [method, f"{divided} w={settings.warmup}"]
    if settings.bridge is not None and settings.bridge > 1:
        parts.append(f"bridge {settings.bridge}")
    for name in ("target_speedup", "max_error", "cooldown", "resync_every"):
        value = getattr(settings, name)
        parts += [] if value is None else [f"{name.replace('_', '-')} {value:g}"]
    if settings.guidance is not None and settings.guidance > 1:
        parts.append(f"guidance {settings.guidance}")
    parts += ["fresh"] * settings.has_fresh_keys + ["time-shift"] * settings.time_shift
    return " ".join(parts)


def _title_of_method(method: Method) -> str:
    return method.forecast if method.bits is None else f"{method.forecast} {method.bits} bits"


def parse_settings(text: str, base: Settings) -> Settings:
    """Settings written as "components=3,method=paper": what is not named is as in `base`.

    Raises:
        ConfigurationError: no such name, a name given twice, or a value that cannot be.
    """
    known = compared()
    changes: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        knob = known.get(key.replace("_", "-"))
        if not equals or knob is None:
            raise ConfigurationError(f"{part.strip()!r} is no NAME=VALUE with a NAME among {', '.join(known)}")
        if knob.name in changes:
            raise ConfigurationError(f"{key} is given twice")
        changes[knob.name] = _value_of(knob, key, value)
    try:
        return replace(base, **changes)
    except (ConfigurationError, SplitError) as error:
        raise ConfigurationError(in_options(str(error))) from error


def _value_of(knob: Knob, key: str, value: str) -> Any:
    """The value of one setting, from how it is written."""
    if knob.default is None and value.lower() == "none":
        return None
    if bool in knob.kinds:
        if value.lower() not in _BOOLEANS:
            raise ConfigurationError(f"{key} must be true or false, not {value!r}")
        return _BOOLEANS[value.lower()]
    if int in knob.kinds:
        if not value.isdecimal():
            raise ConfigurationError(f"{key} must be a whole number, not {value!r}")
        return int(value)
    if float in knob.kinds:
        try:
            return float(value)
        except ValueError as error:
            raise ConfigurationError(f"{key} must be a number, not {value!r}") from error
    return value
