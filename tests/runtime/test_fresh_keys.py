"""Attention of all ranks together, exchanged in threads, is the undivided one; bytes are those of the plan."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
from asyncdiff.plan.key_form import AS_IT_IS, InBits, KeyForm
from asyncdiff.plan.moments import Moment
from asyncdiff.plan.storage import contiguous_stride
from asyncdiff.plan.token_layout import Extent, Site, TokenLayout, TokenParts
from asyncdiff.runtime.fresh_keys import FreshKeys
from asyncdiff.runtime.rounded_keys import RoundedKeys

EIGHT_BITS = InBits(8)


class Posted(LocalExchange):
    """The exchange of one of several ranks, each in a thread."""

    def __init__(self, rank: int, post: Mapping[tuple[int, int], "Queue[list[Tensor]]"]) -> None:
        super().__init__(1)
        self.ranks = (rank,)
        self.sent = 0
        self._rank, self._post = rank, post

    def share(self, results: Mapping[int, Sequence[Tensor]], moment: Moment, what: str = "") -> Shared:
        """As the real one does it: rank r has part r, and gives it to everyone."""
        others = [rank for _, rank in moment.results if rank != self._rank]
        mine, theirs = results[self._rank], {rank: results[rank] for rank in others}
        found = self.deal(dict.fromkeys(others, mine), theirs, what).finish()
        return Shared({**found, self._rank: list(mine)})

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


@dataclass(frozen=True)
class Setting:
    """One attention, of so many ranks."""

    layout: TokenLayout
    count: int
    query: Tensor
    key: Tensor
    value: Tensor
    form: KeyForm = AS_IT_IS
    is_dealt: bool = True

    @property
    def parts(self) -> TokenParts:
        return self.layout.parts(self.count)

    @property
    def dealt(self) -> frozenset[int]:
        return frozenset({0} if self.is_dealt else ())

    def call(self, rank: int | None = None) -> AttentionCall:
        """That of all tokens, or of a rank's own."""
        whole = self.query, self.key, self.value
        mine = whole if rank is None else [part_of(self.layout, tensor, self.count, rank) for tensor in whole]
        return AttentionCall(mine[0], mine[1], mine[2], None, {"dropout_p": 0.0, "is_causal": False})

    def run(self) -> tuple[list[Tensor], int]:
        """What every rank gets, and how many bytes are sent."""
        post: Mapping[tuple[int, int], Queue[list[Tensor]]] = defaultdict(Queue)
        moment = Moment(results=tuple((part, part) for part in range(self.count)))
        exchanges = [Posted(rank, post) for rank in range(self.count)]

        def attend(rank: int) -> Tensor:
            call, extent = self.call(rank), self.layout.sites[0].keys
            fresh = FreshKeys(exchanges[rank], self.layout, self.parts, moment, "a test", self.dealt, self.form)
            if self.is_dealt:
                made = fresh.attend(0, call)
                assert made is not None
                return made
            own = [self.parts.own(tensor, extent, rank) for tensor in (call.key, call.value)]
            pairs = fresh.keys(0, (own[0], own[1]))
            key, value = (
                self.parts.join(tensor, extent, rank, [pair[place] for pair in pairs])
                for place, tensor in enumerate((call.key, call.value))
            )
            return call._replace(key=key, value=value)()

        with ThreadPoolExecutor(self.count) as pool:
            found = list(pool.map(attend, range(self.count)))
        return found, sum(exchange.sent for exchange in exchanges)

    def planned_bytes(self) -> int:
        ranks, layout = range(self.count), self.layout
        return sum(
            layout.dealt_bytes(0, self.parts, source, reader, self.form)
            if self.is_dealt
            else layout.given_bytes(0, self.parts, source, self.form)
            for source in ranks
            for reader in ranks
            if source != reader
        )


@st.composite
def settings_of(draw: st.DrawFn, form: KeyForm, *is_dealt: bool) -> Setting:
    """Any attention that can be divided; heads are dealt out, or not, or one of both."""
    tokens, text, count = draw(st.integers(4, 11)), draw(st.integers(0, 5)), draw(st.integers(2, 4))
    channels = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    heads = max(draw(st.integers(1, 7)), count)
    layout = layout_of(tokens, text, heads, channels, draw(st.booleans()), draw(st.booleans()))
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, tokens + text, size, dtype=torch.float64, generator=generator)
        for size in (channels[0], channels[0], channels[1])
    )
    return Setting(layout, count, query, key, value, form, draw(st.sampled_from(is_dealt)))


@given(setting=settings_of(AS_IT_IS, True))
def test_heads_dealt_out_are_the_undivided_attention(setting: Setting) -> None:
    found, sent = setting.run()
    whole = F.scaled_dot_product_attention(setting.query, setting.key, setting.value)
    for rank, made in enumerate(found):
        torch.testing.assert_close(made, part_of(setting.layout, whole, setting.count, rank))
    assert sent == setting.planned_bytes()


@given(setting=settings_of(EIGHT_BITS, True, False))
def test_in_few_bits_all_ranks_compute_what_one_process_does(setting: Setting) -> None:
    """With odd numbers of channels, too; and near the attention itself: a number is off by half of a 127th at most."""
    found, sent = setting.run()
    rounded = RoundedKeys(setting.layout, setting.parts, setting.dealt, EIGHT_BITS).attend(0, setting.call())
    for rank, made in enumerate(found):
        torch.testing.assert_close(made, part_of(setting.layout, rounded, setting.count, rank))
    assert sent == setting.planned_bytes()
    exact = F.scaled_dot_product_attention(setting.query, setting.key, setting.value)
    assert 0 < (rounded - exact).abs().max() < 0.1


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
