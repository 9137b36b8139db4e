"""Keys and values of all tokens at one attention, exchanged as they are made."""

from collections.abc import Sequence

import torch
from torch import Tensor

from asyncdiff.exchange.protocol import Exchange
from asyncdiff.plan.moments import Moment
from asyncdiff.plan.token_layout import TokenLayout, TokenParts
from asyncdiff.runtime.token_walk import Pair


def exchanged_keys(
    exchange: Exchange, layout: TokenLayout, parts: TokenParts, moment: Moment, name: str, number: int, mine: Pair
) -> list[Pair]:
    """Every part's keys and values, given those of this rank's tokens; waits for the others'.

    Args:
        exchange: of a process that computes for one rank.
        layout, parts: where tokens lie, and who has which.
        moment: which rank makes which part's.
        name: of the denoiser, for errors.
        number: of the attention.
    """
    (rank,), extent = exchange.ranks, layout.sites[number].keys
    pairs = {
        part: mine if source == rank else tuple(_like(tensor, parts.length(extent, part)) for tensor in mine)
        for part, source in moment.results
    }
    what = f"the keys of attention {number} of the denoiser {name!r}, part"
    shared = exchange.share(pairs, moment, what).finish()
    return [(shared[part][0], shared[part][1]) for part, _ in moment.results]


def with_size(tensor: Tensor, dim: int, size: int) -> Tensor:
    """Room for a tensor that is as long as told along one dimension."""
    shape: Sequence[int] = [size if axis == dim % tensor.ndim else held for axis, held in enumerate(tensor.shape)]
    return torch.empty(shape, dtype=tensor.dtype, device=tensor.device)


def _like(tensor: Tensor, tokens: int) -> Tensor:
    """Room for another part's keys or values."""
    return with_size(tensor, tensor.ndim - 2, tokens)
