"""`AsyncDiff(pipe)` alone: the devices are shared out exactly where that is possible, and by components where not."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from asyncdiff import AsyncDiff
from asyncdiff.plan.choice import choose_groups
from tests.comparison import relative_error
from tests.processes import RankError, run_ranks
from tests.runtime.test_guidance import Pipeline
from tests.tiny import PIPELINES, run

STEPS = 8


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


def _generate_three_times(tiny: str, unguided: dict[str, Any], executor: Any) -> list[tuple[int, int, Tensor]]:
    """With guidance, without, and with it again: the groups, the components and the result of each."""
    pipe = PIPELINES[tiny].build()
    found = []
    with AsyncDiff(pipe, executor=executor, timeout=60) as async_diff:
        for arguments in ({}, unguided, {}):
            result = run(pipe, PIPELINES[tiny], num_inference_steps=STEPS, **arguments)
            report = async_diff.report()
            found.append((report.guidance, report.components, result))
            assert report.accelerated
    return found


def _on_ranks(rank: int) -> list[tuple[int, int, Tensor]]:
    del rank
    return _generate_three_times("sd3", {"guidance_scale": 1.0}, "distributed")


def test_every_generation_has_its_own_choice() -> None:
    unguided = {"guidance_scale": 1.0}
    local = _generate_three_times("sd3", unguided, "local")
    assert [(groups, components) for groups, components, _ in local] == [(2, 1), (1, 2), (2, 1)]
    pipe = PIPELINES["sd3"].build()
    plain = [run(pipe, PIPELINES["sd3"], num_inference_steps=STEPS, **more) for more in ({}, unguided)]
    assert relative_error(local[0][2], plain[0]) < 1e-5, "sharing out is exact"
    assert 1e-5 < relative_error(local[1][2], plain[1]) < 1, "components are not"
    assert torch.equal(local[0][2], local[2][2])
    for ranks in run_ranks(2, _on_ranks):
        for (groups, components, found), (others, other_components, expected) in zip(ranks, local, strict=True):
            assert (groups, components) == (others, other_components)
            assert relative_error(found, expected) < 1e-5


def test_a_call_for_each_branch() -> None:
    """The pipeline says that it guides, so two groups can have a branch each."""
    tiny = PIPELINES["wan21"]
    pipe = tiny.build()
    plain = run(pipe, tiny)
    with AsyncDiff(pipe, executor="local", warmup=99) as async_diff:
        found = run(pipe, tiny)
        assert async_diff.report().guidance == 2
        assert async_diff.report().denoisers[0].guidance.deferred > 0
    assert relative_error(found, plain) < 1e-5


@pytest.mark.filterwarnings("ignore:guidance=2")
def test_what_could_not_be_shared_out_is_not_tried_again() -> None:
    """A pipeline that reads one branch before it asks for the other gains nothing by groups; the next call divides."""
    pipe: Any = Pipeline()
    pipe.do_classifier_free_guidance = True
    with AsyncDiff(pipe, executor="local", warmup=2, cooldown=0) as async_diff:
        assert torch.equal(pipe(reads_early=True), Pipeline()(reads_early=True))
        assert (async_diff.report().guidance, async_diff.report().components) == (2, 1)
        pipe(reads_early=True)
        assert (async_diff.report().guidance, async_diff.report().components) == (1, 2)
        assert async_diff.report().denoisers[0].counts.rounds > 0


def _different_calls(rank: int) -> None:
    pipe = PIPELINES["sd3"].build()
    with AsyncDiff(pipe, timeout=20):
        run(pipe, PIPELINES["sd3"], guidance_scale=1.0 if rank else 5.0)


def test_ranks_that_would_choose_differently() -> None:
    with pytest.raises(RankError, match="the number of groups that share out every step must be the same"):
        run_ranks(2, _different_calls)


def test_disabling_leaves_the_pipeline_as_it_was() -> None:
    tiny = PIPELINES["sd3"]
    pipe = tiny.build()
    plain = run(pipe, tiny)
    before = set(vars(pipe.transformer)), set(vars(pipe.scheduler))
    with AsyncDiff(pipe, executor="local"):
        run(pipe, tiny)
    assert (set(vars(pipe.transformer)), set(vars(pipe.scheduler))) == before
    assert torch.equal(run(pipe, tiny), plain)


def test_one_device_is_left_alone_unless_steps_are_bridged() -> None:
    tiny = PIPELINES["sd3"]
    pipe = tiny.build()
    with AsyncDiff(pipe, components=1, bridge=2, executor="local") as async_diff:
        run(pipe, tiny, num_inference_steps=2 * STEPS)
        assert async_diff.report().accelerated
