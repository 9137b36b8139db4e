"""Tensors as parts of a byte buffer."""

from collections.abc import Sequence

import torch
from torch import Tensor


def pack(tensor: Tensor, into: Tensor) -> None:
    """Copy a tensor into a part of a byte buffer, in the tensor's own memory order."""
    view_of(into, tensor.dtype, tensor.shape, tensor.stride()).copy_(tensor)


def view_of(part: Tensor, dtype: torch.dtype, shape: Sequence[int], stride: Sequence[int]) -> Tensor:
    """A byte buffer's part as a tensor; a stride that leaves gaps becomes a contiguous one."""
    flat = part.view(dtype)
    dense = sorted((step, size) for step, size in zip(stride, shape, strict=True) if size > 1)
    expected = 1
    for step, size in dense:
        if step != expected:
            return flat.view(*shape)
        expected *= size
    return flat.as_strided(tuple(shape), tuple(stride))
