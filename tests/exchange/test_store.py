"""The versions of live edges that a device holds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncdiff.denoiser.graph import Edge
from asyncdiff.exchange.store import EdgeStore, Reading
from asyncdiff.plan.method import Method
from tests.versions import lay_out_by_hand

EDGE, OTHER = Edge(0, 0), Edge(3, 1)
CPU = torch.device("cpu")
LINE = Method("linear", residual=False, fresh_sum=False)


def _store(depth: int) -> EdgeStore:
    return EdgeStore(lay_out_by_hand({EDGE: torch.zeros(2), OTHER: torch.zeros(3)}), depth, CPU)


def _put(store: EdgeStore, *steps: int, value: float) -> None:
    store.put(EDGE, torch.full((2,), value))
    store.put(OTHER, torch.full((3,), -value))
    store.arrive(steps)


@given(st.integers(1, 4), st.lists(st.integers(0, 20), unique=True, min_size=1, max_size=12).map(sorted))
def test_the_newest_versions_are_held(depth: int, steps: list[int]) -> None:
    store = _store(depth)
    for step in steps:
        _put(store, step, value=float(step))
    newest_first = steps[::-1]
    assert store.newest(EDGE, newest_first[0]).tolist() == [steps[-1]] * 2
    assert store.newest(OTHER, newest_first[0]).tolist() == [-steps[-1]] * 3
    among = store.spans_of(frozenset({EDGE, OTHER}), frozenset())
    for count in range(2, len(steps) + 1):
        times = tuple(map(float, newest_first[:count]))
        reading = Reading(tuple(newest_first[:count]), times, 30.0, LINE, among)
        if count > depth:
            with pytest.raises(RuntimeError, match=r"but the schedule reads steps \[\d+, "):
                store.expected(EDGE, reading)
        else:
            assert store.expected(EDGE, reading).tolist() == pytest.approx([30.0] * 2)
            assert store.expected(OTHER, reading).tolist() == pytest.approx([-30.0] * 3)


def test_what_the_schedule_does_not_read_is_refused() -> None:
    store = _store(2)
    with pytest.raises(RuntimeError, match=r"is there of steps \[\], but"):
        store.newest(EDGE, 3)
    _put(store, 4, value=1.0)
    with pytest.raises(RuntimeError, match=r"is there of steps \[4\], but the schedule reads steps \[5\]"):
        store.newest(EDGE, 5)
    store.put(EDGE, torch.ones(2))
    store.arrive([5])
    assert store.newest(EDGE, 5).tolist() == [1.0, 1.0]
    with pytest.raises(RuntimeError, match=r"is there of steps \[\], but the schedule reads steps \[5\]"):
        store.newest(OTHER, 5)


def test_one_version_may_stand_for_several_steps() -> None:
    store = _store(3)
    _put(store, 1, value=1.0)
    _put(store, 2, 3, value=5.0)
    among = store.spans_of(frozenset({EDGE}), frozenset())
    reading = Reading((3, 2), (3.0, 2.0), 4.0, LINE, among)
    assert store.expected(EDGE, reading).tolist() == [5.0, 5.0], "nothing has changed between them"
    assert store.newest(EDGE, 3).tolist() == [5.0, 5.0]


def test_what_is_still_on_its_way_is_waited_for_when_it_is_read() -> None:
    store, arrived = _store(2), []
    span = next(iter(store.spans_of(frozenset({EDGE}), frozenset())))
    (into,) = store.arriving(span)

    def receive() -> None:
        arrived.append("now")
        into.fill_(7.0)

    store.arrive([3], [EDGE], receive)
    assert not arrived
    assert store.newest(EDGE, 3).tolist() == [7.0, 7.0]
    assert arrived == ["now"]


def test_of_what_is_read_once_no_forecast_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts that are small; asked for again, it is forecast again."""
    monkeypatch.setattr("asyncdiff.exchange.store.ELEMENTS_AT_ONCE", 4)
    store = _store(2)
    for step in (1, 2):
        _put(store, step, value=float(step))
    edges = frozenset({EDGE, OTHER})
    assert len(store.spans_of(edges)) == 1 and len(store.spans_of(edges, in_parts=True)) == 2
    reading = Reading((2, 1), (2.0, 1.0), 3.0, LINE, store.spans_of(edges), is_read_once=True)
    assert store.expected(EDGE, reading).tolist() == [3.0, 3.0]
    assert len(store._expected[reading]) == 1, "the other one lies in it"
    assert store.expected(OTHER, reading).tolist() == [-3.0] * 3
    assert not store._expected[reading]
    assert store.expected(EDGE, reading).tolist() == [3.0, 3.0]
