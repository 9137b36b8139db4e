"""Pieces of uneven size among ranks."""

from hypothesis import given
from hypothesis import strategies as st

from asyncdiff.plan.dealing import deal


@given(st.lists(st.integers(1, 100)), st.integers(1, 8))
def test_no_rank_has_more_than_the_others_by_more_than_one_piece(sizes: list[int], ranks: int) -> None:
    owners = deal(sizes, ranks)
    had = [sum(size for size, owner in zip(sizes, owners, strict=True) if owner == rank) for rank in range(ranks)]
    assert sum(had) == sum(sizes)
    assert max(had) - min(had) <= max(sizes, default=0)


def test_the_tiles_of_a_picture() -> None:
    """Of 64 by 64 latents in tiles of 32 that overlap by 8: two of three rows and columns are whole, one is a half."""
    sizes = [height * width for height in (32, 32, 16) for width in (32, 32, 16)]
    owners = deal(sizes, 2)
    assert sum(size for size, owner in zip(sizes, owners, strict=True) if owner == 0) == 3.25 * 32 * 32
