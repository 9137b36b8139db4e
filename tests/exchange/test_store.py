"""The versions of live edges that a device holds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncdiff.denoiser.graph import Edge
from asyncdiff.exchange.store import EdgeStore

EDGE, OTHER = Edge(0, 0), Edge(3, 1)


@given(st.integers(1, 4), st.lists(st.integers(0, 20), unique=True, max_size=12))
def test_the_newest_versions_are_held_whatever_their_order(depth: int, versions: list[int]) -> None:
    store = EdgeStore(depth)
    held: list[int] = []
    for version in versions:
        store.put(EDGE, version, torch.tensor(version))
        held = sorted([*held, version])[-depth:]
    for version in range(21):
        if version in held:
            assert store.get(EDGE, version).item() == version
        else:
            with pytest.raises(RuntimeError, match=f"but the schedule reads step {version}"):
                store.get(EDGE, version)


def test_edges_have_versions_of_their_own() -> None:
    store = EdgeStore(1)
    store.put(EDGE, 4, torch.tensor(1.0))
    store.put(OTHER, 5, torch.tensor(2.0))
    assert (store.get(EDGE, 4).item(), store.get(OTHER, 5).item()) == (1.0, 2.0)
    store.put(EDGE, 4, torch.tensor(3.0))
    assert store.get(EDGE, 4).item() == 3.0, "a version that is put again takes the place of the earlier one"


def test_what_is_still_on_its_way_is_waited_for_when_it_is_read() -> None:
    arrived = []

    def receive() -> torch.Tensor:
        arrived.append("now")
        return torch.tensor(7.0)

    store = EdgeStore(2)
    store.put(EDGE, 3, receive)
    assert not arrived
    assert store.get(EDGE, 3).item() == 7.0
    assert arrived == ["now"]
