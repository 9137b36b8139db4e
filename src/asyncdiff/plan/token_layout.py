"""Where a picture's tokens lie in a denoiser's call, and who has which of them. Pure."""

import bisect
import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from asyncdiff.denoiser.graph import Graph, UnitCall
from asyncdiff.denoiser.trace import Leaf
from asyncdiff.plan.key_form import AS_IT_IS, KeyForm
from asyncdiff.plan.storage import contiguous_stride


class Extent(NamedTuple):
    """Where in a tensor tokens lie that are divided; others may lie around them.

    Attributes:
        dim: along which dimension.
        start: the place of the picture's first; None where it has none of them.
        text: the same of the text's, where it is divided as well.
        length: how long a tensor of all tokens is along it, where one may come with all of them or with a part's own.
    """

    dim: int
    start: int | None
    text: int | None = None
    length: int | None = None


@dataclass(frozen=True)
class Site:
    """A call of attention in which keys are tokens of the picture.

    Attributes:
        unit: the unit call in which it is made.
        keys: where they lie in keys and values.
        queries: where they lie along the rows of a mask; None where the queries are no tokens that are divided.
        total: how many keys there are in the undivided call.
        forms: of the undivided call's keys and values, shape (batch, heads, keys, channels).
        rows: how many queries there are in the undivided call.
        heads: how many heads there are that can be computed apart from each other, each with all tokens; 0 where
            queries have others than keys, or there is a mask.
    """

    unit: int
    keys: Extent
    queries: Extent | None
    total: int
    forms: tuple[Leaf, Leaf]
    rows: int = 0
    heads: int = 0


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
        queries: of the other calls of attention there, by number, where tokens lie along the rows of a mask.
        attentions: of all calls of attention in those units, in order, the unit call in which each is made.
        text: how many tokens of a text are divided as well, in attention beside the picture's; 0 where every rank has
            all of them.
    """

    graph: Graph
    tokens: int
    first: int
    last: int
    arguments: Mapping[int, Extent]
    inputs: Mapping[int, Mapping[int, Extent]]
    made: Mapping[int, Mapping[int, Extent]]
    sites: Mapping[int, Site]
    queries: Mapping[int, Extent]
    attentions: tuple[int, ...]
    text: int = 0

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

    def parts(self, count: int) -> "TokenParts":
        """Its tokens in so many parts."""
        return TokenParts(self.tokens, count, self.text)

    def dealt(self, parts: "TokenParts") -> frozenset[int]:
        """The sites at which less travels if heads are dealt out than if keys are given to everyone (DeepSpeed Ulysses,
        arXiv 2309.14509): queries, keys and values go from tokens to heads, and what attention gives goes back."""
        last = parts.count - 1
        return frozenset(
            number
            for number, site in self.sites.items()
            if site.queries is not None
            and site.heads >= parts.count
            and sum(self.dealt_bytes(number, parts, source, last) for source in range(last))
            < sum(self.given_bytes(number, parts, source) for source in range(last))
        )

    def given_bytes(self, number: int, parts: "TokenParts", source: int, form: KeyForm = AS_IT_IS) -> int:
        """What another rank receives of a part's keys and values at a site."""
        site = self.sites[number]
        return sum(form.nbytes(vectors, parts.length(site.keys, source)) for vectors in site.forms)

    def dealt_bytes(self, number: int, parts: "TokenParts", source: int, reader: int, form: KeyForm = AS_IT_IS) -> int:
        """What a part's rank sends to another's at a site where heads are dealt out: there and back.

        Raises:
            ValueError: the queries there are no tokens that are divided.
        """
        site, heads = self.sites[number], parts.heads_of(self.sites[number].heads)
        if site.queries is None:
            raise ValueError("there are no heads to be dealt out")
        key, value = site.forms
        there = form.nbytes(key, parts.length(site.queries, source)) + self.given_bytes(number, parts, source, form)
        rows = site.rows - parts.total(site.queries) + parts.length(site.queries, reader)
        back = form.nbytes(value, rows)
        return (there * heads[reader] + back * heads[source]) // site.heads

    def passes_within(self, number: int, parts: "TokenParts", part: int, is_dealt: bool, form: KeyForm) -> float:
        """Bytes that a part's rank goes through at a site, to pack and unpack what is exchanged there."""
        site, plain = self.sites[number], AS_IT_IS
        key, value = site.forms
        everyone = range(parts.count)
        if not is_dealt or site.queries is None:
            mine, *others = (self.given_bytes(number, parts, source) for source in (part, *everyone))
            return form.passes(mine, sum(others))
        heads = parts.heads_of(site.heads)[part] / site.heads
        rows = site.rows - parts.total(site.queries) + parts.length(site.queries, part)
        read = [
            self.given_bytes(number, parts, source) + plain.nbytes(key, parts.length(site.queries, source))
            for source in everyone
        ]
        made = heads * plain.nbytes(value, site.rows)
        return form.passes(read[part] + made, heads * sum(read) + plain.nbytes(value, rows))

    def cut(self, parts: "TokenParts", part: int) -> Graph:
        """The graph of a call with one of the parts between the first unit and the last."""
        sizes = parts.sizes(part)
        if sizes not in self._cut:
            self._cut[sizes] = replace(
                self.graph,
                units=tuple(
                    replace(known, outputs=self._own_outputs(unit, known, parts, part))
                    if unit in self.inside
                    else known
                    for unit, known in enumerate(self.graph.units)
                ),
            )
        return self._cut[sizes]

    @functools.cached_property
    def _cut(self) -> dict[tuple[int, int], Graph]:
        return {}

    def _own_outputs(self, unit: int, known: UnitCall, parts: "TokenParts", part: int) -> tuple[Leaf, ...]:
        def own(leaf: Leaf, extent: Extent | None) -> Leaf:
            if extent is None:
                return leaf
            size = leaf.shape[extent.dim] - parts.total(extent) + parts.length(extent, part)
            return with_tokens(leaf, extent.dim, size)

        return tuple(own(leaf, self.made[unit].get(number)) for number, leaf in enumerate(known.outputs))


class _Run(NamedTuple):
    """Tokens of one kind in a tensor: the place of the first, and where among them each part begins."""

    start: int
    bounds: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.start + self.bounds[-1]

    def size(self, part: int) -> int:
        return self.bounds[part + 1] - self.bounds[part]


@dataclass(frozen=True)
class TokenParts:
    """Tokens dealt out in order, as evenly as can be.

    Attributes:
        tokens: how many the picture has.
        count: how many parts.
        text: how many of a text are dealt out as well.
    """

    tokens: int
    count: int
    text: int = 0

    @functools.cached_property
    def bounds(self) -> tuple[int, ...]:
        """Where each part begins among the picture's, and where the last one ends."""
        return self._bounds_of(self.tokens)

    @functools.cached_property
    def bounds_of_text(self) -> tuple[int, ...]:
        """The same among the text's."""
        return self._bounds_of(self.text)

    def size(self, part: int) -> int:
        """How many tokens of the picture a part has."""
        return self.bounds[part + 1] - self.bounds[part]

    def sizes(self, part: int) -> tuple[int, int]:
        """How many tokens of the picture a part has, and how many of the text."""
        begin, end = self.bounds_of_text[part : part + 2]
        return self.size(part), end - begin

    def length(self, extent: Extent, part: int) -> int:
        """How many of the tokens in a tensor a part has."""
        return sum(run.size(part) for run in self._runs(extent))

    def total(self, extent: Extent) -> int:
        """How many tokens in a tensor are dealt out."""
        return sum(run.bounds[-1] for run in self._runs(extent))

    def cut(self, tensor: Tensor, extent: Extent, part: int) -> Tensor:
        """What goes with a part of a tensor of all tokens: its own, and what lies around all of them."""
        pieces, place = [], 0
        for run in self._runs(extent):
            pieces += [(place, run.start - place), (run.start + run.bounds[part], run.size(part))]
            place = run.end
        return _taken(tensor, extent.dim, [*pieces, (place, tensor.shape[extent.dim] - place)])

    def of(self, tensor: Tensor, extent: Extent, part: int) -> Tensor:
        """A part's tokens, of a tensor of all tokens."""
        runs = self._runs(extent)
        return _taken(tensor, extent.dim, [(run.start + run.bounds[part], run.size(part)) for run in runs])

    def own(self, tensor: Tensor, extent: Extent, part: int) -> Tensor:
        """A part's tokens, of a tensor of its own alone and of what lies around them."""
        return _taken(tensor, extent.dim, self._own_places(extent, part))

    def join(self, mine: Tensor, extent: Extent, part: int, parts: Sequence[Tensor]) -> Tensor:
        """All tokens, given each part's, with what lies around them in a tensor of one part's tokens."""
        dim, pieces, place, taken = extent.dim, list[Tensor](), 0, [0] * self.count

        def piece(tensor: Tensor, start: int, size: int) -> None:
            if size:
                pieces.append(tensor if size == tensor.shape[dim] else tensor.narrow(dim, start, size))

        for run, (begin, size) in zip(self._runs(extent), self._own_places(extent, part), strict=True):
            piece(mine, place, begin - place)
            for source, theirs in enumerate(parts):
                piece(theirs, taken[source], run.size(source))
                taken[source] += run.size(source)
            place = begin + size
        piece(mine, place, mine.shape[dim] - place)
        return torch.cat(pieces, dim)

    def _own_places(self, extent: Extent, part: int) -> list[tuple[int, int]]:
        """Where a part's tokens of each kind begin in a tensor of its own alone, and how many there are."""
        places, missing = [], 0
        for run in self._runs(extent):
            places.append((run.start - missing, run.size(part)))
            missing += run.bounds[-1] - run.size(part)
        return places

    def _runs(self, extent: Extent) -> list[_Run]:
        """The kinds of tokens in a tensor, in their order; asked for several times at every attention."""
        if extent not in self._known_runs:
            found = [] if extent.start is None else [_Run(extent.start, self.bounds)]
            if extent.text is not None:
                found.append(_Run(extent.text, self.bounds_of_text))
            self._known_runs[extent] = sorted(found)
        return self._known_runs[extent]

    @functools.cached_property
    def _known_runs(self) -> dict[Extent, list[_Run]]:
        return {}

    def heads_of(self, count: int) -> tuple[int, ...]:
        """How many of so many heads each part's rank has, where they are dealt out."""
        bounds = self._bounds_of(count)
        return tuple(end - begin for begin, end in itertools.pairwise(bounds))

    def _bounds_of(self, number: int) -> tuple[int, ...]:
        return tuple(part * number // self.count for part in range(self.count + 1))


def _taken(tensor: Tensor, dim: int, places: Sequence[tuple[int, int]]) -> Tensor:
    """Some parts of a tensor, each from where and how long; no copy where they lie side by side."""
    merged: list[tuple[int, int]] = []
    for start, size in places:
        if merged and sum(merged[-1]) == start:
            merged[-1] = merged[-1][0], merged[-1][1] + size
        elif size:
            merged.append((start, size))
    parts = [tensor.narrow(dim, start, size) for start, size in merged or [(0, 0)]]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def with_tokens(form: Leaf, dim: int, size: int) -> Leaf:
    """The form of a tensor that is as long as told along one dimension, packed."""
    shape = tuple(size if axis == dim else held for axis, held in enumerate(form.shape))
    return replace(form, shape=shape, stride=contiguous_stride(shape))
