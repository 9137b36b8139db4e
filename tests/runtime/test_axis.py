"""`AsyncDiff(pipe)` on several processes: tokens where they are exact and fast enough, components else."""

import itertools
from typing import Any

import pytest
import torch

from asyncdiff import AsyncDiff, Report
from asyncdiff.plan.link import Link
from asyncdiff.runtime import axis, dividing
from asyncdiff.runtime.token_finding import TokenFinder
from tests.processes import run_ranks
from tests.tiny import PIPELINES, run
from tests.tiny.base import PIXELS

STEPS = 10
FAST = Link("fast", 1e12, 1e-9)
CALL = 1.0
# Seconds of a call with half of the tokens and its exchanges, where that pays and where it does not.
HALF, ALL = 0.55, 1.0


class _World:
    """What would be measured, put in place of what is."""

    def __init__(self, patch: pytest.MonkeyPatch, link: Link, part: float) -> None:
        self.links = self.found = 0
        real, times = TokenFinder.find, itertools.cycle((part, CALL))

        def find(*args: Any, **kwargs: Any) -> Any:
            self.found += 1
            return real(*args, **kwargs)

        def measured(*args: Any) -> Link:
            self.links += 1
            return link

        patch.setattr(dividing, "measured_link", measured)
        patch.setattr(dividing, "seconds_of", lambda *_: next(times))
        patch.setattr(TokenFinder, "find", find)


def _generate(
    rank: int, name: str, link: Link, part: float, settings: dict[str, Any], sizes: tuple[int, ...]
) -> tuple[list[torch.Tensor], Report, int, int]:
    tiny = PIPELINES[name]
    pipe = tiny.build()
    with pytest.MonkeyPatch.context() as patch:
        world = _World(patch, link, part)
        with AsyncDiff(pipe, warmup=2, **settings) as async_diff:
            made = [run(pipe, tiny, num_inference_steps=STEPS, height=size, width=size) for size in sizes]
            return made, async_diff.report(), world.links, world.found


def _on_ranks(
    name: str, link: Link, part: float = HALF, sizes: tuple[int, ...] = (PIXELS,), ranks: int = 2, **settings: Any
) -> Any:
    """Without groups for the guidance, unless something is said of them: they come first."""
    return run_ranks(ranks, _generate, name, link, part, {"guidance": 1, **settings}, sizes)


def _plain(name: str, size: int = PIXELS) -> torch.Tensor:
    tiny = PIPELINES[name]
    return run(tiny.build(), tiny, num_inference_steps=STEPS, height=size, width=size)


def test_tokens_where_the_link_carries_them() -> None:
    """The ordinary picture, whatever its size; what was found out is kept for the next picture."""
    sizes = (PIXELS, PIXELS // 2, PIXELS)
    for made, report, links, found in _on_ranks("sd3", FAST, sizes=sizes):
        for picture, size in zip(made, sizes, strict=True):
            assert (picture - _plain("sd3", size)).norm() <= 1e-5 * picture.norm()
        assert (report.tokens, report.components, report.parts) == (2, 1, "P=2")
        assert report.accelerated and report.denoisers[0].counts.rounds == 0
        assert (links, found) == (1, 3), "measured once; tokens are looked for then, and once for each size"


def test_components_else() -> None:
    """The picture of components that are asked for, on all ranks; nothing is tried again."""
    asked = _on_ranks("sd3", FAST, ALL, components=2)
    assert [found for *_, found in asked] == [0, 0]
    for (made, report, links, found), (expected, *_) in zip(
        _on_ranks("sd3", FAST, ALL, sizes=(PIXELS, PIXELS)), asked, strict=True
    ):
        assert torch.equal(made[0], expected[0]) and torch.equal(made[1], expected[0])
        assert (report.tokens, report.components) == (1, 2)
        assert (links, found) == (1, 1)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("sd15", {"guidance": 1}), ("sd3", {"stride": 2, "guidance": 1}), ("sd3", {"tokens": 2}), ("sd3", {})],
    ids=["a U-Net", "a stride", "tokens", "guidance alone"],
)
def test_where_there_is_nothing_to_choose_nothing_is_tried(name: str, settings: dict[str, Any]) -> None:
    ranks = 3 if "stride" in settings else 2
    for _, _, links, found in run_ranks(ranks, _generate, name, FAST, HALF, settings, (PIXELS,)):
        assert links == 0 and found == ("tokens" in settings)


def test_groups_for_the_guidance_come_first() -> None:
    plain = _plain("sd3")
    for (picture,), report, *_ in run_ranks(4, _generate, "sd3", FAST, HALF, {}, (PIXELS,)):
        assert (report.guidance, report.tokens, report.components) == (2, 2, 1)
        assert (picture - plain).norm() <= 1e-5 * plain.norm()


def test_all_that_is_set_goes_with_it() -> None:
    """The same as if tokens were asked for in so many words."""
    settings = {"bridge": 2, "cooldown": 0, "resync_every": 5}
    asked = _on_ranks("flux", FAST, tokens=2, fresh=True, **settings)
    for ((made,), report, *_), ((expected,), *_) in zip(_on_ranks("flux", FAST, **settings), asked, strict=True):
        assert report.tokens == 2 and report.denoisers[0].counts.bridged > 0
        assert torch.equal(made, expected)


def _refuse(rank: int, what: str) -> tuple[torch.Tensor, Report]:
    """One rank alone comes to another result than the other."""
    tiny = PIPELINES["sd3"]
    pipe = tiny.build()
    with pytest.MonkeyPatch.context() as patch:
        is_odd = rank == 1
        _World(patch, FAST, ALL if is_odd and what == "a slow device" else HALF)
        if is_odd and what == "no memory":
            patch.setattr(TokenFinder, "find", _no_memory)
        elif is_odd and what == "no tokens":
            patch.setattr(TokenFinder, "find", _not_found)
        with AsyncDiff(pipe, warmup=2, guidance=1) as async_diff:
            return run(pipe, tiny, num_inference_steps=STEPS), async_diff.report()


def _no_memory(*_: Any) -> Any:
    raise torch.OutOfMemoryError("no memory is left")


def _not_found(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("expected numbers")


@pytest.mark.parametrize("what", ["a slow device", "no memory", "no tokens"])
def test_one_rank_that_sees_it_otherwise_decides_for_all(what: str) -> None:
    pictures = run_ranks(2, _refuse, what)
    for picture, report in pictures:
        assert report.tokens == 1 and report.components == 2
        assert torch.equal(picture, pictures[0][0])


def _in_groups(rank: int) -> tuple[torch.Tensor, Report]:
    tiny = PIPELINES["sd3"]
    pipe = tiny.build()
    with pytest.MonkeyPatch.context() as patch:
        _World(patch, FAST, HALF if rank < 2 else ALL)
        with AsyncDiff(pipe, warmup=2, max_error=0.01) as async_diff:
            return run(pipe, tiny, num_inference_steps=STEPS), async_diff.report()


def test_so_it_is_for_all_groups() -> None:
    for picture, report in (made := run_ranks(4, _in_groups)):
        assert (report.guidance, report.tokens, report.components) == (2, 1, 2)
        assert torch.equal(picture, made[0][0])


def _draw_in_turn(rank: int, part: float, turns: list[dict[str, int]]) -> list[tuple[torch.Tensor, int]]:
    tiny = PIPELINES["sd3"]
    pipe = tiny.build()
    with pytest.MonkeyPatch.context() as patch:
        _World(patch, FAST, part)
        with AsyncDiff(pipe, warmup=2, guidance=1) as async_diff:
            return [(run(pipe, tiny, **turn), async_diff.report().tokens) for turn in turns]


def test_it_goes_by_the_number_of_steps() -> None:
    """Most of a short generation is computed in full; there it is tokens that help."""
    turns = [{"num_inference_steps": steps} for steps in (100, 5, 100, 5)]
    for made in run_ranks(2, _draw_in_turn, 0.9, turns):
        assert [tokens for _, tokens in made] == [1, 2, 1, 2]
        assert torch.equal(made[0][0], made[2][0])
        # The first step of the first is undivided: there it is found how to divide.
        torch.testing.assert_close(made[1][0], made[3][0], rtol=0, atol=1e-4)


def test_a_picture_too_small_for_it_changes_nothing_for_others() -> None:
    small, usual = {"height": 4, "width": 4}, {"height": PIXELS, "width": PIXELS}
    larger = {"height": PIXELS, "width": PIXELS // 2}
    turns = [{**turn, "num_inference_steps": STEPS} for turn in (usual, small, usual, larger)]
    for made in run_ranks(2, _draw_in_turn, HALF, turns):
        assert [tokens for _, tokens in made] == [2, 1, 2, 2]


def _in_inference_mode(rank: int) -> int:
    tiny = PIPELINES["sd3"]
    pipe = tiny.build()
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        _World(patch, FAST, HALF)
        with AsyncDiff(pipe, warmup=2, guidance=1) as async_diff:
            run(pipe, tiny, num_inference_steps=STEPS)
            return async_diff.report().tokens


def test_inference_mode_makes_no_difference() -> None:
    assert run_ranks(2, _in_inference_mode) == [2, 2]


def _watched(rank: int) -> tuple[int, int]:
    tiny, calls = PIPELINES["sd3"], [0]
    pipe = tiny.build()

    def look(module: Any, given: Any, result: Any) -> None:
        calls[0] += 1

    pipe.transformer.transformer_blocks[0].register_forward_hook(look)
    with pytest.MonkeyPatch.context() as patch:
        world = _World(patch, FAST, HALF)
        with AsyncDiff(pipe, warmup=STEPS, guidance=1):
            run(pipe, tiny, num_inference_steps=STEPS)
        return calls[0], world.found


def test_hooks_of_users_see_no_other_calls() -> None:
    assert run_ranks(2, _watched) == [(STEPS, 0), (STEPS, 0)]


def _measure(rank: int) -> tuple[Link, int]:
    from asyncdiff.exchange.world import DistributedWorld

    world = DistributedWorld(torch.device("cpu"), 30.0)
    exchange = world.exchange([(0, 1)])
    found = axis.measured_link(exchange, 2, torch.device("cpu"))
    sent = exchange.traffic.bytes_sent
    world.close()
    return found, sent


def test_the_link_is_measured_and_not_counted_as_traffic() -> None:
    for link, sent in run_ranks(2, _measure):
        assert 1e6 < link.bandwidth < 1e12 and 0 < link.latency < 1
        assert sent == 0


def _draw_numbers(rank: int) -> bool:
    tiny = PIPELINES["sd3"]
    pipe = tiny.build()
    torch.manual_seed(5)
    state = []
    with pytest.MonkeyPatch.context() as patch:
        _World(patch, FAST, HALF)
        with AsyncDiff(pipe, warmup=2, guidance=1):
            run(pipe, tiny, num_inference_steps=2, callback_on_step_end=lambda *_: state.append(torch.rand(1)) or {})
    torch.manual_seed(5)
    return torch.equal(torch.cat(state), torch.rand(2))


def test_no_random_number_is_used_up() -> None:
    assert run_ranks(2, _draw_numbers) == [True, True]


class _Counting:
    """Attention that counts its calls, as some of prompt-to-prompt's do."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.inner(*args, **kwargs)


def _count_calls(rank: int) -> tuple[int, int]:
    tiny = PIPELINES["sd3"]
    pipe = tiny.build()
    counting = _Counting(pipe.transformer.transformer_blocks[0].attn.processor)
    pipe.transformer.transformer_blocks[0].attn.set_processor(counting)
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        world = _World(patch, FAST, HALF)
        with AsyncDiff(pipe, warmup=STEPS, guidance=1):
            run(pipe, tiny, num_inference_steps=1, callback_on_step_end=lambda *_: seen.append(counting.calls) or {})
        return world.found, seen[0]


def test_attention_that_counts_its_calls_is_not_called_more_often() -> None:
    assert run_ranks(2, _count_calls) == [(0, 1), (0, 1)]
