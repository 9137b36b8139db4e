"""Tokens dealt out: nothing is lost, whatever lies around them."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncdiff.plan.token_layout import Extent, TokenParts

SIZES = st.integers(1, 9)


@given(tokens=st.integers(1, 40), count=SIZES)
def test_parts_are_even_and_in_order(tokens: int, count: int) -> None:
    parts = TokenParts(tokens, count)
    sizes = [parts.size(rank) for rank in range(count)]
    assert sum(sizes) == tokens
    assert max(sizes) - min(sizes) <= 1
    assert parts.bounds == tuple(sum(sizes[:rank]) for rank in range(count + 1))


@given(
    tokens=st.integers(1, 20),
    count=SIZES,
    before=st.integers(0, 4),
    after=st.integers(0, 4),
    dim=st.integers(0, 2),
    data=st.data(),
)
def test_what_was_cut_is_joined_again(
    tokens: int, count: int, before: int, after: int, dim: int, data: st.DataObject
) -> None:
    parts, extent = TokenParts(tokens, count), Extent(dim, before)
    shape = [2, 3, 2]
    shape[dim] = before + tokens + after
    whole = torch.arange(float(torch.Size(shape).numel())).view(shape)
    rank = data.draw(st.integers(0, count - 1))
    mine = parts.cut(whole, extent, rank)
    assert mine.shape[dim] == before + parts.size(rank) + after
    everyone = [parts.own(parts.cut(whole, extent, other), extent, other) for other in range(count)]
    assert all(torch.equal(part, parts.of(whole, extent, other)) for other, part in enumerate(everyone))
    assert torch.equal(parts.join(mine, extent, rank, everyone), whole)
