"""Keys and values of all tokens at one attention, exchanged as they are made."""

from collections.abc import Sequence

import torch
from torch import Tensor

from asyncdiff.exchange.protocol import Exchange
from asyncdiff.plan.moments import Moment
from asyncdiff.plan.tokens import TokenParts
from asyncdiff.runtime.token_walk import Pair


def exchanged_keys(exchange: Exchange, parts: TokenParts, name: str, number: int, mine: Pair) -> list[Pair]:
    """Every rank's keys and values, given those of this rank's tokens; waits for the others'.

    Args:
        exchange: of a process that computes for one rank.
        parts: who has which tokens.
        name: of the denoiser, for errors.
        number: of the attention.
    """
    (rank,) = exchange.ranks
    everyone = tuple((source, source) for source in range(parts.count))
    pairs = {source: tuple(_like(tensor, parts.size(source)) for tensor in mine) for source, _ in everyone}
    what = f"the keys of attention {number} of the denoiser {name!r}, part"
    shared = exchange.share({**pairs, rank: mine}, Moment(results=everyone), what).finish()
    return [(shared[source][0], shared[source][1]) for source, _ in everyone]


def with_size(tensor: Tensor, dim: int, size: int) -> Tensor:
    """Room for a tensor that is as long as told along one dimension."""
    shape: Sequence[int] = [size if axis == dim % tensor.ndim else held for axis, held in enumerate(tensor.shape)]
    return torch.empty(shape, dtype=tensor.dtype, device=tensor.device)


def _like(tensor: Tensor, tokens: int) -> Tensor:
    """Room for another rank's keys or values."""
    return with_size(tensor, tensor.ndim - 2, tokens)
