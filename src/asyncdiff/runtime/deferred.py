"""Tensors whose numbers may arrive later: they are waited for at the first use that reads them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from asyncdiff.call import tensors_of
from asyncdiff.errors import ExchangeError

# Functions that may give a view, or tell of a tensor's form. Whether one gave a view, or has read the numbers after all
# (as an index with a list, or `to` another type, does), shows in the memory of its result.
# fmt: off
_MAY_LEAVE_UNREAD = frozenset(
    [
        "__get__", "__getitem__", "__len__", "alias", "bfloat16", "chunk", "contiguous", "detach", "dim",
        "dim_order", "double", "element_size", "expand", "expand_as", "flatten", "float", "get_device", "half",
        "is_complex", "is_contiguous", "is_floating_point", "is_same_size", "movedim", "moveaxis", "narrow",
        "ndimension", "nelement", "numel", "permute", "reshape", "select", "size", "split", "squeeze",
        "storage_offset", "stride", "swapaxes", "swapdims", "t", "tensor_split", "to", "transpose", "type",
        "unbind", "unflatten", "unsqueeze", "view", "view_as",
    ]
)
# fmt: on


class Settlement:
    """What several deferred tensors wait for; once it is settled, their numbers are there."""

    def __init__(self, settle: Callable[[], None]) -> None:
        self._settle: Callable[[], None] | None = settle
        self._is_dropped = False

    @property
    def is_settled(self) -> bool:
        """Whether the numbers are there."""
        return self._settle is None

    def settle(self) -> None:
        """Get the numbers, if they are not there yet.

        Raises:
            ExchangeError: they will never come.
        """
        if self._is_dropped:
            raise ExchangeError(
                "a prediction was read that was on its way when its generation was broken off; it never arrived"
            )
        if self._settle is not None:
            self._is_dropped = True  # should it fail
            self._settle()
            self._settle, self._is_dropped = None, False

    def drop(self) -> None:
        """From now on the numbers will never come, unless they are there."""
        self._is_dropped = self._settle is not None


class DeferredTensor(Tensor):
    """A tensor whose numbers are written into its memory when its settlement is settled.

    Views of it are deferred like it. Whatever reads its numbers settles first, and gives plain tensors.
    """

    settlement: Settlement

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        arguments = (tuple(args), dict(kwargs or {}))
        waiting = [
            tensor
            for tensor in tensors_of(arguments)
            if isinstance(tensor, DeferredTensor) and not tensor.settlement.is_settled
        ]
        with torch._C.DisableTorchFunctionSubclass():
            plain_args, plain_kwargs = _plain(arguments)
            if len(waiting) == 1 and getattr(func, "__name__", "") in _MAY_LEAVE_UNREAD:
                result = func(*plain_args, **plain_kwargs)
                if all(_memory(tensor) == _memory(waiting[0]) for tensor in tensors_of(result)):
                    return tree_map(lambda leaf: _defer(leaf, waiting[0].settlement), result)
            for tensor in waiting:
                tensor.settlement.settle()
            return func(*plain_args, **plain_kwargs)


def deferred(result: Any, settlement: Settlement) -> Any:
    """A result of any form with its tensors deferred; they keep their memory."""
    return tree_map(lambda leaf: _defer(leaf, settlement), result)


def settled(arguments: Any) -> Any:
    """Arguments of any form with plain tensors; waits for those that are deferred."""
    for tensor in tensors_of(arguments):
        if isinstance(tensor, DeferredTensor):
            tensor.settlement.settle()
    with torch._C.DisableTorchFunctionSubclass():
        return _plain(arguments)


def _plain(arguments: Any) -> Any:
    return tree_map(
        lambda leaf: leaf.as_subclass(Tensor) if isinstance(leaf, DeferredTensor) else leaf,
        arguments,
    )


def _defer(leaf: Any, settlement: Settlement) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    tensor = leaf.as_subclass(DeferredTensor)
    tensor.settlement = settlement
    return tensor


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
