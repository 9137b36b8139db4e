"""What pipelines take and make, as bytes and back: numbers, text, tensors, pictures, random generators.

Nothing in it is a pickle. Reading one makes objects of known kinds, and runs none of whoever wrote it.
"""

import dataclasses
import importlib
import io
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from asyncdiff.errors import ConfigurationError
from asyncdiff.plan.numbers import shown

if TYPE_CHECKING:
    import torch

# Records of these may be made anew where nobody has imported their module yet.
_LIBRARIES = ("asyncdiff", "diffusers", "transformers")
_LENGTH = 8  # bytes of the number that says how long the head is
# The numbers of these say all; others have a palette beside them.
_RAW_MODES = ("1", "L", "LA", "I", "I;16", "F", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")


def pack(value: Any) -> bytes:
    """A value as bytes.

    Raises:
        ConfigurationError: it holds something that is no data, a function for instance.
    """
    writer = Writer()
    head = json.dumps(
        {"value": writer.form("", value), "generators": writer.states, "sizes": [len(each) for each in writer.buffers]}
    ).encode()
    return b"".join([len(head).to_bytes(_LENGTH, "little"), head, *writer.buffers])


def unpack(parcel: bytes, device: "torch.device | None" = None) -> Any:
    """The value.

    Args:
        device: where tensors go, and generators that are not the CPU's; by default the CPU.
    """
    return Reader(parcel, device).read()


def generators_in(value: Any) -> "list[torch.Generator]":
    """The generators in a value, each once, in the order in which they are met."""
    writer = Writer()
    writer.form("", value)
    return writer.generators


class Writer:
    """Gives a value the form of JSON; what is long stands in buffers beside it."""

    def __init__(self) -> None:
        self.buffers: list[bytes | memoryview] = []
        self.generators: list[torch.Generator] = []
        self.states: list[Any] = []
        self._writers = (*_WRITERS, *(_of_torch().WRITERS if "torch" in sys.modules else ()))

    def form(self, name: str, value: Any) -> Any:
        """
        Args:
            name: what an error calls the value.
        """
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, (list, tuple)):
            kind = "list" if isinstance(value, list) else "tuple"
            return [kind, [self.form(f"{name}[{place}]", each) for place, each in enumerate(value)]]
        for kinds, write in self._writers:
            if isinstance(value, kinds):
                return write(self, name, value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            own = {each.name: getattr(value, each.name) for each in dataclasses.fields(value) if each.init}
            fields = [[each, self.form(f"{name}.{each}" if name else "", held)] for each, held in own.items()]
            return ["record", type(value).__module__, type(value).__qualname__, fields]
        if isinstance(value, Mapping):
            return ["mapping", [[self.form(name, key), self.form(_within(name, key), value[key])] for key in value]]
        kind = "a function" if callable(value) else f"of type {type(value).__name__}"
        raise ConfigurationError(
            f"{name or 'what is given'} is {kind} ({shown(value)}), which cannot be sent to another process; "
            "numbers, text, tensors, arrays, pictures, generators, and lists and dictionaries of them can"
        )

    def beside(self, data: bytes | memoryview) -> int:
        """The number of the buffer that now holds the data."""
        self.buffers.append(data)
        return len(self.buffers) - 1

    def array(self, name: str, value: Any) -> Any:
        held = np.ascontiguousarray(value)
        if held.dtype.hasobject:
            raise ConfigurationError(f"{name} is an array of objects, which cannot be sent to another process")
        is_number = not isinstance(value, np.ndarray)
        return ["array", held.dtype.str, [] if is_number else list(value.shape), is_number, self.beside(held.tobytes())]

    def picture(self, name: str, value: Image.Image) -> Any:
        del name
        if value.mode in _RAW_MODES:
            return ["picture", value.mode, list(value.size), self.beside(value.tobytes())]
        written = io.BytesIO()
        value.save(written, "png")
        return ["png", self.beside(written.getvalue())]

    def path(self, name: str, value: PurePath) -> Any:
        del name
        return str(value)

    def data(self, name: str, value: bytes) -> Any:
        del name
        return ["data", self.beside(value)]


_WRITERS: tuple[tuple[Any, Callable[[Writer, str, Any], Any]], ...] = (
    ((np.ndarray, np.generic), Writer.array),
    (Image.Image, Writer.picture),
    (PurePath, Writer.path),
    (bytes, Writer.data),
)


def _of_torch() -> Any:
    """The module for values that are torch's, which a process that never meets any has no need to import."""
    from asyncdiff.workers import tensors

    return tensors


def _within(name: str, key: Any) -> str:
    return f"{name}[{key!r}]" if name else str(key)


class Reader:
    """Makes a value of what a `Writer` has made.

    Args:
        device: where tensors go; None for the CPU.
    """

    def __init__(self, parcel: bytes, device: "torch.device | None") -> None:
        begin = _LENGTH + int.from_bytes(parcel[:_LENGTH], "little")
        head = json.loads(parcel[_LENGTH:begin])
        self._value = head["value"]
        self.device = device
        self.buffers: list[memoryview] = []
        for size in head["sizes"]:
            self.buffers.append(memoryview(parcel)[begin : begin + size])
            begin += size
        self.generators = [_of_torch().generator(self, *each) for each in head["generators"]]

    def read(self) -> Any:
        return self._made(self._value)

    def _made(self, form: Any) -> Any:
        if not isinstance(form, list):
            return form
        kind, *given = form
        read = _READERS.get(kind) or _of_torch().READERS[kind]
        return read(self, *given)

    def sequence(self, forms: Any) -> Any:
        return [self._made(form) for form in forms]

    def fixed(self, forms: Any) -> Any:
        return tuple(self._made(form) for form in forms)

    def mapping(self, forms: Any) -> Any:
        return {self._made(key): self._made(value) for key, value in forms}

    def array(self, dtype: str, shape: Any, is_number: bool, place: int) -> Any:
        made = np.frombuffer(bytearray(self.buffers[place]), np.dtype(dtype)).reshape(shape)
        return made[()] if is_number else made

    def picture(self, mode: str, size: Any, place: int) -> Any:
        return Image.frombytes(mode, tuple(size), self.buffers[place].tobytes())

    def png(self, place: int) -> Any:
        made = Image.open(io.BytesIO(self.buffers[place]), formats=["PNG"])
        made.load()
        return made

    def data(self, place: int) -> Any:
        return self.buffers[place].tobytes()

    def record(self, module: str, name: str, fields: Any) -> Any:
        if module.partition(".")[0] in _LIBRARIES:
            importlib.import_module(module)
        kind: Any = sys.modules.get(module)
        for part in name.split("."):
            kind = getattr(kind, part, None)
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            raise ConfigurationError(
                f"{module}.{name} comes from another process, and is not known here; import it, or ask for plain "
                "values with return_dict=False"
            )
        return kind(**{each: self._made(held) for each, held in fields})


_READERS: dict[str, Callable[..., Any]] = {
    "list": Reader.sequence,
    "tuple": Reader.fixed,
    "mapping": Reader.mapping,
    "array": Reader.array,
    "picture": Reader.picture,
    "png": Reader.png,
    "data": Reader.data,
    "record": Reader.record,
}
