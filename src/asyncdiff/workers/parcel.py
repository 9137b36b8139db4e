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
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from asyncdiff.errors import ConfigurationError
from asyncdiff.plan.numbers import shown

# Records of these may be made anew where nobody has imported their module yet.
_LIBRARIES = ("asyncdiff", "diffusers", "transformers")
_LENGTH = 8  # bytes of the number that says how long the head is
# The numbers of these say all; others have a palette beside them.
_RAW_MODES = ("1", "L", "LA", "I", "I;16", "F", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
_CPU = torch.device("cpu")


def pack(value: Any) -> bytes:
    """A value as bytes.

    Raises:
        ConfigurationError: it holds something that is no data, a function for instance.
    """
    writer = _Writer()
    head = json.dumps(
        {"value": writer.form("", value), "generators": writer.states, "sizes": [len(each) for each in writer.buffers]}
    ).encode()
    return b"".join([len(head).to_bytes(_LENGTH, "little"), head, *writer.buffers])


def unpack(parcel: bytes, device: torch.device = _CPU) -> Any:
    """The value.

    Args:
        device: where tensors go, and generators that are not the CPU's.
    """
    return _Reader(parcel, device).read()


def generators_in(value: Any) -> list[torch.Generator]:
    """The generators in a value, each once, in the order in which they are met."""
    writer = _Writer()
    writer.form("", value)
    return writer.generators


class _Writer:
    """Gives a value the form of JSON; what is long stands in buffers beside it."""

    def __init__(self) -> None:
        self.buffers: list[bytes | memoryview] = []
        self.generators: list[torch.Generator] = []
        self.states: list[Any] = []

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
        for kinds, write in _WRITERS:
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

    def tensor(self, name: str, value: Tensor) -> Any:
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise ConfigurationError(f"{name} is a tensor without plain numbers ({value.layout}, {value.device})")
        held = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        numbers = held.view(-1).view(torch.uint8).numpy() if held.numel() else np.empty(0, np.uint8)
        return ["tensor", str(held.dtype).removeprefix("torch."), list(held.shape), self.beside(numbers.data)]

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

    def generator(self, name: str, value: torch.Generator) -> Any:
        places = [place for place, known in enumerate(self.generators) if known is value]
        if not places:
            self.generators.append(value)
            self.states.append([value.device.type, self.tensor(name, value.get_state())])
        return ["generator", places[0] if places else len(self.generators) - 1]

    def dtype(self, name: str, value: torch.dtype) -> Any:
        del name
        return ["dtype", str(value).removeprefix("torch.")]

    def device(self, name: str, value: torch.device) -> Any:
        del name
        return ["device", str(value)]

    def path(self, name: str, value: PurePath) -> Any:
        del name
        return str(value)

    def data(self, name: str, value: bytes) -> Any:
        del name
        return ["data", self.beside(value)]


_WRITERS: tuple[tuple[Any, Callable[[_Writer, str, Any], Any]], ...] = (
    (Tensor, _Writer.tensor),
    ((np.ndarray, np.generic), _Writer.array),
    (Image.Image, _Writer.picture),
    (torch.Generator, _Writer.generator),
    (torch.dtype, _Writer.dtype),
    (torch.device, _Writer.device),
    (PurePath, _Writer.path),
    (bytes, _Writer.data),
)


def _within(name: str, key: Any) -> str:
    return f"{name}[{key!r}]" if name else str(key)


class _Reader:
    def __init__(self, parcel: bytes, device: torch.device) -> None:
        begin = _LENGTH + int.from_bytes(parcel[:_LENGTH], "little")
        head = json.loads(parcel[_LENGTH:begin])
        self._value = head["value"]
        self._device = device
        self._buffers: list[memoryview] = []
        for size in head["sizes"]:
            self._buffers.append(memoryview(parcel)[begin : begin + size])
            begin += size
        self._generators = [self._generator(*each) for each in head["generators"]]

    def read(self) -> Any:
        return self._made(self._value)

    def _made(self, form: Any) -> Any:
        if not isinstance(form, list):
            return form
        kind, *given = form
        return _READERS[kind](self, *given)

    def sequence(self, forms: Any) -> Any:
        return [self._made(form) for form in forms]

    def fixed(self, forms: Any) -> Any:
        return tuple(self._made(form) for form in forms)

    def mapping(self, forms: Any) -> Any:
        return {self._made(key): self._made(value) for key, value in forms}

    def tensor(self, dtype: str, shape: Any, place: int) -> Any:
        return self._numbers(dtype, shape, place).to(self._device)

    def array(self, dtype: str, shape: Any, is_number: bool, place: int) -> Any:
        made = np.frombuffer(bytearray(self._buffers[place]), np.dtype(dtype)).reshape(shape)
        return made[()] if is_number else made

    def picture(self, mode: str, size: Any, place: int) -> Any:
        return Image.frombytes(mode, tuple(size), self._buffers[place].tobytes())

    def png(self, place: int) -> Any:
        made = Image.open(io.BytesIO(self._buffers[place]), formats=["PNG"])
        made.load()
        return made

    def generator(self, place: int) -> Any:
        return self._generators[place]

    def dtype(self, name: str) -> Any:
        return getattr(torch, name)

    def device(self, name: str) -> Any:
        return torch.device(name)

    def data(self, place: int) -> Any:
        return self._buffers[place].tobytes()

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

    def _numbers(self, dtype: str, shape: Any, place: int) -> Tensor:
        kind, data = getattr(torch, dtype), bytearray(self._buffers[place])
        return (torch.frombuffer(data, dtype=kind) if data else torch.empty(0, dtype=kind)).reshape(shape)

    def _generator(self, device: str, state: Any) -> torch.Generator:
        _, dtype, shape, place = state
        if device not in ("cpu", self._device.type):
            raise ConfigurationError(
                f"a generator of {device} is given, but the denoiser runs on {self._device.type}; "
                "use torch.Generator(), which all devices can draw from"
            )
        made = torch.Generator(_CPU if device == "cpu" else self._device)
        made.set_state(self._numbers(dtype, shape, place))
        return made


_READERS: dict[str, Callable[..., Any]] = {
    "list": _Reader.sequence,
    "tuple": _Reader.fixed,
    "mapping": _Reader.mapping,
    "tensor": _Reader.tensor,
    "array": _Reader.array,
    "picture": _Reader.picture,
    "png": _Reader.png,
    "generator": _Reader.generator,
    "dtype": _Reader.dtype,
    "device": _Reader.device,
    "data": _Reader.data,
    "record": _Reader.record,
}
