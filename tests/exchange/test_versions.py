"""Packed versions follow what they are given, closely, and sender and reader have the same."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncdiff.denoiser.graph import Edge
from asyncdiff.exchange.store import EdgeStore, Reading
from asyncdiff.exchange.versions import ELEMENTS_AT_ONCE, PackedVersions
from asyncdiff.plan.method import FORECAST, Method
from asyncdiff.plan.packing import Packing
from asyncdiff.plan.storage import Span
from tests.versions import lay_out_by_hand

CPU = torch.device("cpu")
EDGE = Edge(0, 0)
SIZE = 64


def course(count: int, seed: int) -> list[torch.Tensor]:
    """A tensor on its way: a smooth curve."""
    generator = torch.Generator().manual_seed(seed)
    start, slope, bend = torch.randn(3, SIZE, generator=generator)
    return [start + slope * (step / 10) + bend * (step / 10) ** 2 for step in range(count)]


def packed_store(depth: int, bits: int, dtype: torch.dtype = torch.float32) -> EdgeStore:
    storage = lay_out_by_hand({EDGE: torch.zeros(SIZE, dtype=dtype)})
    return EdgeStore(storage, depth, CPU, {dtype: Packing(bits, 16)})


@given(bits=st.sampled_from([4, 8]), count=st.integers(2, 12), seed=st.integers(0, 50))
def test_what_rounding_leaves_does_not_add_up(bits: int, count: int, seed: int) -> None:
    """The newest version is off by half a step of the last difference, however many there were before."""
    store, versions = packed_store(3, bits), course(count, seed)
    before = versions[0]
    for step, version in enumerate(versions):
        store.put(EDGE, version)
        store.arrive([step])
        newest = store.newest(EDGE, step).clone()
        size = (version - before).view(-1, 16).abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        off = (newest - version).view(-1, 16).abs()
        assert bool((off <= size * (0.5 + 2**-8 * 2 ** (bits - 1)) + 1e-6).all())
        before = newest


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_reader_that_receives_has_what_the_sender_knows(bits: int, dtype: torch.dtype) -> None:
    reader, sender = packed_store(4, bits, dtype), packed_store(1, bits, dtype)
    span = Span(dtype, 0, SIZE)
    for step, version in enumerate(course(9, seed=1)):
        sender.put(EDGE, version.to(dtype))
        if step == 0:
            reader.put(EDGE, version.to(dtype))  # in full, by the reader itself
            reader.arrive([step])
        else:
            for into, sent in zip(reader.arriving(span), sender.arriving(span), strict=True):
                into.copy_(sent)
            reader.arrive([step], [EDGE])
        sender.arrive([step])
        assert torch.equal(reader.newest(EDGE, step), sender.newest(EDGE, step))


@pytest.mark.parametrize("method", [FORECAST, Method("linear")], ids=["fitted", "line"])
def test_forecasts_are_nearly_those_of_whole_versions(method: Method) -> None:
    whole = EdgeStore(lay_out_by_hand({EDGE: torch.zeros(SIZE)}), 6, CPU)
    versions = course(8, seed=3)
    packed = {bits: packed_store(6, bits) for bits in (4, 8)}
    for store, (step, version) in itertools.product((whole, *packed.values()), enumerate(versions[:-1])):
        store.put(EDGE, version)
        store.arrive([step])
    count = method.versions
    steps = tuple(range(6, 6 - count, -1))
    reading = Reading(steps, tuple(map(float, steps)), 7.0, method, whole.spans_of(frozenset({EDGE}), frozenset()))
    expected = whole.expected(EDGE, reading)
    off = {bits: float((store.expected(EDGE, reading) - expected).norm()) for bits, store in packed.items()}
    moved = float((expected - versions[-2]).norm())
    assert off[8] < 0.03 * moved and off[8] < off[4] < 0.5 * moved
    errors = [store.errors(steps, method, tuple(map(float, steps))) for store in (whole, *packed.values())]
    assert all(float(error) < 0.1 for error in errors)


def test_what_is_no_number_is_gone_with_the_next_version() -> None:
    store = packed_store(3, 8)
    for step, value in enumerate((1.0, torch.nan, 2.0)):
        store.put(EDGE, torch.full((SIZE,), value))
        store.arrive([step])
        assert bool(store.newest(EDGE, step).isnan().all()) == (step == 1)
    torch.testing.assert_close(store.newest(EDGE, 2), torch.full((SIZE,), 2.0), rtol=0.01, atol=0)


def test_what_does_not_change_is_repeated() -> None:
    store = packed_store(3, 4)
    for steps in ([1], [2, 3]):
        store.put(EDGE, torch.full((SIZE,), float(steps[0])))
        store.arrive(steps)
    among = store.spans_of(frozenset({EDGE}), frozenset())
    expected = store.expected(EDGE, Reading((3, 2), (3.0, 2.0), 4.0, Method("linear"), among))
    assert torch.equal(expected, store.newest(EDGE, 3)), "nothing has changed between them"
    assert expected.tolist() == pytest.approx([2.0] * SIZE, rel=2**-8)


def test_memory_is_that_of_the_newest_and_of_packed_differences() -> None:
    held = PackedVersions(1280, torch.bfloat16, 6, CPU, Packing(4, 128))
    assert held.bytes == 1280 * 2 + 6 * 10 * 66  # five differences, and the one that arrives
    assert ELEMENTS_AT_ONCE % 128 == 0
