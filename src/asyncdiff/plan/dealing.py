"""Pieces of work of uneven size dealt out among ranks. Pure."""

from collections.abc import Sequence


def deal(sizes: Sequence[int], ranks: int) -> tuple[int, ...]:
    """The rank of every piece: the largest first, each to the rank that has least; the same wherever it is asked."""
    had, owners = [0] * ranks, [0] * len(sizes)
    for piece in sorted(range(len(sizes)), key=lambda piece: -sizes[piece]):
        owners[piece] = had.index(min(had))
        had[owners[piece]] += sizes[piece]
    return tuple(owners)
