"""A call's arguments divided along the batch, and the results of its parts put together again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from asyncdiff.call import tensors_of
from asyncdiff.denoiser.form import batch_size
from asyncdiff.plan.parts import Parts

# How far the results of two batch sizes may lie apart, relative to their norm: other sizes may be computed by other
# kernels, which round elsewhere, layer after layer.
_ROUNDING = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}
_ROUNDING_OF_TENSOR_FLOAT_32 = 1e-2

_MOST_RULES = 5

# What a module may raise when it is given a part of a batch that cannot be divided so.
FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError)


@dataclass(frozen=True)
class BatchRule:
    """Which of a call's arguments belong to the batch.

    Attributes:
        batch: B, the size of the main argument's first dimension, or the length of the list that it is.
        ratios: tensors whose first dimension is so many times B are divided along it; the frames of a video, say,
            may lie one after the other there.
        by_items: whether the main argument is a list with a tensor for each member of the batch.
        by_second: whether tensors with B as their second dimension are divided along that: what every layer of a text
            encoder made, say, one layer after the other.
    """

    batch: int
    ratios: frozenset[int]
    by_items: bool = False
    by_second: bool = False

    def part(self, arguments: Any, number: int, parts: int) -> Any:
        """The part `number` of `parts` of arguments of any form, in containers of their own; tensors are views."""
        own = Parts(self.batch, parts)
        start, size = own.start(number), own.size

        def of_leaf(leaf: Any) -> Any:
            if isinstance(leaf, Tensor) and self.by_second and _has_second(leaf, self.batch):
                return leaf.narrow(1, start, size)
            if isinstance(leaf, Tensor) and (ratio := _ratio(leaf, self.batch)) in self.ratios:
                return leaf.narrow(0, start * ratio, size * ratio)
            if self._lists_members(leaf):
                return tree_map(_itself, leaf[start : start + size])
            return leaf

        return tree_map(of_leaf, arguments, is_leaf=self._lists_members)

    def _lists_members(self, value: Any) -> bool:
        """Whether a value is a list of what belongs to each member of the batch: sizes of pictures, say.

        In a list of tensors that themselves have the batch as their first dimension, they belong to all members.
        """
        if not isinstance(value, list) or len(value) != self.batch:
            return False
        tensors = tensors_of(value)
        return not tensors or (self.by_items and any(_ratio(tensor, self.batch) != 1 for tensor in tensors))


def batch_rules(main: Any, arguments: Any) -> tuple[BatchRule, ...]:
    """The rules by which a call may be divided into parts, the most probable first; none if it cannot be.

    That a tensor's first dimension has the size of the batch, or a multiple, may be a coincidence. So whoever divides
    by a rule must compare the result with that of the whole call.

    Args:
        main: the argument that says how large the batch is: a tensor, or a list of tensors.
        arguments: all arguments, in any form.
    """
    by_items = isinstance(main, list)
    batch = batch_size(main)
    if batch < 2:
        return ()
    tensors = tensors_of(arguments)
    found = {_ratio(tensor, batch) for tensor in tensors}
    multiples = sorted(ratio for ratio in found if ratio > 1)
    chosen = [(), tuple(multiples), *((ratio,) for ratio in multiples)]
    rules = [BatchRule(batch, frozenset((1, *ratios)), by_items) for ratios in dict.fromkeys(chosen)][:_MOST_RULES]
    if any(_has_second(tensor, batch) for tensor in tensors if tensor is not main):
        rules.append(BatchRule(batch, frozenset((1,)), by_items, by_second=True))
    return tuple(rules)


def join(results: Sequence[Any], batch: int) -> Any:
    """The result of a call with a batch of that size, given the results of its parts in their order."""
    parts = Parts(batch, len(results))

    def new_in(number: int, leaf: Any) -> Any:
        """What the parts before have not."""
        return leaf[len(leaf) // parts.size * parts.repeated(number) :]

    def of_leaves(*leaves: Any) -> Any:
        if isinstance(leaves[0], Tensor):
            return torch.cat([new_in(number, leaf) for number, leaf in enumerate(leaves)])
        if isinstance(leaves[0], list):
            return [item for number, leaf in enumerate(leaves) for item in new_in(number, leaf)]
        return leaves[0]

    return tree_map(of_leaves, *results, is_leaf=_is_list)


def has_form_of_part(part: Any, whole: Any, parts: Parts) -> bool:
    """Whether a result can be that of one of the parts of a call, given the whole call's result."""
    mine, my_structure = tree_flatten(part, is_leaf=_is_list)
    all_of_it, structure = tree_flatten(whole, is_leaf=_is_list)
    if my_structure != structure:
        return False
    for one, other in zip(mine, all_of_it, strict=True):
        if isinstance(one, list) and isinstance(other, list):
            # Every part must have the same form, because its receivers make ready for one like their own.
            forms, own = [_shape(item) for item in other], [_shape(item) for item in one]
            if len(one) * parts.batch != len(other) * parts.size:
                return False
            if any(forms[parts.start(number) :][: len(own)] != own for number in range(parts.count)):
                return False
        elif isinstance(one, Tensor) and isinstance(other, Tensor):
            if one.ndim == 0 or one.shape[1:] != other.shape[1:] or one.dtype != other.dtype:
                return False
            if one.shape[0] * parts.batch != other.shape[0] * parts.size:
                return False
        elif type(one) is not type(other):
            return False
    return True


def is_same_but_for_rounding(found: Any, expected: Any) -> bool:
    """Whether two results have the same form and, member by member of the batch, nearly the same numbers."""
    mine, others = tree_leaves(found), tree_leaves(expected)
    if [_shape(leaf) for leaf in mine] != [_shape(leaf) for leaf in others]:
        return False
    return all(_is_near(one, other) for one, other in zip(tensors_of(mine), tensors_of(others), strict=True))


def _is_near(found: Tensor, expected: Tensor) -> bool:
    if not expected.is_floating_point():
        return torch.equal(found, expected)
    limit = _ROUNDING.get(expected.dtype, _ROUNDING[torch.bfloat16])
    if expected.dtype == torch.float32 and expected.is_cuda and torch.backends.cuda.matmul.allow_tf32:
        limit = _ROUNDING_OF_TENSOR_FLOAT_32
    members = len(expected) if expected.ndim else 1
    exact = torch.promote_types(expected.dtype, torch.float32)  # not every device has double precision
    difference = (found.to(exact) - expected.to(exact)).reshape(members, -1).norm(dim=1)
    return bool((difference <= limit * expected.to(exact).reshape(members, -1).norm(dim=1)).all())


def _ratio(tensor: Tensor, batch: int) -> int:
    """How many times the batch a tensor's first dimension is; 0 if it is no multiple."""
    return tensor.shape[0] // batch if tensor.ndim and tensor.shape[0] % batch == 0 else 0


def _has_second(tensor: Tensor, batch: int) -> bool:
    return tensor.ndim > 2 and tensor.shape[1] == batch


def _shape(leaf: Any) -> Any:
    return (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else type(leaf)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _itself(leaf: Any) -> Any:
    return leaf
