"""What ranks exchange at an attention of a step in full: all keys and values, or heads that are dealt out.

With heads dealt out each rank gets the queries, keys and values of all tokens for some heads, and gives back what
attention makes of them (DeepSpeed Ulysses, arXiv 2309.14509): of P ranks' tokens 4 (P - 1) / P tensors travel to each
in place of 2 (P - 1).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asyncdiff.denoiser.attention import AttentionCall
from asyncdiff.exchange.protocol import Exchange
from asyncdiff.plan.key_form import AS_IT_IS, KeyForm
from asyncdiff.plan.moments import Moment
from asyncdiff.plan.token_layout import Extent, TokenLayout, TokenParts
from asyncdiff.runtime.token_walk import Pair

_HEADS = 1  # the dimension along which they lie


@dataclass(frozen=True)
class FreshKeys:
    """The exchange at every attention, for a process that computes for one rank.

    Attributes:
        exchange: with the ranks that have the other parts.
        layout, parts: where tokens lie, and who has which.
        moment: which rank makes which part's keys.
        name: of the denoiser, for errors.
        dealt: the sites at which heads are dealt out.
        form: in which all of it travels.
    """

    exchange: Exchange
    layout: TokenLayout
    parts: TokenParts
    moment: Moment
    name: str
    dealt: frozenset[int] = frozenset()
    form: KeyForm = AS_IT_IS

    @property
    def part(self) -> int:
        """The part of this process."""
        (rank,) = self.exchange.ranks
        return next(part for part, source in self.moment.results if source == rank)

    def keys(self, number: int, mine: Pair) -> list[Pair]:
        """Every part's keys and values at an attention, given those of this rank's tokens; waits for the others'."""
        form, extent, own = self.form, self.layout.sites[number].keys, self.part
        lengths = {part: [self.parts.length(extent, part)] * len(mine) for part, _ in self.moment.results}
        bundles = _bundled(mine)
        shapes = {part: _bundled_shapes(mine, lengths[part]) for part, _ in self.moment.results}
        given = {
            part: [
                form.pack(bundle, 0) if part == own else form.room(shape, 0, bundle)
                for bundle, shape in zip(bundles, shapes[part], strict=True)
            ]
            for part, _ in self.moment.results
        }
        shared = self.exchange.share(given, self.moment, self._named("the keys", number)).finish()
        channels = [tensor.shape[-1] for tensor in mine]
        found = [
            _unbundled(self._unpacked(shared[part], shapes[part], 0, bundles), channels, lengths[part])
            for part, _ in self.moment.results
        ]
        return [(key, value) for key, value in found]

    def attend(self, number: int, attention: AttentionCall) -> Tensor | None:
        """What attention gives for this rank's tokens, if heads are dealt out there; waits for the others twice."""
        if number not in self.dealt or not attention.heads:
            return None
        site = self.layout.sites[number]
        extents = site.queries or site.keys, site.keys, site.keys
        heads = _Heads(self.parts.heads_of(attention.heads))
        query, key, value = self._to_heads(number, extents, heads, (attention.query, attention.key, attention.value))
        made = attention._replace(query=query, key=key, value=value)()
        return self._to_tokens(number, extents[0], heads, made)

    def _to_heads(
        self, number: int, extents: Sequence[Extent], heads: "_Heads", tensors: Sequence[Tensor]
    ) -> list[Tensor]:
        """Queries, keys and values of all tokens, for this rank's heads."""
        form, parts, own, dim = self.form, self.parts, self.part, _HEADS
        mine = [parts.own(tensor, extent, own) for tensor, extent in zip(tensors, extents, strict=True)]
        bundles = _bundled(mine)
        travels = [form.pack(bundle, dim) for bundle in bundles]

        def for_heads(part: int) -> list[Tensor]:
            return [heads.of(each, part, form.along(dim)) for each in travels]

        own_heads = [heads.of(tensor, own) for tensor in mine]
        lengths = {part: [parts.length(extent, part) for extent in extents] for part, _ in self.moment.results}
        shapes = {part: _bundled_shapes(own_heads, lengths[part]) for part, _ in self.moment.results}
        others = [(part, rank) for part, rank in self.moment.results if part != own]
        given = {rank: for_heads(part) for part, rank in others}
        rooms = {
            rank: [form.room(shape, dim, bundle) for shape, bundle in zip(shapes[part], bundles, strict=True)]
            for part, rank in others
        }
        dealt = self.exchange.deal(given, rooms, self._named("what heads read", number)).finish()
        channels = [tensor.shape[-1] for tensor in mine]
        of_parts = [
            _unbundled(
                self._unpacked(for_heads(own) if part == own else dealt[rank], shapes[part], dim, bundles),
                channels,
                lengths[part],
            )
            for part, rank in self.moment.results
        ]
        return [
            parts.join(heads.of(tensor, own), extent, own, pieces)
            for tensor, extent, *pieces in zip(tensors, extents, *of_parts, strict=True)
        ]

    def _to_tokens(self, number: int, extent: Extent, heads: "_Heads", made: Tensor) -> Tensor:
        """What attention gives for this rank's tokens, of all heads, from what it gave for all tokens."""
        form, parts, own, dim = self.form, self.parts, self.part, extent.dim
        travels, place = form.pack(made, dim), extent._replace(dim=form.along(dim))
        mine = parts.cut(travels, place, own)
        others = [(part, rank) for part, rank in self.moment.results if part != own]
        shape = _with_size(made.shape, dim, mine.shape[place.dim])
        shapes = {part: _with_size(shape, _HEADS, heads.counts[part]) for part, _ in self.moment.results}
        given = {rank: [parts.cut(travels, place, part)] for part, rank in others}
        rooms = {rank: [form.room(shapes[part], dim, made)] for part, rank in others}
        dealt = self.exchange.deal(given, rooms, self._named("what heads made", number)).finish()
        found = [
            form.unpack(mine if part == own else dealt[rank][0], shapes[part], dim, made.dtype)
            for part, rank in self.moment.results
        ]
        return torch.cat(found, _HEADS)

    def _unpacked(
        self, travelled: Sequence[Tensor], shapes: Sequence[Sequence[int]], dim: int, like: Sequence[Tensor]
    ) -> list[Tensor]:
        """The bundles that travelled."""
        return [
            self.form.unpack(each, shape, dim, bundle.dtype)
            for each, shape, bundle in zip(travelled, shapes, like, strict=True)
        ]

    def _named(self, what: str, number: int) -> str:
        return f"{what} of attention {number} of the denoiser {self.name!r}, part"


class _Heads:
    """How many heads each part's rank has, in order."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts = counts
        self._begins = [0, *itertools.accumulate(counts)]

    def of(self, tensor: Tensor, part: int, dim: int = _HEADS) -> Tensor:
        """Those of a tensor, by default of shape (batch, heads, tokens, channels)."""
        return tensor.narrow(dim, self._begins[part], self.counts[part])


def _bundled(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors in few: those of as many channels one after the other, along the tokens."""
    groups = itertools.groupby(tensors, key=lambda tensor: tensor.shape[-1])
    return [torch.cat(list(group), -2) for _, group in groups]


def _bundled_shapes(like: Sequence[Tensor], lengths: Sequence[int]) -> list[list[int]]:
    """The shapes of as many with so many tokens each."""
    groups = itertools.groupby(zip(like, lengths, strict=True), key=lambda item: item[0].shape[-1])
    found = []
    for _, group in groups:
        items = list(group)
        found.append(_with_size(items[0][0].shape, -2, sum(length for _, length in items)))
    return found


def _unbundled(bundles: Sequence[Tensor], channels: Sequence[int], lengths: Sequence[int]) -> list[Tensor]:
    """The tensors that were bundled."""
    groups = itertools.groupby(zip(channels, lengths, strict=True), key=lambda item: item[0])
    found: list[Tensor] = []
    for bundle, (_, group) in zip(bundles, groups, strict=True):
        found += torch.split(bundle, [length for _, length in group], -2)
    return found


def with_size(tensor: Tensor, dim: int, size: int) -> Tensor:
    """Room for a tensor that is as long as told along one dimension."""
    return torch.empty(_with_size(tensor.shape, dim, size), dtype=tensor.dtype, device=tensor.device)


def _with_size(shape: Sequence[int], dim: int, size: int) -> list[int]:
    return [size if axis == dim % len(shape) else held for axis, held in enumerate(shape)]
