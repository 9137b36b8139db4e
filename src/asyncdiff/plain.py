"""Records as plain data (JSON), and back: what comes from another process is read without running anything in it."""

import base64
import dataclasses
import io
import json
from collections import Counter
from collections.abc import Mapping
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
from PIL import Image


def to_text(value: Any) -> str:
    """A record of dataclasses, tuples, lists, mappings, counters, enums, pictures, arrays and plain values, as JSON."""
    return json.dumps(_plain(value))


def from_text(kind: Any, text: str) -> Any:
    """The record of a known type that `to_text` has written.

    Raises:
        ValueError: the text is not that of such a record.
    """
    try:
        return _made(kind, json.loads(text))
    except (AttributeError, KeyError, OSError, TypeError) as error:
        raise ValueError(f"this is no {kind}: {error!r}") from error


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {own.name: _plain(getattr(value, own.name)) for own in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return [[_plain(key), _plain(held)] for key, held in value.items()]
    if isinstance(value, (tuple, list)):
        return [_plain(each) for each in value]
    if isinstance(value, Image.Image):
        written = io.BytesIO()
        value.save(written, "png")
        return base64.b64encode(written.getvalue()).decode("ascii")
    if isinstance(value, np.ndarray):
        written = io.BytesIO()
        np.save(written, value, allow_pickle=False)
        return base64.b64encode(written.getvalue()).decode("ascii")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} has no plain form")


def _made(kind: Any, data: Any) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if data is None and NoneType in inner:
            return None
        (kind,) = (each for each in inner if each is not NoneType)
        return _made(kind, data)
    if origin in (tuple, list):
        return origin(_made(inner[0], each) for each in data)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        keys, values = (inner[0], int) if origin is Counter else inner
        made = {_made(keys, key): _made(values, held) for key, held in data}
        return Counter(made) if origin is Counter else made
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        return kind(**{own.name: _made(hints[own.name], data[own.name]) for own in dataclasses.fields(kind)})
    if kind is Image.Image:
        picture = Image.open(io.BytesIO(base64.b64decode(data)), formats=["PNG"])
        picture.load()
        return picture
    if origin is np.ndarray:
        return np.lib.format.read_array(io.BytesIO(base64.b64decode(data)), allow_pickle=False)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(data)
    return _value(kind, data)


def _value(kind: Any, data: Any) -> Any:
    """A plain value of a type; a whole number may stand for a float."""
    if kind is float and isinstance(data, int):
        return float(data)
    if not isinstance(data, kind):
        raise TypeError(f"{data!r} is no {kind}")
    return data
