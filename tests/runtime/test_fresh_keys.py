"""Attention of all ranks together, exchanged in threads, is the undivided one; bytes are those of the plan."""

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from queue import Queue

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from asyncdiff.denoiser.attention import AttentionCall
from asyncdiff.denoiser.graph import Graph
from asyncdiff.denoiser.trace import Leaf
from asyncdiff.exchange.local import LocalExchange, Shared
from asyncdiff.plan.moments import Moment
from asyncdiff.plan.storage import contiguous_stride
from asyncdiff.plan.token_layout import Extent, Site, TokenLayout
from asyncdiff.runtime.fresh_keys import FreshKeys

FLOAT = torch.float64.itemsize


class Posted(LocalExchange):
    """The exchange of one of several ranks, each in a thread."""

    def __init__(self, rank: int, post: Mapping[tuple[int, int], "Queue[list[Tensor]]"]) -> None:
        super().__init__(1)
        self.ranks = (rank,)
        self.sent = 0
        self._rank, self._post = rank, post

    def deal(self, given: Mapping[int, Sequence[Tensor]], rooms: Mapping[int, Sequence[Tensor]], what: str) -> Shared:
        for reader, tensors in given.items():
            self.sent += sum(tensor.nbytes for tensor in tensors)
            self._post[self._rank, reader].put([tensor.clone() for tensor in tensors])
        found = {}
        for source, expected in rooms.items():
            found[source] = self._post[source, self._rank].get(timeout=10)
            assert [tensor.shape for tensor in found[source]] == [room.shape for room in expected]
        return Shared(found)


def layout_of(
    tokens: int, text: int, heads: int, channels: tuple[int, int], text_first: bool, divides: bool
) -> TokenLayout:
    """One attention of a picture's tokens with a text before or after them, which is divided or not."""
    total, start = tokens + text, text if text_first else 0
    place = (0 if text_first else tokens) if divides and text else None
    extent = Extent(2, start, place)
    forms = tuple(
        Leaf(0, shape, contiguous_stride(shape), torch.float64)
        for shape in ((2, heads, total, size) for size in channels)
    )
    site = Site(0, extent, extent, total, (forms[0], forms[1]), total, heads)
    graph = Graph((), frozenset(), 0.0, 0.0)
    return TokenLayout(graph, tokens, 0, 0, {}, {}, {}, {0: site}, {}, (0,), text if divides else 0)


def part_of(layout: TokenLayout, tensor: Tensor, count: int, part: int) -> Tensor:
    return layout.parts(count).cut(tensor, layout.sites[0].keys, part)


@given(
    tokens=st.integers(4, 11),
    text=st.integers(0, 5),
    heads=st.integers(1, 7),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    count=st.integers(2, 4),
    text_first=st.booleans(),
    divides=st.booleans(),
)
def test_heads_dealt_out_are_the_undivided_attention(
    tokens: int, text: int, heads: int, channels: tuple[int, int], count: int, text_first: bool, divides: bool
) -> None:
    heads = max(heads, count)
    layout = layout_of(tokens, text, heads, channels, text_first, divides)
    parts = layout.parts(count)
    sizes = (channels[0], channels[0], channels[1])
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, tokens + text, size, dtype=torch.float64, generator=generator) for size in sizes
    )
    whole = F.scaled_dot_product_attention(query, key, value)
    post: Mapping[tuple[int, int], Queue[list[Tensor]]] = defaultdict(Queue)
    moment = Moment(results=tuple((part, part) for part in range(count)))
    exchanges = [Posted(rank, post) for rank in range(count)]
    found: dict[int, Tensor | None] = {}

    def attend(rank: int) -> None:
        mine = [part_of(layout, tensor, count, rank) for tensor in (query, key, value)]
        call = AttentionCall(mine[0], mine[1], mine[2], None, {"dropout_p": 0.0, "is_causal": False})
        fresh = FreshKeys(exchanges[rank], layout, parts, moment, "a test", frozenset({0}))
        found[rank] = fresh.attend(0, call)

    threads = [threading.Thread(target=attend, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank in range(count):
        made = found[rank]
        assert made is not None
        torch.testing.assert_close(made, part_of(layout, whole, count, rank))
    sent = sum(exchange.sent for exchange in exchanges)
    planned = sum(
        layout.dealt_bytes(0, parts, source, reader)
        for source in range(count)
        for reader in range(count)
        if source != reader
    )
    assert sent == planned


@pytest.mark.parametrize(("count", "heads", "is_dealt"), [(2, 8, False), (3, 8, True), (8, 8, True), (8, 4, False)])
def test_heads_are_dealt_out_where_less_travels(count: int, heads: int, is_dealt: bool) -> None:
    layout = layout_of(64, 0, heads, (4, 4), True, False)
    assert (0 in layout.dealt(layout.parts(count))) is is_dealt


def test_a_text_that_every_rank_has_makes_it_dearer() -> None:
    """What attention gives for it goes from every rank to every other."""
    layout = layout_of(16, 64, 4, (4, 4), True, False)
    assert not layout.dealt(layout.parts(3))
    assert layout_of(16, 64, 4, (4, 4), True, True).dealt(layout_of(16, 64, 4, (4, 4), True, True).parts(3))


@pytest.mark.parametrize("change", [{"mask": torch.zeros(1)}, {"options": {"dropout_p": 0.0, "is_causal": True}}])
def test_what_has_no_heads_apart_is_left_to_keys(change: dict[str, object]) -> None:
    layout = layout_of(8, 0, 4, (2, 2), True, False)
    query = torch.zeros(2, 4, 4, 2)
    call = AttentionCall(query, query, query, None, {"dropout_p": 0.0, "is_causal": False})._replace(**change)  # type: ignore[arg-type]
    fresh = FreshKeys(LocalExchange(1), layout, layout.parts(2), Moment(results=((0, 0), (1, 1))), "", frozenset({0}))
    assert fresh.attend(0, call) is None
