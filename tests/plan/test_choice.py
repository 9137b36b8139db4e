"""How many groups share out every step: against all that fit, and by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncdiff.plan.choice import choose_groups


@given(st.integers(1, 16), st.integers(1, 4), st.integers(1, 16), st.booleans())
def test_groups_fit(world_size: int, stride: int, batch: int, has_branches: bool) -> None:
    groups = choose_groups(world_size, stride, batch, has_branches)
    assert world_size % groups == 0
    assert groups == 1 or world_size // groups >= stride
    fitting = [g for g in range(2, world_size + 1) if not world_size % g and world_size // g >= stride]
    if batch > 1:
        # Each group computes so many members, some of which may be other groups' too.
        used = {g: batch / (g * math.ceil(batch / g)) for g in fitting}
        chosen = max((g for g in fitting if used[g] >= (1 if has_branches else 0.75)), default=1)
        assert groups == (2 if chosen == 1 and has_branches and 2 in fitting else chosen)


@pytest.mark.parametrize(
    ("world_size", "stride", "batch", "has_branches", "groups"),
    [
        (1, 1, 2, True, 1),
        (2, 1, 2, True, 2),  # both branches in one batch
        (4, 1, 2, True, 2),
        (8, 1, 2, True, 2),
        (4, 1, 4, True, 4),  # of two pictures
        (4, 1, 4, False, 4),  # of four
        (3, 1, 2, True, 1),
        (2, 1, 3, True, 2),  # three branches in a batch, or two calls for three pictures
        (2, 1, 3, False, 2),  # both compute two of three pictures
        (4, 1, 3, False, 4),
        (4, 1, 3, True, 2),
        (8, 1, 5, False, 2),  # more would be used too little
        (8, 1, 3, False, 4),
        (2, 1, 1, True, 2),  # a call for each branch
        (2, 1, 1, False, 1),
        (2, 2, 2, True, 1),  # a group is too small for the stride
    ],
)
def test_choices(world_size: int, stride: int, batch: int, has_branches: bool, groups: int) -> None:
    assert choose_groups(world_size, stride, batch, has_branches) == groups
