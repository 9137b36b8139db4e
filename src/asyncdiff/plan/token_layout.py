"""Where a picture's tokens lie in a denoiser's call, and who has which of them. Pure."""

import bisect
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from asyncdiff.denoiser.graph import Graph, UnitCall
from asyncdiff.denoiser.trace import Leaf
from asyncdiff.plan.storage import contiguous_stride


class Extent(NamedTuple):
    """Where in a tensor the tokens of the picture lie; others, those of the text for instance, may lie around them.

    Attributes:
        dim: along which dimension.
        start: the place of the first.
    """

    dim: int
    start: int


@dataclass(frozen=True)
class Site:
    """A call of attention in which keys are tokens of the picture.

    Attributes:
        unit: the unit call in which it is made.
        keys: where they begin among all keys.
        queries: where they begin among all queries; None where the queries are none of them.
        total: how many keys there are in the undivided call.
        forms: of the undivided call's keys and values, shape (batch, heads, keys, channels).
    """

    unit: int
    keys: int
    queries: int | None
    total: int
    forms: tuple[Leaf, Leaf]

    @property
    def extent(self) -> Extent:
        """Where the tokens lie in keys and values."""
        return Extent(len(self.forms[0].shape) - 2, self.keys)


@dataclass(frozen=True)
class TokenLayout:
    """Where a denoiser's call can be divided by tokens.

    Attributes:
        graph: the units of the call.
        tokens: how many tokens the picture has.
        first, last: the unit calls between which, both included, every rank has its own tokens only.
        arguments: where they lie in tensors that the denoiser is given for these units, by their places.
        inputs: for each of these units, where tokens lie in its input tensors, by their places among them.
        made: for each of these units, where they lie in its output, by leaf.
        sites: by their numbers among all calls of attention in those units.
        queries: of the other calls of attention there, by number, where tokens begin among the queries.
        attentions: of all calls of attention in those units, in order, the unit call in which each is made.
    """

    graph: Graph
    tokens: int
    first: int
    last: int
    arguments: Mapping[int, Extent]
    inputs: Mapping[int, Mapping[int, Extent]]
    made: Mapping[int, Mapping[int, Extent]]
    sites: Mapping[int, Site]
    queries: Mapping[int, int]
    attentions: tuple[int, ...]

    @property
    def inside(self) -> range:
        """The unit calls between the first and the last, both included."""
        return range(self.first, self.last + 1)

    @property
    def outputs(self) -> Mapping[int, Extent]:
        """Where tokens lie in the output of the last one, by leaf."""
        return self.made[self.last]

    @property
    def last_site(self) -> int:
        """The last unit call with a site."""
        return max(site.unit for site in self.sites.values())

    def attentions_of(self, unit: int) -> range:
        """The numbers of the calls of attention in a unit."""
        return range(bisect.bisect_left(self.attentions, unit), bisect.bisect_right(self.attentions, unit))

    def cut(self, size: int) -> Graph:
        """The graph of a call with so many of the tokens between the first unit and the last."""
        if size not in self._cut:
            self._cut[size] = replace(
                self.graph,
                units=tuple(
                    replace(known, outputs=self._own_outputs(unit, known, size)) if unit in self.inside else known
                    for unit, known in enumerate(self.graph.units)
                ),
            )
        return self._cut[size]

    @functools.cached_property
    def _cut(self) -> dict[int, Graph]:
        return {}

    def _own_outputs(self, unit: int, known: UnitCall, size: int) -> tuple[Leaf, ...]:
        places = self.made[unit]
        return tuple(
            with_tokens(leaf, places[number].dim, leaf.shape[places[number].dim] - self.tokens + size)
            if number in places
            else leaf
            for number, leaf in enumerate(known.outputs)
        )


@dataclass(frozen=True)
class TokenParts:
    """Tokens dealt out in order, as evenly as can be.

    Attributes:
        tokens: how many there are.
        count: how many parts.
    """

    tokens: int
    count: int

    @functools.cached_property
    def bounds(self) -> tuple[int, ...]:
        """Where each part begins, and where the last one ends."""
        return tuple(part * self.tokens // self.count for part in range(self.count + 1))

    def size(self, part: int) -> int:
        """How many tokens a part has."""
        return self.bounds[part + 1] - self.bounds[part]

    def cut(self, tensor: Tensor, extent: Extent, part: int) -> Tensor:
        """What goes with a part of a tensor of all tokens: its own, and what lies around all of them."""
        before = tensor.narrow(extent.dim, 0, extent.start)
        end = extent.start + self.tokens
        after = tensor.narrow(extent.dim, end, tensor.shape[extent.dim] - end)
        own = self.of(tensor, extent, part)
        around = [other for other in (before, after) if other.shape[extent.dim]]
        return torch.cat((before, own, after), extent.dim) if around else own

    def of(self, tensor: Tensor, extent: Extent, part: int) -> Tensor:
        """A part's tokens, of a tensor of all tokens."""
        return tensor.narrow(extent.dim, extent.start + self.bounds[part], self.size(part))

    def own(self, tensor: Tensor, extent: Extent, part: int) -> Tensor:
        """A part's tokens, of a tensor of its own alone and of what lies around them."""
        return tensor.narrow(extent.dim, extent.start, self.size(part))

    def join(self, mine: Tensor, extent: Extent, part: int, parts: Sequence[Tensor]) -> Tensor:
        """All tokens, given each part's, with what lies around them in a tensor of one part's tokens."""
        end = extent.start + self.size(part)
        before = mine.narrow(extent.dim, 0, extent.start)
        after = mine.narrow(extent.dim, end, mine.shape[extent.dim] - end)
        return torch.cat((before, *parts, after), extent.dim)


def with_tokens(form: Leaf, dim: int, size: int) -> Leaf:
    """The form of a tensor that is as long as told along one dimension, packed."""
    shape = tuple(size if axis == dim else held for axis, held in enumerate(form.shape))
    return replace(form, shape=shape, stride=contiguous_stride(shape))
