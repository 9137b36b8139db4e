"""Weights of other kinds than plain ones (quantized): taken apart into plain tensors, and made again of others."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from asyncdiff.denoiser.results import tensors_within, with_tensors


def is_plain(weight: Tensor) -> bool:
    """Whether a weight is numbers in memory, and nothing else."""
    return type(weight) in (nn.Parameter, Tensor)


def is_packed(weight: Tensor) -> bool:
    """Whether only its module can read a weight: it is memory in a form of its own, with attributes that explain it."""
    return not is_plain(weight) and not is_traceable_wrapper_subclass(weight)


class Form:
    """What a weight is made of, without any numbers.

    Some modules keep for themselves a part of what explains their packed weight (scales, once they were called): that
    goes with it.

    Args:
        weight: of any kind.
        module: the one that it belongs to.

    Attributes:
        like: the form of each plain tensor in it, without memory.
    """

    def __init__(self, weight: nn.Parameter, module: nn.Module) -> None:
        self._requires_grad = weight.requires_grad
        self._kind = _kind_of(weight, _beside(module) if is_packed(weight) else {})
        found = list(self._kind.tensors(weight, module))
        distinct = _distinct(found)
        memory = list(map(_memory, distinct))
        self._places = [memory.index(_memory(tensor)) for tensor in found]  # of each in it, among the distinct
        self.like = [_without_memory(tensor) for tensor in distinct]

    def tensors(self, weight: nn.Parameter, module: nn.Module) -> list[Tensor]:
        """The plain tensors in a weight of this form, and beside it; each piece of memory once."""
        return _distinct(self._kind.tensors(weight, module))

    def make(self, tensors: Sequence[Tensor]) -> tuple[nn.Parameter, Mapping[str, Any]]:
        """A weight of this form made of plain tensors, and the attributes that its module is to have beside it."""
        return self._kind.make(iter([tensors[place] for place in self._places]), self._requires_grad)


def plain_tensors(weight: Tensor) -> list[Tensor]:
    """The plain tensors that a weight of any kind holds, the one with its numbers first; each piece of memory once."""
    if is_plain(weight):
        return [weight]
    return _distinct(_kind_of(weight, {}).tensors(weight, None))


@dataclass(frozen=True)
class _Wrapper:
    """A tensor that says by torch's protocol of which others it is made."""

    kind: Any
    names: tuple[str, ...]
    context: Any
    shape: torch.Size
    stride: tuple[int, ...]
    parts: "tuple[_Wrapper | None, ...]"  # None: a plain one

    @staticmethod
    def of(tensor: Any) -> "_Wrapper":
        names, context = tensor.__tensor_flatten__()
        inner = [getattr(tensor, name) for name in names]
        parts = tuple(_Wrapper.of(part) if is_traceable_wrapper_subclass(part) else None for part in inner)
        return _Wrapper(type(tensor), tuple(names), context, tensor.shape, tensor.stride(), parts)

    def tensors(self, tensor: Any, module: nn.Module | None) -> Iterator[Tensor]:
        for name, part in zip(self.names, self.parts, strict=True):
            inner = getattr(tensor, name)
            yield from [inner] if part is None else part.tensors(inner, module)

    def make(self, tensors: Iterator[Tensor], requires_grad: bool) -> tuple[nn.Parameter, Mapping[str, Any]]:
        return nn.Parameter(self._made(tensors), requires_grad), {}

    def _made(self, tensors: Iterator[Tensor]) -> Tensor:
        inner = {
            name: next(tensors) if part is None else part._made(tensors)
            for name, part in zip(self.names, self.parts, strict=True)
        }
        made: Tensor = self.kind.__tensor_unflatten__(inner, self.context, self.shape, self.stride)
        return made


@dataclass(frozen=True)
class _Packed:
    """A parameter of a class of its own: memory, attributes that explain it, and those of its module."""

    kind: Any
    attributes: dict[str, Any]  # with tensors that have no memory
    beside: dict[str, Any]

    @staticmethod
    def of(weight: Tensor, beside: Mapping[str, Any]) -> "_Packed":
        return _Packed(type(weight), _hollow(vars(weight)), _hollow(beside))

    def tensors(self, weight: Tensor, module: nn.Module | None) -> Iterator[Tensor]:
        yield torch.Tensor._make_subclass(Tensor, weight)
        yield from tensors_within(vars(weight))
        if module is not None:
            yield from tensors_within({name: vars(module)[name] for name in self.beside})

    def make(self, tensors: Iterator[Tensor], requires_grad: bool) -> tuple[nn.Parameter, Mapping[str, Any]]:
        made: Any = torch.Tensor._make_subclass(self.kind, next(tensors), requires_grad)
        vars(made).update(with_tensors(self.attributes, tensors))
        return made, with_tensors(self.beside, tensors)


def _kind_of(weight: Tensor, beside: Mapping[str, Any]) -> "_Wrapper | _Packed":
    return _Wrapper.of(weight) if is_traceable_wrapper_subclass(weight) else _Packed.of(weight, beside)


def _beside(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module that hold tensors and are no parameters or buffers."""
    own = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return {name: value for name, value in own.items() if next(tensors_within(value), None) is not None}


def _hollow(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The same with tensors that have no memory, in objects of their own."""
    given = dict(attributes)
    hollow: dict[str, Any] = with_tensors(given, map(_without_memory, list(tensors_within(given))))
    return hollow


def _without_memory(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    """Which memory a tensor is, and how it is laid out there."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _distinct(tensors: Iterable[Tensor]) -> list[Tensor]:
    found: dict[tuple[Any, ...], Tensor] = {}
    for tensor in tensors:
        found.setdefault(_memory(tensor), tensor)
    return list(found.values())
