"""Results of any form: the tensors in them, and the same form with other tensors."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten


def tensors_within(result: Any) -> Iterator[Tensor]:
    """All tensors of a result, those in objects of it too (a distribution's mean, say), in a fixed order."""
    for leaf in tree_flatten(result)[0]:
        if isinstance(leaf, Tensor):
            yield leaf
        elif _holds_tensors(leaf):
            for value in vars(leaf).values():
                yield from tensors_within(value)


def with_tensors(result: Any, tensors: Iterator[Tensor]) -> Any:
    """A result of the same form, with other tensors in the order of `tensors_within`."""
    leaves, structure = tree_flatten(result)
    made = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            made.append(next(tensors))
        elif _holds_tensors(leaf):
            other = copy.copy(leaf)
            vars(other).update({name: with_tensors(value, tensors) for name, value in vars(leaf).items()})
            made.append(other)
        else:
            made.append(leaf)
    return tree_unflatten(made, structure)


def like(tensor: Tensor, device: torch.device) -> Tensor:
    """Memory for a tensor of that form, laid out as it is."""
    if 0 in tensor.stride():
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


def _holds_tensors(leaf: Any) -> bool:
    return hasattr(leaf, "__dict__") and not isinstance(leaf, (type, nn.Module)) and not callable(leaf)
