"""What the slowest of several takes, against all draws."""

import itertools
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncdiff.planning.measuring import expected_slowest


@given(times=st.lists(st.floats(0.01, 10), min_size=1, max_size=5), count=st.integers(1, 3))
def test_it_is_the_mean_over_all_draws(times: list[float], count: int) -> None:
    everything = [max(draw) for draw in itertools.product(times, repeat=count)]
    assert expected_slowest(times, count) == pytest.approx(statistics.mean(everything))
