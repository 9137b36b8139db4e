"""Some of the processes: pairs with a prompt each, and one that validates while the others do something else."""

import functools
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import init_device_mesh

from asyncdiff import AsyncDiff, ConfigurationError, ExchangeError
from asyncdiff.exchange import groups
from tests.processes import RankError, run_ranks
from tests.tiny import PIPELINES, run

TINY = PIPELINES["sd3"]
STEPS = 8
# Of each pair, the prompts that it draws one after another (what the usual one's numbers are multiplied by), and the
# settings, attached anew for each.
PROMPTS = ((1.0, 0.5), (-1.0, 2.0))
SETTINGS: tuple[dict[str, Any], ...] = ({"components": 2}, {}, {"components": 2, "bridge": 2, "cooldown": 0})


def _draw(pipe: Any, prompt: float, **more: Any) -> Tensor:
    embeds = TINY.inputs(pipe)["prompt_embeds"] * prompt
    return run(pipe, TINY, prompt_embeds=embeds, num_inference_steps=STEPS, **more)


def _draw_all(pair: int, number: int = len(SETTINGS), **where: Any) -> list[Tensor]:
    """With the first so many settings."""
    found = []
    for settings in SETTINGS[:number]:
        pipe = TINY.build()
        with AsyncDiff(pipe, timeout=60, **where, **settings) as async_diff:
            # The second pair draws one more, so that they are never at the same place.
            found += [_draw(pipe, prompt) for prompt in (*PROMPTS[pair], *PROMPTS[pair][:pair])]
            assert async_diff.report().denoisers[0].counts.bridged or "bridge" not in settings
    return found


@functools.cache
def _alone(pair: int) -> list[Tensor]:
    """What a pair draws, in one process."""
    return _draw_all(pair, executor="local")


def _in_pairs(rank: int, by: str, number: int) -> tuple[int, list[Tensor]]:
    pair = rank // 2
    if by == "mesh":
        given: Any = init_device_mesh("cpu", (2, 2), mesh_dim_names=("prompt", "component"))["component"]
    else:
        # The ranks of a pair need be no neighbours.
        pair = rank % 2 if by == "strided" else pair
        both = [[0, 2], [1, 3]] if by == "strided" else [[0, 1], [2, 3]]
        given = [dist.new_group(ranks) for ranks in both][pair]
    found = _draw_all(pair, number, process_group=given)
    with AsyncDiff(TINY.build(), components=2, process_group=given, timeout=60) as async_diff:
        return async_diff.rank, found


# What a pair draws does not depend on how it was named.
@pytest.mark.parametrize(
    ("by", "number"),
    [
        ("strided", 1),
        pytest.param("mesh", 1, marks=pytest.mark.whole),
        *(pytest.param(by, 3, marks=pytest.mark.whole) for by in ("strided", "mesh", "groups")),
    ],
)
def test_pairs_with_a_prompt_each(by: str, number: int) -> None:
    ranks = run_ranks(4, _in_pairs, by, number)
    assert [rank for rank, _ in ranks] == ([0, 0, 1, 1] if by == "strided" else [0, 1, 0, 1])
    for pair in range(2):
        expected = _alone(pair)[: number * (2 + pair)]
        assert not torch.allclose(expected[0], expected[1])
        for _, found in ranks[pair::2] if by == "strided" else ranks[2 * pair : 2 * pair + 2]:
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def _by_the_given_group(rank: int) -> Tensor:
    """As on NCCL, where the default group's communicator is there already: no other is split off it."""
    pair = [dist.new_group(ranks) for ranks in ([0, 1], [2, 3])][rank // 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "can_be_made_by_members", lambda backend: False)
        pipe = TINY.build()
        with AsyncDiff(pipe, components=2, process_group=pair, timeout=60):
            found = _draw(pipe, PROMPTS[rank // 2][0])
    total = torch.tensor(1.0)
    dist.all_reduce(total, group=pair)  # it is the user's, and still there
    assert total.item() == 2.0
    return found


def test_on_the_group_that_is_given() -> None:
    found = run_ranks(4, _by_the_given_group)
    for pair in range(2):
        expected = _alone(pair)[0]
        for one in found[2 * pair : 2 * pair + 2]:
            torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-5)


def _made_late(rank: int, of_all: bool) -> list[bool]:
    """Rank 0 is slow to have a group: has it when the other goes on, each time?"""
    store, found = distributed_c10d._get_default_store(), []
    owner, name = (dist, "new_group") if of_all else (groups, "_among_members")
    real = getattr(owner, name)
    pair = None if of_all else dist.new_group([0, 1])  # every rank makes it, as torch wants it
    if rank == 2:
        return []
    made = groups.Groups(pair, 20)
    for each in ("first", "second"):

        def make(*given: Any, each: str = each, **named: Any) -> dist.ProcessGroup:
            group: dist.ProcessGroup = real(*given, **named)
            if rank == 0:
                time.sleep(0.3)
                store.set(f"test: {each} made", "")
            return group

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, make)
            group = made.make([[0, 1]], "gloo", 20)
        found.append(store.check([f"test: {each} made"]))
        made.end(group)
        del group
    return found


@pytest.mark.parametrize("of_all", [False, True], ids=["of some", "of all"])
def test_a_group_is_there_when_all_have_it(of_all: bool) -> None:
    """A member that ended it at once would close connections that another is still making."""
    expected = [[True, True], [True, True]]
    assert run_ranks(2 if of_all else 3, _made_late, of_all) == expected + [[]] * (not of_all)


def _stop(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
    if index == 3:
        raise KeyError("stop")
    return values


def _stopped(rank: int) -> list[Tensor]:
    """In the second pair a generation fails on one rank, and the next is drawn by both; the first is not concerned."""
    pair = rank // 2
    given = [dist.new_group(ranks) for ranks in ([0, 1], [2, 3])][pair]
    pipe = TINY.build()
    with AsyncDiff(pipe, components=2, process_group=given, timeout=30):
        found = [_draw(pipe, PROMPTS[pair][0])]
        if pair == 1:
            more = {"callback_on_step_end": _stop} if rank == 3 else {}
            with pytest.raises(KeyError if rank == 3 else ExchangeError, match="stop" if rank == 3 else "rank 2: .*"):
                _draw(pipe, PROMPTS[pair][0], **more)
        return [*found, _draw(pipe, PROMPTS[pair][0])]


def test_a_failure_concerns_its_own_group() -> None:
    for first, second in run_ranks(4, _stopped):
        assert torch.equal(first, second)


def _one_validates(rank: int) -> Tensor | float:
    """Rank 0 draws, and joins the others' work afterwards."""
    total = torch.tensor(float(rank))
    if rank:
        work = dist.all_reduce(total, async_op=True)
        work.wait()
        return total.item()
    pipe = TINY.build()
    with AsyncDiff(pipe, components=2, executor="local"):
        found = _draw(pipe, PROMPTS[0][0])
    dist.all_reduce(total)
    return found


def test_one_rank_alone() -> None:
    found, total = run_ranks(2, _one_validates)
    assert total == 1.0
    torch.testing.assert_close(found, _alone(0)[0], rtol=0, atol=0)


def _alone_by_mistake(rank: int) -> float:
    """Rank 0 attaches and the other does not; the user's own groups can still be made afterwards."""
    if rank == 0:
        with pytest.raises(ExchangeError, match=r"rank 0: not all of the 2 ranks joined within 1 s") as caught:
            AsyncDiff(TINY.build(), components=2, timeout=1)
        said = str(caught.value)
        assert "did not come: rank 1" in said and "process_group=" in said and "executor='local'" in said
    total = torch.tensor(1.0)
    dist.all_reduce(total, group=dist.new_group())
    return total.item()


def test_one_rank_alone_by_mistake() -> None:
    assert run_ranks(2, _alone_by_mistake) == [2.0, 2.0]


def _refused(rank: int) -> None:
    first = dist.new_group([0, 1])
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("prompt", "component"))
    pipe = TINY.build()
    for given, message in (
        (mesh, r"a DeviceMesh with 2 axes; give one of them: mesh\['component'\]"),
        ("component", "must be a torch.distributed.ProcessGroup, or a DeviceMesh with one axis, not a str"),
        (first, "" if rank < 2 else f"rank {rank} is not in its process_group"),
    ):
        if message:
            with pytest.raises(ConfigurationError, match=message):
                AsyncDiff(pipe, process_group=given)
    ways = r"start 3 processes, or use components=2, or compute in this process alone with executor='local'"
    with pytest.raises(ConfigurationError, match=rf"rank {rank}: .* but there are 2; {ways}"):
        AsyncDiff(pipe, components=3, process_group=mesh["component"])
    ways = r"start 2 processes, or name 2 of them with process_group=, or use components=4, or .* executor='local'"
    with pytest.raises(ConfigurationError, match=rf"rank {rank}: .* but there are 4; {ways}"):
        AsyncDiff(pipe, components=2)


def test_what_cannot_work_is_refused() -> None:
    run_ranks(4, _refused)


def _apart(rank: int) -> None:
    given = [dist.new_group(ranks) for ranks in ([0, 1], [2, 3])][rank // 2]
    pipe = TINY.build()
    with AsyncDiff(pipe, components=2, process_group=given, timeout=30):
        _draw(pipe, PROMPTS[0][1 if rank == 3 else 0])


def test_errors_name_ranks_as_the_world_counts() -> None:
    with pytest.raises(RankError, match=r"RankMismatchError: rank 2: .* of rank 3 is not that of rank 2"):
        run_ranks(4, _apart)
