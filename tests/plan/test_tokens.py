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


@given(
    kinds=st.permutations(["picture", "text"]),
    tokens=st.integers(1, 20),
    text=st.integers(1, 12),
    count=SIZES,
    around=st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)),
    data=st.data(),
)
def test_a_text_is_dealt_out_beside_the_picture(
    kinds: list[str], tokens: int, text: int, count: int, around: tuple[int, int, int], data: st.DataObject
) -> None:
    """By lists of places, written down one by one."""
    parts, rank = TokenParts(tokens, count, text), data.draw(st.integers(0, count - 1))
    size = {"picture": tokens, "text": text}
    first = around[0]
    second = first + size[kinds[0]] + around[1]
    start = dict(zip(kinds, (first, second), strict=True))
    extent = Extent(0, start["picture"], start["text"])
    whole = torch.arange(float(second + size[kinds[1]] + around[2]))

    def places(kind: str, rank: int) -> list[int]:
        return list(range(start[kind] + rank * size[kind] // count, start[kind] + (rank + 1) * size[kind] // count))

    def own(rank: int) -> list[int]:
        return places(kinds[0], rank) + places(kinds[1], rank)

    others = {place for other in range(count) for place in own(other)} - set(own(rank))
    mine = parts.cut(whole, extent, rank)
    assert mine.tolist() == [place for place in range(len(whole)) if place not in others]
    assert parts.of(whole, extent, rank).tolist() == own(rank) == parts.own(mine, extent, rank).tolist()
    assert (parts.length(extent, rank), parts.total(extent)) == (len(own(rank)), tokens + text)
    everyone = [torch.tensor([float(place) for place in own(other)]) for other in range(count)]
    assert torch.equal(parts.join(mine, extent, rank, everyone), whole)
    alone = Extent(0, None, start["text"])
    assert parts.of(whole, alone, rank).tolist() == places("text", rank)
    assert parts.length(alone, rank) == len(places("text", rank))
