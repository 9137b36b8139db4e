"""The methods beyond the paper's: against their recurrences written out, and one executor against the other."""

import itertools
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from asyncdiff import AsyncDiff, Method
from tests.comparison import relative_error
from tests.processes import run_ranks
from tests.textbook import forecast
from tests.tiny import PIPELINES, run
from tests.tiny.base import noise

STEPS, WARMUP = 18, 7
WIDTH, BLOCKS = 32, 6
REUSE = Method("reuse", residual=True, fresh_sum=False)
REUSE_SUM = Method("reuse")
HALF_SUM = Method("linear", damping=0.5)
LINEAR_RESIDUAL = Method("linear", fresh_sum=False)
FITTED_SUM = Method()
METHODS = {
    "reuse": REUSE,
    "reuse, sum": REUSE_SUM,
    "half, sum": HALF_SUM,
    "linear": LINEAR_RESIDUAL,
    "best": FITTED_SUM,
}


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, 8 * WIDTH)
        self.outer = nn.Linear(8 * WIDTH, WIDTH)

    def forward(self, hidden: Tensor, shift: Tensor) -> Tensor:
        return hidden + self.outer(torch.tanh(self.inner(hidden) + shift))


class _Stack(nn.Module):
    """A denoiser of residual blocks; tokens of shape (batch, tokens, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, WIDTH)
        self.time = nn.Linear(1, 8 * WIDTH)
        self.blocks = nn.ModuleList(_Block() for _ in range(BLOCKS))
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        shift = self.time(timestep.reshape(-1, 1, 1) / 1000)
        hidden = self.embed(sample)
        for block in self.blocks:
            hidden = block(hidden, shift)
        return self.head(hidden)


class _Pipeline:
    """Calls its denoiser once a step, as diffusers' pipelines do."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.transformer = _Stack().double().requires_grad_(False)
        # The time shift makes the steps uneven.
        self.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        self.components = {"transformer": self.transformer, "scheduler": self.scheduler}

    def __call__(self) -> Tensor:
        self.scheduler.set_timesteps(STEPS)
        sample = noise(3, 5, 4).double()
        for timestep in self.scheduler.timesteps:
            predicted = self.transformer(sample, timestep.reshape(1).double())
            sample = self.scheduler.step(predicted, timestep, sample).prev_sample
        return sample


class _ByHand:
    """The same generation, with every rule written out. Component m is the m-th of N equal runs of blocks."""

    def __init__(self, components: int, stride: int, bridge: int, method: Method, cooldown: int) -> None:
        self.full = {*range(WARMUP), *range(STEPS - cooldown, STEPS)}
        self.not_bridged = range(STEPS - cooldown - 3, STEPS)
        self.pipe = _Pipeline()
        self.stack = self.pipe.transformer
        self.count, self.stride, self.bridge, self.method = components, stride, bridge, method
        self.size = BLOCKS // components
        self.history: list[tuple[float, list[Tensor]]] = []  # newest first: the time, and every component's residual
        self.stored: dict[int, Any] = {}

    def run(self) -> Tensor:
        scheduler = self.pipe.scheduler
        scheduler.set_timesteps(STEPS)
        self.times = scheduler.timesteps.double().tolist()
        sample = noise(3, 5, 4).double()
        for step, timestep in enumerate(scheduler.timesteps):
            sample = scheduler.step(self.predict(step, sample), timestep, sample).prev_sample
        return sample

    def predict(self, step: int, sample: Tensor) -> Tensor:
        embedded = self.stack.embed(sample)
        if step in self.full:
            residuals = []
            hidden = embedded
            for component in range(self.count):
                after = self.component(component, hidden, step)
                residuals.append(after - hidden)
                hidden = after
            self.history.insert(0, (self.times[step], residuals))
            return self.stack.head(hidden)
        place = (step - WARMUP) % (self.stride * self.bridge)
        begins = step - place % self.stride  # the steps that one round can predict
        if place >= self.stride and begins not in self.not_bridged:
            return self.stack.head(embedded + sum(self.forecast(self.times[step])))
        if step == begins:
            self.round(step, embedded)
        if not self.method.fresh_sum:
            return self.stored[step]
        # This round's residuals of all but the last component, moved to this step's label, and the last's own.
        earlier = self.forecast(self.times[step])[:-1]
        return self.stack.head(embedded + sum(earlier) + self.stored[step])

    def round(self, step: int, embedded: Tensor) -> None:
        label = min(step + self.stride - 1, STEPS - 1)
        at_label = self.forecast(self.times[label])
        made = []
        for component in range(self.count):
            hidden = embedded + sum(at_label[:component])
            made.append(self.component(component, hidden, label) - hidden)
        last = {}
        for ahead in range(self.stride):
            own = min(step + ahead, STEPS - 1)
            before = embedded + sum(self.forecast(self.times[own])[:-1])
            after = self.component(self.count - 1, before, own)
            last[step + ahead] = after - before if self.method.fresh_sum else self.stack.head(after)
        self.stored = last
        self.history.insert(0, (self.times[label], made))

    def component(self, component: int, hidden: Tensor, label: int) -> Tensor:
        shift = self.stack.time(torch.full((1, 1, 1), self.times[label]).double() / 1000)
        for block in self.stack.blocks[component * self.size : (component + 1) * self.size]:
            hidden = block(hidden, shift)
        return hidden

    def forecast(self, target: float) -> list[Tensor]:
        (newest_time, newest), *older = self.history
        if self.method.forecast == "reuse":
            return newest
        middle_time, middle = older[0]
        ratio = (target - newest_time) / (newest_time - middle_time) if newest_time != middle_time else 0.0
        if self.method.forecast == "linear" or ratio <= 0:
            factor = 1.0 if ratio < 0 else self.method.damping
            return [tensor + factor * ratio * (tensor - middle[number]) for number, tensor in enumerate(newest)]
        kept = self.history[: self.method.versions]
        times = [time for time, _ in kept]
        columns = [[made[number] for _, made in kept] for number in range(self.count)]
        # The formula is that of tests/test_forecast.py.
        return [forecast(Method(), versions, times, target) for versions in columns]


CASES = [
    *((components, 1, 1, name) for components in (2, 3) for name in METHODS),
    *((components, 1, 3, name) for components in (1, 3) for name in ("half, sum", "best")),
    *(
        (components, stride, 1, name)
        for components in (2, 3)
        for stride in (2, 3)
        for name in ("linear", "half, sum", "best")
    ),
    (3, 2, 2, "best"),
]


@torch.no_grad()
@pytest.mark.parametrize("cooldown", [0, 1])
@pytest.mark.parametrize(("components", "stride", "bridge", "name"), CASES, ids=str)
def test_recurrence_of_a_residual_stack(components: int, stride: int, bridge: int, name: str, cooldown: int) -> None:
    pipe = _Pipeline()
    plain = pipe()
    runs = torch.arange(BLOCKS).chunk(components)
    split = [[f"blocks.{number}" for number in part.tolist()] for part in runs]
    split[-1].append("head")
    with AsyncDiff(
        pipe,
        components,
        stride,
        WARMUP,
        split=split,
        bridge=bridge,
        method=METHODS[name],
        cooldown=cooldown,
        executor="local",
    ):
        found = pipe()
    expected = _ByHand(components, stride, bridge, METHODS[name], cooldown).run()
    assert relative_error(found, expected) < 1e-6, "the factors are computed in float32"
    assert relative_error(found, plain) > 4e-6, "the recurrence is not the ordinary denoiser"
    assert torch.equal(pipe(), plain)


@torch.no_grad()
@pytest.mark.parametrize("name", METHODS)
def test_warm_up_throughout_is_the_ordinary_pipeline(name: str) -> None:
    pipe = _Pipeline()
    plain = pipe()
    with (
        AsyncDiff(pipe, 2, 1, STEPS, method=METHODS[name], bridge=2, executor="local"),
        pytest.warns(UserWarning, match="accelerates nothing"),
    ):
        assert torch.equal(pipe(), plain)


@torch.no_grad()
def test_the_next_call_after_a_round_that_failed() -> None:
    """In one process nothing can be outstanding, however few ranks there are."""
    pipe = _Pipeline()
    calls = 0

    def fail(*given: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == WARMUP + 2:
            raise KeyError("stop")

    with AsyncDiff(pipe, components=1, warmup=WARMUP, bridge=2, executor="local"):
        expected = pipe()
        hook = pipe.transformer.blocks[0].register_forward_pre_hook(fail)
        with pytest.raises(KeyError, match="stop"):
            pipe()
        hook.remove()
        assert torch.equal(pipe(), expected)


DISTRIBUTED = [
    ("sd3", 2, 1, 1, FITTED_SUM),
    ("sd3", 2, 2, 1, HALF_SUM),
    ("sd3", 2, 1, 2, FITTED_SUM),
    ("flux", 3, 1, 1, REUSE_SUM),
    ("sd21", 2, 1, 2, FITTED_SUM),
    ("sd21", 3, 1, 1, LINEAR_RESIDUAL),
]


def _run(tiny: str, components: int, stride: int, bridge: int, method: Method, executor: Any) -> tuple[Tensor, Any]:
    pipe = PIPELINES[tiny].build()
    with AsyncDiff(
        pipe, components, stride, WARMUP, bridge=bridge, method=method, executor=executor, timeout=60
    ) as async_diff:
        return run(pipe, PIPELINES[tiny], num_inference_steps=14), async_diff.report().denoisers[0].counts


def _ranks_run(rank: int, cases: list[Any]) -> list[Tensor]:
    return [_run(*case, "distributed")[0] for case in cases]


@pytest.mark.parametrize("world_size", [pytest.param(2, marks=pytest.mark.whole), 3])
def test_processes_give_what_one_process_gives(world_size: int) -> None:
    cases = [case for case in DISTRIBUTED if case[1] + case[2] - 1 == world_size]
    ranks = run_ranks(world_size, _ranks_run, cases)
    for number, case in enumerate(cases):
        expected, counts = _run(*case, "local")
        assert counts.rounds + counts.bridged + counts.full.total() + counts.stored == counts.steps
        assert counts.rounds and (counts.bridged > 0 or case[3] == 1)
        for one, other in itertools.pairwise(found[number] for found in ranks):
            assert torch.equal(one, other)
        assert relative_error(ranks[0][number], expected) < 1e-5, case


def test_the_last_layer_left_to_all_devices_is_made_of_what_came_in_the_same_round() -> None:
    """A split that names no head gives what the division does that has it in the last component."""
    found = []
    halves = [[f"blocks.{number}" for number in numbers] for numbers in (range(3), range(3, BLOCKS))]
    for knobs in ({"components": 2}, {"split": halves}):
        pipe = _Pipeline()
        with AsyncDiff(pipe, warmup=WARMUP, executor="local", **knobs), torch.no_grad():  # type: ignore[arg-type]
            found.append(pipe())
    assert relative_error(found[1], found[0]) < 1e-9
