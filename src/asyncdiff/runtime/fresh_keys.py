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
from asyncdiff.plan.moments import Moment
from asyncdiff.plan.token_layout import Extent, TokenLayout, TokenParts
from asyncdiff.runtime.token_walk import Pair


@dataclass(frozen=True)
class FreshKeys:
    """The exchange at every attention, for a process that computes for one rank.

    Attributes:
        exchange: with the ranks that have the other parts.
        layout, parts: where tokens lie, and who has which.
        moment: which rank makes which part's keys.
        name: of the denoiser, for errors.
        dealt: the sites at which heads are dealt out.
    """

    exchange: Exchange
    layout: TokenLayout
    parts: TokenParts
    moment: Moment
    name: str
    dealt: frozenset[int] = frozenset()

    @property
    def part(self) -> int:
        """The part of this process."""
        (rank,) = self.exchange.ranks
        return next(part for part, source in self.moment.results if source == rank)

    def keys(self, number: int, mine: Pair) -> list[Pair]:
        """Every part's keys and values at an attention, given those of this rank's tokens; waits for the others'."""
        extent, own = self.layout.sites[number].keys, self.part
        lengths = {part: [self.parts.length(extent, part)] * len(mine) for part, _ in self.moment.results}
        given = {
            part: _bundled(mine) if part == own else _bundled_rooms(mine, lengths[part])
            for part, _ in self.moment.results
        }
        shared = self.exchange.share(given, self.moment, self._named("the keys", number)).finish()
        channels = [tensor.shape[-1] for tensor in mine]
        found = [_unbundled(shared[part], channels, lengths[part]) for part, _ in self.moment.results]
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
        parts, own = self.parts, self.part
        mine = [parts.own(tensor, extent, own) for tensor, extent in zip(tensors, extents, strict=True)]
        own_heads, bundles = [heads.of(tensor, own) for tensor in mine], _bundled(mine)
        lengths = {part: [parts.length(extent, part) for extent in extents] for part, _ in self.moment.results}
        others = [(part, rank) for part, rank in self.moment.results if part != own]
        given = {rank: [heads.of(bundle, part) for bundle in bundles] for part, rank in others}
        rooms = {rank: _bundled_rooms(own_heads, lengths[part]) for part, rank in others}
        dealt = self.exchange.deal(given, rooms, self._named("what heads read", number)).finish()
        channels = [tensor.shape[-1] for tensor in mine]
        of_parts = [
            own_heads if part == own else _unbundled(dealt[rank], channels, lengths[part])
            for part, rank in self.moment.results
        ]
        return [
            parts.join(heads.of(tensor, own), extent, own, pieces)
            for tensor, extent, *pieces in zip(tensors, extents, *of_parts, strict=True)
        ]

    def _to_tokens(self, number: int, extent: Extent, heads: "_Heads", made: Tensor) -> Tensor:
        """What attention gives for this rank's tokens, of all heads, from what it gave for all tokens."""
        parts, own = self.parts, self.part
        mine = parts.cut(made, extent, own)
        others = [(part, rank) for part, rank in self.moment.results if part != own]
        given = {rank: [parts.cut(made, extent, part)] for part, rank in others}
        rooms = {rank: [with_size(mine, 1, heads.counts[part])] for part, rank in others}
        dealt = self.exchange.deal(given, rooms, self._named("what heads made", number)).finish()
        return torch.cat([mine if part == own else dealt[rank][0] for part, rank in self.moment.results], 1)

    def _named(self, what: str, number: int) -> str:
        return f"{what} of attention {number} of the denoiser {self.name!r}, part"


class _Heads:
    """How many heads each part's rank has, in order."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts = counts
        self._begins = [0, *itertools.accumulate(counts)]

    def of(self, tensor: Tensor, part: int) -> Tensor:
        """Those of a tensor, shape (batch, heads, tokens, channels)."""
        return tensor.narrow(1, self._begins[part], self.counts[part])


def _bundled(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors in few: those of as many channels one after the other, along the tokens."""
    groups = itertools.groupby(tensors, key=lambda tensor: tensor.shape[-1])
    return [torch.cat(list(group), -2) for _, group in groups]


def _bundled_rooms(like: Sequence[Tensor], lengths: Sequence[int]) -> list[Tensor]:
    """Room for as many of another rank."""
    groups = itertools.groupby(zip(like, lengths, strict=True), key=lambda item: item[0].shape[-1])
    found = []
    for _, group in groups:
        items = list(group)
        found.append(with_size(items[0][0], -2, sum(length for _, length in items)))
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
    shape: Sequence[int] = [size if axis == dim % tensor.ndim else held for axis, held in enumerate(tensor.shape)]
    return torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
