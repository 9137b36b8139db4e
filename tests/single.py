"""A device without double precision, played on the CPU: what is put there says that it is, and refuses doubles."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("privateuseone", 0)
_CPU = torch.device("cpu")

# What may be given tensors of two devices.
_ACROSS = {torch.ops.aten.copy_, torch.ops.aten._to_copy, torch.ops.aten.index, torch.ops.aten.index_put_}


class NoDoublesError(TypeError):
    """What such a device says of them."""


class Held(Tensor):
    """A tensor on the device; `numbers` are its numbers."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, real: Tensor) -> "Held":
        if real.dtype == torch.float64:
            raise NoDoublesError(f"the device has no double precision: shape {tuple(real.shape)}")
        held: Held = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=DEVICE,
        )
        held.numbers = real
        return held

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _carried_out(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.numbers.tolist()  # torch has it for plain tensors only


class _Device(TorchDispatchMode):
    """Sees to what is made on the device, not of tensors that are there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _carried_out(func, args, kwargs or {})


def _carried_out(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    held = {id(leaf.numbers): leaf for leaf in leaves if isinstance(leaf, Held)}
    told = kwargs.get("device")
    is_there = bool(held) if told is None else torch.device(told).type == DEVICE.type
    if held and func.overloadpacket not in _ACROSS and any(leaf.ndim and not isinstance(leaf, Held) for leaf in leaves):
        raise RuntimeError(f"{func} was given tensors on two devices")
    if held and not is_there and kwargs.get("dtype") == torch.float64:
        raise NoDoublesError("the device changes the number format before it sends")
    real_args, real_kwargs = tree_map(
        lambda leaf: leaf.numbers if isinstance(leaf, Held) else leaf, (args, dict(kwargs))
    )
    if told is not None:
        real_kwargs["device"] = _CPU
    return tree_map(lambda leaf: _wrapped(leaf, held, is_there), func(*real_args, **real_kwargs))


def _wrapped(leaf: Any, held: Mapping[int, Tensor], is_there: bool) -> Any:
    if not isinstance(leaf, Tensor) or not is_there:
        return leaf
    return held[id(leaf)] if id(leaf) in held else Held(leaf)


def put_there(module: nn.Module) -> None:
    """Move a module to the device."""
    for part in module.modules():
        for name, weights in part._parameters.items():
            if weights is not None:
                part._parameters[name] = nn.Parameter(Held(weights.detach()), requires_grad=False)
        for name, values in part._buffers.items():
            if values is not None:
                part._buffers[name] = Held(values)


def is_possible() -> bool:
    """Whether this torch lets Python play a device."""
    return hasattr(backend_registration, "_setup_privateuseone_for_python_backend")


@contextmanager
def device() -> Iterator[None]:
    """While it lasts there is such a device; torch knows of it for the rest of the process."""
    backend_registration._setup_privateuseone_for_python_backend()
    with _Device():
        yield
