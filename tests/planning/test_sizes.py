"""Sizes at which a call is tried: two others to count by, and one that would do in place of one that does not."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from asyncdiff.errors import ConfigurationError, SplitError
from asyncdiff.planning.sizes import other_sizes, possible_size


def trace(height: int, width: int) -> Any:
    """Of a call that gives so many numbers."""
    return SimpleNamespace(calls=[SimpleNamespace(outputs=[SimpleNamespace(shape=(height, width), value=1)])])


@pytest.mark.parametrize("most", [64, 1024])
def test_sizes_that_the_model_cannot_have_are_passed_over(most: int) -> None:
    def at(height: int, width: int) -> Any:
        if max(height, width) > most:
            raise ConfigurationError("too large")
        return trace(height, width)

    found = [one.calls[0].outputs[0].shape for one in other_sizes(trace(64, 64), at)]
    assert len({height * width for height, width in [(64, 64), *found]}) == 3
    assert max(side for shape in found for side in shape) <= most


def test_no_other_size() -> None:
    def at(height: int, width: int) -> Any:
        raise ConfigurationError("no such size")

    with pytest.raises(SplitError, match="by pictures of other sizes it cannot be counted: no such size"):
        other_sizes(trace(64, 64), at)


@pytest.mark.parametrize(
    ("told", "multiple", "most", "found"),
    [
        ({"height": 33}, 8, 2000, {"height": 32}),
        ({"height": 33, "width": 64}, 8, 2000, {"height": 32, "width": 64}),
        ({"height": 1000, "width": 1050}, 16, 2000, {"height": 992, "width": 1056}),
        ({"height": 3}, 32, 2000, {"height": 32}),
        ({"height": 4096}, 8, 2000, {}),
    ],
)
def test_a_size_that_would_do(told: Mapping[str, int], multiple: int, most: int, found: Mapping[str, int]) -> None:
    def works(size: Mapping[str, int]) -> bool:
        return all(pixels % multiple == 0 and pixels <= most for pixels in size.values())

    assert possible_size(told, works) == found


def test_where_it_is_not_the_size() -> None:
    assert possible_size({"height": 33}, lambda size: False) is None
