"""Calls shared out among groups of devices: the numbers of the same division on one device, however they are run."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from asyncdiff import AsyncDiff, ConfigurationError
from asyncdiff.call import Call
from asyncdiff.hooks import intercept_call
from asyncdiff.report import GuidanceCounts
from asyncdiff.runtime.batch import BatchRule, join
from tests.comparison import relative_error
from tests.processes import RankError, run_ranks
from tests.tiny import PIPELINES, run
from tests.tiny.adapters import SMALL
from tests.tiny.base import noise

STEPS = 5
ALL = 99  # a warm-up that never ends


def shared_out(name: str, warmup: int, executor: str, components: int = 1, **extra: Any) -> tuple[Tensor, list[Any]]:
    """The result of a call on two groups, and what was shared out."""
    tiny = PIPELINES[name]
    pipe = tiny.build()
    with AsyncDiff(
        pipe, components, 1, warmup, guidance=2, executor=executor, timeout=60, method="paper"
    ) as async_diff:
        found = run(pipe, tiny, num_inference_steps=STEPS, **extra)
        report = async_diff.report()
    return found, [denoiser.guidance for denoiser in report.denoisers]


def by_hand(name: str, **extra: Any) -> Tensor:
    """The result where every batch is computed in two halves, one after the other, without asyncdiff."""
    tiny = PIPELINES[name]
    pipe = tiny.build()

    def halved(call: Call) -> Any:
        return join([call.giving(rule.part(call.given, k, 2))() for k in range(2)], 2)

    rule = BatchRule(2, frozenset([1]))
    undo = intercept_call(getattr(pipe, tiny.denoiser), halved)
    found = run(pipe, tiny, num_inference_steps=STEPS, **extra)
    undo()
    return found


def _all(rank: int, runs: list[tuple[str, int, int, dict[str, Any]]]) -> list[tuple[Tensor, list[GuidanceCounts]]]:
    return [shared_out(name, warmup, "distributed", components, **extra) for name, warmup, components, extra in runs]


PICTURES = {"num_images_per_prompt": 2, "guidance_scale": 1.0}


@pytest.mark.filterwarnings("ignore:asyncdiff accelerates nothing")
@pytest.mark.parametrize(
    "runs",
    [
        [("sd15", ALL, 1, {}), ("sd3", ALL, 1, PICTURES), ("qwen_image", 2, 1, {})],
        pytest.param([("sd3", 2, 1, {}), ("wan21", ALL, 1, {})], marks=pytest.mark.whole),
    ],
    ids=["quick", "others"],
)
def test_two_processes(runs: list[tuple[str, int, int, dict[str, Any]]]) -> None:
    """As in one process; there in ordinary steps bit for bit as the same halves without asyncdiff, nearly as undivided.

    Between processes the last bits may differ, because kernels depend on where memory lies.
    """
    first, second = run_ranks(2, _all, runs)
    for number, (name, warmup, components, extra) in enumerate(runs):
        (found, counts), (other, other_counts) = first[number], second[number]
        assert torch.equal(found, other), name
        assert counts == other_counts, name
        together, local_counts = shared_out(name, warmup, "local", components, **extra)
        assert relative_error(found, together) < 1e-5, name
        assert counts == local_counts, name
        is_batched = name in ("sd15", "sd3")
        assert (counts[0].split > 0, counts[0].deferred > 0, counts[0].whole) == (is_batched, not is_batched, 0), name
        assert counts[0].speedup == 2
        tiny = PIPELINES[name]
        plain = run(tiny.build(), tiny, num_inference_steps=STEPS, **extra)
        assert relative_error(found, plain) < 1e-5, name
        assert torch.equal(together, by_hand(name, **extra) if is_batched else plain), name


@pytest.mark.filterwarnings("ignore:asyncdiff accelerates nothing")
@pytest.mark.parametrize("names", [("sd3", "qwen_image"), pytest.param(("instruct_pix2pix",), marks=pytest.mark.whole)])
def test_a_batch_that_the_groups_do_not_divide(names: tuple[str, ...]) -> None:
    """Both groups compute two members of three, from the second step on; a branch each where a step has two calls."""
    pictures = {"num_images_per_prompt": 3}
    more = {"sd3": {"guidance_scale": 1.0, **pictures}, "instruct_pix2pix": {}, "qwen_image": pictures}
    runs: list[tuple[str, int, int, dict[str, Any]]] = [(name, ALL, 1, more[name]) for name in names]
    first, second = run_ranks(2, _all, runs)
    for number, (name, warmup, components, extra) in enumerate(runs):
        (found, counts), (other, other_counts) = first[number], second[number]
        assert torch.equal(found, other), name
        together, local_counts = shared_out(name, warmup, "local", components, **extra)
        assert relative_error(found, together) < 1e-5, name
        assert counts == other_counts == local_counts, name
        overlaps = name != "qwen_image"
        assert (counts[0].split, counts[0].deferred, counts[0].whole) == (
            (STEPS - 1, 0, 1) if overlaps else (0, 2 * STEPS, 0)
        )
        assert counts[0].speedup == pytest.approx(STEPS / (1 + (STEPS - 1) * 2 / 3) if overlaps else 2)
        tiny = PIPELINES[name]
        assert relative_error(found, run(tiny.build(), tiny, num_inference_steps=STEPS, **extra)) < 1e-5, name


@pytest.mark.parametrize("name", [pytest.param("sdxl_controlnet", marks=pytest.mark.whole), "qwen_image"])
def test_four_processes(name: str) -> None:
    """Two groups of two components each, most steps in rounds."""
    everyone = run_ranks(4, _all, [(name, 2, 2, {})])
    together, counts = shared_out(name, 2, "local", 2)
    for ((found, found_counts),) in everyone:
        assert torch.equal(found, everyone[0][0][0])
        assert relative_error(found, together) < 1e-5
        assert found_counts == counts
        assert counts[0].is_shared


def test_components_and_groups_are_independent() -> None:
    """A branch has the same rounds in a group of its own as in one that has all branches."""
    tiny = PIPELINES["qwen_image"]
    pipe = tiny.build()
    for components, stride in ((2, 1), (2, 2)):
        with AsyncDiff(pipe, components, stride, 3, executor="local", method="paper"):
            expected = run(pipe, tiny, num_inference_steps=9)
        with AsyncDiff(pipe, components, stride, 3, guidance=2, executor="local", method="paper") as async_diff:
            assert torch.equal(run(pipe, tiny, num_inference_steps=9), expected)
            assert torch.equal(run(pipe, tiny, num_inference_steps=9), expected)
            report = async_diff.report()
        assert report.world_size == 2 * (components + stride - 1)
        assert report.accelerated
        (denoiser,) = report.denoisers
        largest = max(denoiser.shares)
        assert denoiser.modelled_speedup == pytest.approx(2 * 9 / (3 + 6 / stride * largest))
        assert "18 computed by a group each" in str(report)


@pytest.mark.filterwarnings("ignore:asyncdiff accelerates nothing")
@pytest.mark.parametrize(
    ("name", "extra", "reason"),
    [
        ("sd15", {"guidance_scale": 1.0}, "a batch of 1 cannot be divided by 2"),
        ("sd3", {"guidance_scale": 1.0}, "a batch of 1 cannot be divided by 2"),
    ],
)
def test_what_cannot_be_divided_is_computed_whole(name: str, extra: dict[str, Any], reason: str) -> None:
    tiny = PIPELINES[name]
    pipe = tiny.build()
    plain = run(pipe, tiny, **extra)
    with AsyncDiff(pipe, 1, 1, ALL, guidance=2, executor="local", method="paper") as async_diff:
        with pytest.warns(UserWarning, match=f"guidance=2: .* cannot be shared out .*{reason}"):
            assert torch.equal(run(pipe, tiny, **extra), plain)
        report = async_diff.report()
    assert not report.accelerated
    assert report.denoisers[0].guidance.speedup == 1
    assert reason in str(report)


WIDTH = 8
TOY_STEPS = 6


class Denoiser(nn.Module):
    """Blocks one after the other; every token is given its row of a table that all members of the batch share."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(4))
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(
        self, sample: Tensor, timestep: Tensor, words: Tensor, table: Tensor | None = None
    ) -> tuple[Tensor, list[None]]:
        hidden = self.embed(sample) + words[:, None] + timestep.reshape(-1, 1, 1) / 1000
        if table is not None:
            hidden = hidden + table
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.head(hidden), [None] * len(sample)


class Pipeline:
    """Calls the denoiser once for every branch that a step has."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.unet = Denoiser()
        self.scheduler = DDIMScheduler(clip_sample=False)
        self.components = {"unet": self.unet, "scheduler": self.scheduler}

    @torch.no_grad()
    def __call__(
        self,
        branches: Callable[[int], Sequence[int]] = lambda step: (0, 1),
        reads_early: bool = False,
        batch: int = 1,
        table: Tensor | None = None,
        fails_at: int = -1,
    ) -> Tensor:
        sample = noise(batch, 4, WIDTH, seed=1)
        words = [noise(batch, WIDTH, seed=branch + 2) for branch in range(4)]
        self.scheduler.set_timesteps(TOY_STEPS)
        for step, timestep in enumerate(self.scheduler.timesteps):
            results = []
            for branch in branches(step):
                result = self.unet(sample, timestep, words[branch], table)[0]
                if reads_early:
                    result = result * 1.0
                if (step, branch) == (fails_at, 0):
                    raise KeyError("stop")
                results.append(result[:, : sample.shape[1]])
            prediction = results[0] + sum(0.5 * (other - results[0]) for other in results[1:])
            sample = self.scheduler.step(prediction, timestep, sample).prev_sample
        assert type(sample) is Tensor
        return sample


def interval(step: int) -> tuple[int, ...]:
    """The second branch ends, comes again, and a third and a fourth begin."""
    return {0: (0, 1), 1: (0, 1), 2: (0,), 3: (1, 0), 4: (0, 1, 2)}.get(step, (0, 1, 2, 3))


def toy(executor: str, warmup: int = ALL, components: int = 1, **arguments: Any) -> tuple[Tensor, GuidanceCounts]:
    pipe = Pipeline()
    with AsyncDiff(
        pipe, components, 1, warmup, guidance=2, executor=executor, timeout=60, method="paper"
    ) as async_diff:
        found = pipe(**arguments)
        return found, async_diff.report().denoisers[0].guidance


@pytest.mark.filterwarnings("ignore:asyncdiff accelerate")
def test_branches_that_come_and_go() -> None:
    found, counts = toy("local", branches=interval)
    assert torch.equal(found, Pipeline()(branches=interval))
    assert (counts.split, counts.deferred, counts.whole) == (0, 6 + 3 + 4, 1)
    assert counts.cost == 3 + 1 + 2 + 2


@pytest.mark.filterwarnings("ignore:asyncdiff accelerate")
def test_three_branches_on_two_groups() -> None:
    found, counts = toy("local", branches=lambda step: (0, 1, 2))
    assert torch.equal(found, Pipeline()(branches=lambda step: (0, 1, 2)))
    assert (counts.deferred, counts.whole, counts.speedup) == (3 * TOY_STEPS, 0, 1.5)


@pytest.mark.filterwarnings("ignore:asyncdiff accelerate")
def test_a_branch_that_is_read_before_the_next_call() -> None:
    with pytest.warns(UserWarning, match="guidance=2: .* reads each branch's result before it calls for the next"):
        found, counts = toy("local", reads_early=True)
    assert torch.equal(found, Pipeline()(reads_early=True))
    assert (counts.deferred, counts.whole, counts.speedup) == (0, 2 * TOY_STEPS, 1)
    assert counts.reason.startswith("the pipeline reads each branch's result")


@pytest.mark.filterwarnings("ignore:asyncdiff accelerate")
def test_a_table_that_happens_to_be_as_long_as_the_batch() -> None:
    """Four tokens: four members, or two, might each have a part of the table; a comparison shows that they have not."""
    for batch, is_split in ((2, True), (4, False)):
        table = noise(4, WIDTH, seed=9)
        found, counts = toy("local", batch=batch, table=table)
        assert (counts.split, counts.deferred) == ((2 * TOY_STEPS, 0) if is_split else (0, 2 * TOY_STEPS))
        assert relative_error(found, Pipeline()(batch=batch, table=table)) < 1e-5


@pytest.mark.filterwarnings("ignore:asyncdiff accelerates nothing")
@pytest.mark.parametrize("name", ["animatediff", "x4_upscaler", "hidream", "z_image"])
def test_arguments_of_many_forms_are_divided(name: str) -> None:
    """Frames one after the other, class labels, a text's states in every layer, lists of pictures."""
    tiny = PIPELINES[name]
    pipe = tiny.build()
    plain = run(pipe, tiny, num_inference_steps=3)
    with AsyncDiff(pipe, 1, 1, ALL, guidance=2, executor="local", method="paper") as async_diff:
        assert relative_error(run(pipe, tiny, num_inference_steps=3), plain) < 1e-5
        counts = async_diff.report().denoisers[0].guidance
    assert (counts.split, counts.deferred, counts.whole) == (3, 0, 0)


@pytest.mark.filterwarnings("ignore:asyncdiff accelerate")
def test_in_inference_mode() -> None:
    with torch.inference_mode():
        found, counts = toy("local", warmup=2)
    assert torch.equal(found, toy("local", warmup=2)[0])
    assert counts.deferred == 2 * TOY_STEPS


def _toys(rank: int) -> list[tuple[Tensor, GuidanceCounts]]:
    del rank
    table = noise(4, WIDTH, seed=9)
    return [
        toy("distributed", branches=interval),
        toy("distributed", reads_early=True),
        toy("distributed", batch=4, table=table),
        toy("distributed", batch=2, table=table),
        toy("distributed", warmup=1),
    ]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_so_on_two_processes() -> None:
    table = noise(4, WIDTH, seed=9)
    expected = [
        toy("local", branches=interval),
        toy("local", reads_early=True),
        toy("local", batch=4, table=table),
        toy("local", batch=2, table=table),
        toy("local", warmup=1),
    ]
    for everything in run_ranks(2, _toys):
        for (found, counts), (other, other_counts) in zip(everything, expected, strict=True):
            assert torch.equal(found, other)
            assert counts == other_counts


def _broken_off(rank: int) -> Tensor:
    del rank
    pipe = Pipeline()
    with AsyncDiff(pipe, 1, 1, ALL, guidance=2, executor="distributed", timeout=60, method="paper"):
        for step in (0, 3):
            with pytest.raises(KeyError, match="stop"):
                pipe(fails_at=step)
        return pipe()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_broken_off_between_two_branches() -> None:
    for found in run_ranks(2, _broken_off):
        assert torch.equal(found, Pipeline()())


def _attach(rank: int, guidance: int) -> None:
    AsyncDiff(Pipeline(), 1, guidance=guidance, executor="distributed", method="paper")


def test_a_world_size_that_does_not_fit() -> None:
    message = r"guidance × \(components \+ stride - 1\) = 3 ranks, but there are 2; .* use guidance=2"
    with pytest.raises(RankError, match=message):
        run_ranks(2, _attach, 3)
    with pytest.raises(ConfigurationError, match="guidance must be a whole number of at least 1, not 0"):
        AsyncDiff(Pipeline(), guidance=0, components=2, method="paper")


def _different_inputs(rank: int) -> None:
    tiny = PIPELINES["sd3"]
    pipe = tiny.build()
    AsyncDiff(pipe, 1, guidance=2, executor="distributed", timeout=20, method="paper")
    run(pipe, tiny, generator=torch.Generator().manual_seed(rank))


def test_groups_with_different_inputs() -> None:
    with pytest.raises(RankError, match=r"RankMismatchError.*the argument 'hidden_states' of rank 1 is not"):
        run_ranks(2, _different_inputs)


class _Coupling:
    """An attention processor that lets the pictures of a batch depend on each other, once it is told to."""

    def __init__(self) -> None:
        self._plain = AttnProcessor()
        self._is_on = [False]

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result = self._plain(attn, hidden_states, *args, **kwargs)
        return result.mean(0, keepdim=True).expand_as(result).contiguous() if self._is_on[0] else result

    def from_step(self, step: int) -> Callable[..., dict[str, Any]]:
        self._is_on[0] = False

        def switch(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            self._is_on[0] = index + 1 >= step
            return values

        return switch


def _coupled(step: int, times: int, **settings: Any) -> list[Tensor | str]:
    """Pictures of a pipeline whose batches are coupled from a step on, or what its calls end in."""
    pipe, processor = SMALL.build(), _Coupling()
    pipe.unet.set_attn_processor(processor)
    results: list[Tensor | str] = []
    with AsyncDiff(pipe, executor="local", **settings) if settings else contextlib.nullcontext():
        for _ in range(times):
            try:
                results.append(run(pipe, SMALL, num_inference_steps=7, callback_on_step_end=processor.from_step(step)))
            except ConfigurationError as error:
                results.append(str(error))
    return results


@pytest.mark.filterwarnings("ignore:guidance=2. the calls of the denoiser", "ignore:asyncdiff accelerate")
@pytest.mark.parametrize("step", [1, pytest.param(4, marks=pytest.mark.whole), 7])
def test_pictures_that_depend_on_each_other_from_some_step_on(step: int) -> None:
    """Seen in the second step, the batch is not divided; seen later, what was divided may be wrong."""
    (expected,) = _coupled(step, 1)
    first, second = _coupled(step, 2, guidance=2, components=1)
    assert isinstance(expected, Tensor) and isinstance(second, Tensor)
    if step == 1:
        assert isinstance(first, Tensor)
        assert relative_error(first, expected) < 1e-5
    else:
        assert isinstance(first, str)
        assert "depend on each other from some step on" in first
    assert relative_error(second, expected) < 1e-5
