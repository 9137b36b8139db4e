"""Pieces of work, or of memory, of uneven size dealt out among ranks. Pure."""

from collections.abc import Sequence


def deal(sizes: Sequence[int], ranks: int, had: Sequence[int] = ()) -> tuple[int, ...]:
    """The rank of every piece: the largest first, each to the rank that has least; the same wherever it is asked.

    Args:
        had: what each rank has before; nothing, where it is not said.
    """
    held, owners = list(had) or [0] * ranks, [0] * len(sizes)
    for piece in sorted(range(len(sizes)), key=lambda piece: -sizes[piece]):
        owners[piece] = held.index(min(held))
        held[owners[piece]] += sizes[piece]
    return tuple(owners)
