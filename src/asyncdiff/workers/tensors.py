"""The part of parcels that is torch's: tensors, random generators, number formats, devices."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asyncdiff.errors import ConfigurationError
from asyncdiff.workers.parcel import Reader, Writer

_CPU = torch.device("cpu")


def _tensor_form(writer: Writer, name: str, value: Tensor) -> Any:
    if value.layout is not torch.strided or value.is_quantized or value.is_meta:
        raise ConfigurationError(f"{name} is a tensor without plain numbers ({value.layout}, {value.device})")
    held = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
    numbers = held.view(-1).view(torch.uint8).numpy() if held.numel() else np.empty(0, np.uint8)
    return ["tensor", str(held.dtype).removeprefix("torch."), list(held.shape), writer.beside(numbers.data)]


def _generator_form(writer: Writer, name: str, value: torch.Generator) -> Any:
    places = [place for place, known in enumerate(writer.generators) if known is value]
    if not places:
        writer.generators.append(value)
        writer.states.append([value.device.type, _tensor_form(writer, name, value.get_state())])
    return ["generator", places[0] if places else len(writer.generators) - 1]


def _dtype_form(writer: Writer, name: str, value: torch.dtype) -> Any:
    del writer, name
    return ["dtype", str(value).removeprefix("torch.")]


def _device_form(writer: Writer, name: str, value: torch.device) -> Any:
    del writer, name
    return ["device", str(value)]


WRITERS: tuple[tuple[type, Callable[[Writer, str, Any], Any]], ...] = (
    (Tensor, _tensor_form),
    (torch.Generator, _generator_form),
    (torch.dtype, _dtype_form),
    (torch.device, _device_form),
)
"""As those of `parcel`."""


def generator(reader: Reader, device: str, state: Any) -> torch.Generator:
    """One of a parcel's generators, from the state that it had."""
    _, dtype, shape, place = state
    there = reader.device or _CPU
    if device not in ("cpu", there.type):
        raise ConfigurationError(
            f"a generator of {device} is given, but the denoiser runs on {there.type}; "
            "use torch.Generator(), which all devices can draw from"
        )
    made = torch.Generator(_CPU if device == "cpu" else there)
    made.set_state(_numbers(reader, dtype, shape, place))
    return made


def _tensor(reader: Reader, dtype: str, shape: Any, place: int) -> Tensor:
    return _numbers(reader, dtype, shape, place).to(reader.device or _CPU)


def _numbers(reader: Reader, dtype: str, shape: Any, place: int) -> Tensor:
    kind, data = getattr(torch, dtype), bytearray(reader.buffers[place])
    return (torch.frombuffer(data, dtype=kind) if data else torch.empty(0, dtype=kind)).reshape(shape)


READERS: dict[str, Callable[..., Any]] = {
    "tensor": _tensor,
    "generator": lambda reader, place: reader.generators[place],
    "dtype": lambda reader, name: getattr(torch, name),
    "device": lambda reader, name: torch.device(name),
}
"""As those of `parcel`."""
