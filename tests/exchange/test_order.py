"""The order of exchanges: what every rank really starts, played by NCCL's rules, and what the plan says of it."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from asyncdiff import AsyncDiff, Method, StoppedError
from asyncdiff.call import Call
from asyncdiff.denoiser.rates import CPU
from asyncdiff.denoiser.trace import record
from asyncdiff.plan import routing
from asyncdiff.plan.course import Course
from asyncdiff.plan.division import Division, divide_denoiser
from asyncdiff.plan.method import FORECAST, PAPER
from asyncdiff.plan.moments import Order
from asyncdiff.plan.schedule import Schedule, StepKind
from asyncdiff.zoo import specimens
from tests.exchange.events import Log
from tests.exchange.recorder import Recorder
from tests.exchange.rules import play
from tests.processes import run_ranks
from tests.tiny import PIPELINES, run
from tests.tiny.adapters import SMALL

Layout = tuple[str, dict[str, Any], str]
"""A tiny pipeline, AsyncDiff's settings, and what is done with it."""


def _fail(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
    if index == 4:
        raise KeyError("enough")
    return values


def _once(pipe: Any, name: str) -> None:
    run(pipe, PIPELINES[name], num_inference_steps=8)


def _in_two_sizes(pipe: Any, name: str) -> None:
    for arguments in ({}, {"height": 48, "width": 32, "num_inference_steps": 7}, {}):
        run(pipe, PIPELINES[name], **{"num_inference_steps": 6, **arguments})


def _interrupted(pipe: Any, name: str) -> None:
    with pytest.raises((KeyError, StoppedError), match="enough"):  # the first rank's, or that of having heard of it
        run(pipe, PIPELINES[name], num_inference_steps=8, callback_on_step_end=_fail)
    run(pipe, PIPELINES[name], num_inference_steps=6)


USES: dict[str, Callable[[Any, str], None]] = {
    "once": _once,
    "in two sizes": _in_two_sizes,
    "interrupted": _interrupted,
}

QUICK: dict[int, list[Layout]] = {
    2: [
        ("sd15", {"components": 2}, "interrupted"),
        ("sd3", {"components": 2, "bridge": 2, "max_error": 0.1}, "in two sizes"),
        ("sd3", {"components": 2, "shard": True}, "once"),
        ("sd3", {"tokens": 2, "fresh": False, "max_error": 0.1}, "in two sizes"),
        ("sd3", {"tokens": 2, "fresh": False}, "interrupted"),
        ("sd3", {"tokens": 2, "fresh": True, "bridge": 2}, "once"),
    ],
    4: [
        ("sd3", {"tokens": 2, "components": 2, "max_error": 0.1}, "interrupted"),
        ("sd3", {"components": 2, "guidance": 2, "shard": True, "bridge": 2}, "once"),
    ],
}


def _all_layouts() -> dict[int, list[Layout]]:
    """Every pipeline, N, S, G, with and without bridging and a guard, and every use."""
    found: dict[int, list[Layout]] = {}
    more: tuple[dict[str, Any], ...] = (
        {},
        {"bridge": 2},
        {"bridge": 2, "max_error": 0.1},
        {"method": "paper"},
        {"shard": True},
    )
    for name, components, stride, guidance in itertools.product(("sd15", "sd3", "wan22"), range(1, 5), (1, 2), (1, 2)):
        world_size = guidance * (components + stride - 1)
        if not 2 <= world_size <= 6 or (name == "wan22" and stride == 2):
            continue
        for knobs in more:
            settings = {"components": components, "stride": stride, "guidance": guidance, **knobs}
            found.setdefault(world_size, []).append((name, settings, "once"))
        for use in ("in two sizes", "interrupted"):
            if name != "wan22":
                settings = {"components": components, "stride": stride, "guidance": guidance}
                found[world_size].append((name, settings, use))
    for knobs in more[:-1]:
        for name, tokens, components in (("sd3", 2, 2), ("wan22", 2, 2), ("sd3", 3, 2), ("sd3", 2, 3)):
            settings = {"tokens": tokens, "components": components, **knobs}
            found.setdefault(tokens * components, []).append(
                (name, settings, "in two sizes" * (name == "sd3") or "once")
            )
    found[8] = [("sd3", {"tokens": 2, "components": 2, "guidance": 2, "bridge": 2}, "once")]
    found[2].append(("sd15", {"components": 2, "shard": True}, "in two sizes"))
    found[2].append(("sd3", {"components": 2, "method": Method(bits=8)}, "once"))
    found[4].append(("sd3", {"components": 3, "stride": 2, "warmup": 3, "shard": True}, "interrupted"))
    found[4].append(("sd15", {"components": 2, "guidance": 2, "shard": True, "bridge": 2}, "once"))
    for use in ("once", "in two sizes"):  # four heads: they are dealt out
        found[4].append(("pixart_sigma", {"tokens": 4, "fresh": True, "bridge": 2}, use))
    return found


def _recorded(rank: int, layouts: list[Layout]) -> list[Log]:
    """What a rank starts from attaching to disabling, layout by layout."""
    logs = []
    for name, settings, use in layouts:
        pipe = PIPELINES[name].build()
        with Recorder() as recorder, AsyncDiff(pipe, executor="distributed", timeout=60, **settings):
            USES[use](pipe, name)
        logs.append(recorder.log)
    return logs


def _check(layouts: list[Layout], of_ranks: list[list[Log]]) -> None:
    for layout, logs in zip(layouts, zip(*of_ranks, strict=True), strict=True):
        for holds, connections in itertools.product((False, True), repeat=2):
            verdict = play(logs, waits_hold_host=holds, connections=connections)
            assert verdict.finished, f"{layout}: {verdict}"
            assert not verdict.errors, f"{layout}: {verdict}"
        for log in logs:
            of_devices = {event.group.name for event in log if event.operations and not event.group.talk}
            # A generation that was broken off leaves a communicator behind that is not used again.
            expected = 2 if layout[-1] == "interrupted" else 1
            assert len(of_devices) == expected, f"{layout}: one communicator, and not {of_devices}"
            first = next(event.kind for event in log if event.operations and not event.group.talk)
            assert first == "collective", "made by an operation in which all ranks take part"
            talk = {event.kind for event in log if event.operations and event.group.talk}
            assert talk == {"single"}, "threads of gloo's, which do collectives, may hang when the group ends"


@pytest.mark.parametrize("world_size", QUICK)
def test_what_ranks_start_does_not_hang_on_nccl(world_size: int) -> None:
    _check(QUICK[world_size], run_ranks(world_size, _recorded, QUICK[world_size], limit=240))


@pytest.mark.whole
@pytest.mark.parametrize("world_size", _all_layouts())
def test_no_layout_hangs_on_nccl(world_size: int) -> None:
    layouts = _all_layouts()[world_size]
    for number in range(0, len(layouts), 8):
        part = layouts[number : number + 8]
        _check(part, run_ranks(world_size, _recorded, part, limit=600))


def _recorded_in_parts(rank: int) -> tuple[list[Log], Tensor, Tensor]:
    """With edges so heavy, in their own opinion, that a round has several moments for them; and with one."""
    pipe = SMALL.build()
    pictures, logs = [], []
    for most in (0, routing._MOST_AT_THE_END):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(routing, "_MOST_AT_THE_END", most)
            patch.setattr(routing, "_SHARE_AT_THE_END", 1e-6)
            with Recorder() as recorder, AsyncDiff(pipe, components=3, executor="distributed", timeout=60):
                pictures.append(run(pipe, SMALL, num_inference_steps=8))
        logs.append(recorder.log)
    return logs, pictures[0], pictures[1]


def test_heavy_edges_have_moments_of_their_own() -> None:
    found = run_ranks(3, _recorded_in_parts)
    for _, in_parts, at_once in found:
        assert torch.equal(in_parts, at_once)
    in_parts, at_once = ([logs[number] for logs, *_ in found] for number in (0, 1))
    for logs in (in_parts, at_once):
        for holds in (False, True):
            verdict = play(logs, waits_hold_host=holds, connections=True)
            assert verdict.finished and not verdict.errors, str(verdict)
    assert _batches(in_parts) > _batches(at_once)


def _batches(logs: list[Log]) -> int:
    return sum(event.kind == "batch" for log in logs for event in log)


def _division(name: str, schedule: Schedule, method: Any) -> Division:
    specimen = next(specimen for specimen in specimens() if specimen.name == name)
    denoiser = specimen.build()
    with torch.no_grad():
        _, trace = record(denoiser, Call(denoiser.forward, (), specimen.inputs()))
    return divide_denoiser(trace, schedule, None, CPU, method)


@pytest.mark.parametrize("method", [PAPER, FORECAST], ids=["paper", "forecast"])
@pytest.mark.parametrize(("components", "stride", "bridge"), [(2, 1, 1), (3, 1, 2), (4, 1, 1), (2, 2, 1), (3, 2, 2)])
def test_everything_that_is_read_was_sent_and_nothing_else(
    components: int, stride: int, bridge: int, method: Any
) -> None:
    """Step by step: what a task reads of others' live edges has been exchanged, and what is exchanged will be read."""
    division = _division("SD3Transformer2DModel", Schedule(components, stride, 3, bridge=bridge, cooldown=2), method)
    course = Course(division.schedule, last=17)
    order = Order(division)
    sent: dict[int, dict[int, set[Any]]] = {}
    read: dict[int, dict[int, set[Any]]] = {}
    for step in course.steps():
        found = order.of(course, step.index)
        if step.kind is StepKind.FULL:
            continue
        for message in (message for moment in found.moments for message in moment.messages):
            sent.setdefault(step.index, {}).setdefault(message.reader, set()).update(message.edges)
        for task in step.tasks:
            own = division.partition.components[division.schedule.component_of(task.rank)]
            reads = frozenset() if task.component is None else division.partition.reads[task.component]
            for versions, edges in ((task.reads, reads), (task.completes, division.partition.end.reads)):
                for version in versions:
                    wanted = {edge for edge in edges if edge.unit not in own}
                    read.setdefault(version.step, {}).setdefault(task.rank, set()).update(wanted)
    for index, step in enumerate(course.steps()):
        if step.kind is not StepKind.ROUND:
            continue
        for rank in range(division.schedule.world_size):
            is_read = read.get(index, {}).get(rank, set())
            assert is_read <= sent.get(index, {}).get(rank, set()), f"step {index}, rank {rank}"
        if not read.get(index):
            assert not sent.get(index), f"nobody reads what is sent in step {index}"
    assert any(sent.values())
