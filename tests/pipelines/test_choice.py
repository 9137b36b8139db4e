"""`AsyncDiff(pipe)` alone: the devices are shared out exactly where that is possible, and by components where not."""

from typing import Any

import pytest
import torch
from torch import Tensor

from asyncdiff import AsyncDiff
from tests.comparison import relative_error
from tests.processes import RankError, run_ranks
from tests.runtime.test_guidance import Pipeline
from tests.tiny import PIPELINES, run

STEPS = 8


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
    with pytest.raises(RankError, match="the number of groups that share out every step is not the same on all ranks"):
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
