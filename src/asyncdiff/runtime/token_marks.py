"""Which parts of what a denoiser's units and attentions are given are tokens of the picture, or a text: marked by NaN.

Nothing is known of any model: in a call in which every number of the picture is NaN, and attention gives each query
something of its own, what is NaN comes from the picture.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from asyncdiff.call import Call
from asyncdiff.denoiser.attention import AttentionCall, AttentionCalls
from asyncdiff.denoiser.graph import Graph
from asyncdiff.denoiser.trace import Leaf
from asyncdiff.plan.token_layout import Extent
from asyncdiff.report import Counts
from asyncdiff.runtime.units import UnitHooks, UnitRule


class Block(NamedTuple):
    """A part of a tensor: along one dimension, from where, how many."""

    dim: int
    start: int
    length: int


class Marked(NamedTuple):
    """A tensor's shape, and which part of it is marked; True for all, or for what is no block along one dimension."""

    shape: tuple[int, ...]
    mark: Block | bool

    def extent(self, tokens: int) -> Extent | None:
        """Where all tokens lie in what is marked, if they do."""
        if isinstance(self.mark, Block):
            return self._extent(self.mark.dim, self.mark.start) if self.mark.length == tokens else None
        if not self.mark:
            return None
        dim = next((dim for dim in self._likely_dims() if self.shape[dim] == tokens), None)
        return None if dim is None else self._extent(dim, 0)

    def unmarked_extent(self, starts: dict[int, int]) -> Extent | None:
        """Where all tokens may lie in what is not marked: in rotary embeddings, say.

        Args:
            starts: for each length that a sequence with all tokens in it has, where they begin in it.
        """
        if self.mark is not False:
            return None
        found = (dim for dim in self._likely_dims() if self.shape[dim] in starts)
        return next((self._extent(dim, starts[self.shape[dim]]) for dim in found), None)

    def lies_along_channels(self, starts: dict[int, int]) -> bool:
        """Whether the one dimension of what is not marked that is as long as all tokens is the channels' place."""
        found = self.unmarked_extent(starts)
        return found is not None and len(self.shape) > 2 and found.dim == len(self.shape) - 1

    def _extent(self, dim: int, start: int) -> Extent:
        return Extent(dim, start, length=self.shape[dim])

    def _likely_dims(self) -> list[int]:
        """Dimensions along which tokens may lie, the likeliest first: after the batch, before the channels."""
        if len(self.shape) < 3:
            return list(range(len(self.shape)))
        return [*range(1, len(self.shape) - 1), 0, len(self.shape) - 1]


class MarkedSite(NamedTuple):
    """A call of attention.

    Attributes:
        unit: the unit call in which it is made; None outside of all.
        keys, queries: which of them are marked.
        forms: of keys and values.
        rows: how many queries there are.
        heads: how many heads can be computed apart from each other; 0 for none.
    """

    unit: int | None
    keys: Block | bool
    queries: Block | bool
    forms: tuple[Leaf, Leaf]
    rows: int
    heads: int

    @property
    def total(self) -> int:
        """How many keys there are."""
        return self.forms[0].shape[-2]


@dataclass
class Marks:
    """What is marked in a call.

    Attributes:
        arguments: the denoiser's own tensors, by place.
        inputs, outputs: of each unit call, by place and by leaf.
        sites: the calls of attention, in order.
    """

    arguments: list[Marked]
    inputs: dict[int, list[Marked]] = field(default_factory=dict)
    outputs: dict[int, list[Marked]] = field(default_factory=dict)
    sites: list[MarkedSite] = field(default_factory=list)


def mark(units: UnitHooks, graph: Graph, call: Call, given: Sequence[Tensor]) -> Marks:
    """Make a call in which some of the given tensors are NaN."""
    poisoned = call.giving(tree_map(_nan_for({id(tensor) for tensor in given}), call.given))
    marks, current = Marks([_marked(tensor) for tensor in poisoned.tensors]), list[int]()

    def rule(unit: int, inner: Call) -> Any:
        marks.inputs[unit] = [_marked(tensor) for tensor in inner.tensors]
        current.append(unit)
        result = inner()
        current.pop()
        marks.outputs[unit] = [_marked(leaf) for leaf in tree_leaves(result)]
        return result

    def answer(attention: AttentionCall) -> Tensor:
        query, key, value = attention.query, attention.key, attention.value
        unit = current[-1] if current else None
        rows, forms = (_marked_rows(key), _marked_rows(query)), (_form(key), _form(value))
        marks.sites.append(MarkedSite(unit, *rows, forms, query.shape[-2], attention.heads))
        if query.shape[-1] == value.shape[-1]:
            return query
        return query.mean(-1, keepdim=True).expand(*query.shape[:-1], value.shape[-1])

    with AttentionCalls(answer):
        units.walk(graph, UnitRule(rule, Counts()), poisoned)
    return marks


def _nan_for(chosen: set[int]) -> Callable[[Any], Any]:
    def poisoned(leaf: Any) -> Any:
        is_chosen = id(leaf) in chosen and leaf.is_floating_point()
        return torch.full_like(leaf, torch.nan) if is_chosen else leaf

    return poisoned


def _marked(leaf: Any) -> Marked:
    return Marked(tuple(leaf.shape), _mark_of(leaf)) if isinstance(leaf, Tensor) else Marked((), False)


def _mark_of(tensor: Tensor) -> Block | bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return False
    is_nan = tensor.isnan()
    if not bool(is_nan.any()) or bool(is_nan.all()):
        return bool(is_nan.any())
    for dim in range(tensor.ndim):
        others = [axis for axis in range(tensor.ndim) if axis != dim]
        some, every = (is_nan.amax(others), is_nan.amin(others)) if others else (is_nan, is_nan)
        if torch.equal(some, every):
            places = some.nonzero().flatten()
            start, length = int(places[0]), len(places)
            return Block(dim, start, length) if int(places[-1]) == start + length - 1 else True
    return True


def _marked_rows(tensor: Tensor) -> Block | bool:
    """Which of keys or queries are marked."""
    found = _mark_of(tensor)
    if isinstance(found, Block):
        return found if found.dim == tensor.ndim - 2 else True
    return Block(tensor.ndim - 2, 0, tensor.shape[-2]) if found and bool(tensor.isnan().all()) else found


def _form(tensor: Tensor) -> Leaf:
    return Leaf(0, tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)
