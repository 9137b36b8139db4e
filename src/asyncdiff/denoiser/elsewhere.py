"""What stands for a weight that another rank has."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from asyncdiff.denoiser.weight_form import is_packed, plain_tensors
from asyncdiff.errors import ConfigurationError

# What may be asked: what a weight is like, not what is in it.
_PROPERTIES = (
    *("shape", "dtype", "device", "layout", "ndim", "requires_grad", "grad", "is_leaf", "is_meta", "is_cuda", "is_cpu"),
    *("itemsize", "nbytes", "is_sparse", "is_quantized", "grad_fn"),
)
_METHODS = (
    *("size", "dim", "numel", "nelement", "stride", "is_contiguous", "element_size", "is_floating_point", "is_complex"),
    *("data_ptr", "__repr__", "__len__", "__hash__", "get_device", "requires_grad_"),
)
_SET_DATA = getattr(Tensor.data, "__set__")  # noqa: B009 -- the type checker takes it for a tensor
_ALLOWED = {
    torch._has_compatible_shallow_copy_type,
    *(getattr(Tensor, name).__get__ for name in _PROPERTIES),
    *(getattr(Tensor, name) for name in _METHODS),
}


class Elsewhere(nn.Parameter):
    """A weight of which this process has the form only: no memory, and no numbers.

    Whatever would read or change it raises ConfigurationError.

    Attributes:
        held_bytes: how much memory the weight takes where it is.
        is_packed: whether only its module can read the weight (`denoiser.weight_form`).
    """

    _WHERE = "on another rank"
    _IS_CONVERTED = False

    held_bytes: int
    is_packed = False

    @classmethod
    def like(cls, weight: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> "Elsewhere":
        """The stand-in for a weight, as if it were on a device, and of another number format where one is given."""
        format_ = dtype or weight.dtype
        number = torch.full((), _filler(format_), dtype=format_, device=device)
        made: Elsewhere = torch.Tensor._make_subclass(cls, number.expand(weight.shape), weight.requires_grad)  # type: ignore[assignment]
        made.held_bytes, made.is_packed = bytes_of(weight), needs_its_module(weight)
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func in _ALLOWED:
                return func(*args, **(kwargs or {}))
            if cls._IS_CONVERTED and func is Tensor.to:
                made = _converted(args[0], lambda tensor: tensor.to(*args[1:], **(kwargs or {})))
                return cls.like(args[0], made.device, made.dtype)
            if cls._IS_CONVERTED and func == _SET_DATA:
                return func(*args)
            if func is Tensor.to and stays(args[0], lambda tensor: tensor.to(*args[1:], **(kwargs or {}))):
                return args[0]
            if func == _SET_DATA and args[0] is args[1]:
                return None  # `to` of a module that was there already
        raise not_here(cls._WHERE)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Elsewhere":
        return type(self).like(self, self.device)


class Absent(Elsewhere):
    """A weight of a part that one rank has for all: pipelines convert such parts on their own, and all ranks do it."""

    _IS_CONVERTED = True


class Unread(Elsewhere):
    """A weight in a file, which is read when it is known who is to have it."""

    _WHERE = "not read yet"

    read: Callable[[], Tensor]
    sample: Callable[[], Tensor]

    @staticmethod
    def at(like: Tensor, read: Callable[[], Tensor], sample: Callable[[], Tensor]) -> "Unread":
        """The stand-in for a weight.

        Args:
            like: of the same shape and number format.
            read: gives the whole of it.
            sample: gives some of its numbers.
        """
        number = torch.full((), _filler(like.dtype), dtype=like.dtype)
        made: Unread = torch.Tensor._make_subclass(Unread, number.expand(like.shape), like.is_floating_point())  # type: ignore[assignment]
        made.read, made.sample, made.held_bytes = read, sample, like.nbytes
        return made


def bytes_of(weight: Tensor) -> int:
    """How much memory a weight takes in the form that it is kept in; of a stand-in, the one that it stands for."""
    told: int | None = getattr(weight, "held_bytes", None)
    return sum(tensor.nbytes for tensor in plain_tensors(weight)) if told is None else told


def needs_its_module(weight: Tensor) -> bool:
    """Whether only its module can read a weight, here or on another rank."""
    return weight.is_packed if isinstance(weight, Elsewhere) else is_packed(weight)


def not_here(where: str) -> ConfigurationError:
    """What is said where a weight is wanted that this process has not."""
    return ConfigurationError(
        f"this weight is {where}: with shard=True a process has its own part of the denoiser alone. Adapters, fusing, "
        "moving and saving come before AsyncDiff is attached, or after async_diff.gather(), which puts the weights "
        "together again"
    )


def stays(weight: Tensor, conversion: Callable[[Tensor], Tensor]) -> bool:
    """Whether a conversion leaves a weight what and where it is."""
    made = _converted(weight, conversion)
    return (made.dtype, made.device) == (weight.dtype, weight.device)


def _converted(weight: Tensor, conversion: Callable[[Tensor], Tensor]) -> Tensor:
    """What a conversion makes of an empty tensor that is where the weight is, and of its format."""
    return conversion(torch.empty(0, dtype=weight.dtype, device=weight.device))


def _filler(dtype: torch.dtype) -> float:
    return float("nan") if dtype.is_floating_point or dtype.is_complex else 0
