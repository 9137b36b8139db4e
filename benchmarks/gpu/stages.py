"""What is measured of one denoiser, stage by stage; every stage's results are handed on as soon as they are there."""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from asyncdiff.settings import Settings
from benchmarks.gpu.bench import (
    DEFAULT,
    SECONDS_TO_RECORD,
    WARMUP,
    Bench,
    Put,
    plan_of_round,
    rounds_to_fill,
    run,
    timed,
)
from benchmarks.gpu.loop import Loop, Setting
from benchmarks.gpu.measure import Kind, Timing
from benchmarks.gpu.modelled import LINKS, load_of, modelled
from benchmarks.gpu.modelled_tokens import Wanted
from benchmarks.gpu.models import Subject, parameters_of
from benchmarks.gpu.solo import SECONDS_OF_NCCL, SoloWorld, attached, line_of_one
from benchmarks.gpu.tokens import Measured, measure_tokens

COMPONENTS = (2, 3, 4)
SLOW = 0.3  # seconds of a call from which on no call is made twice
SECONDS_TO_COMPILE = 25.0
SECONDS_TO_COUNT = 15.0


def measure(subject: Subject, setting: Setting, put: Put, deadline: float) -> None:
    """All stages of one denoiser, those first that others need."""
    bench = Bench(subject, setting, put, deadline)
    put("title", subject.title)
    put("batch", subject.batch)
    put("steps", subject.steps)
    put("parameters", parameters_of(subject))
    put("parameters_published", subject.parameters)
    loops: list[Loop] = []
    bench.stage("build", 0.0, partial(_build, bench, loops))
    if not loops:
        return
    loop = loops[0]
    if bench.stage("plain", 0.0, partial(_plain, bench, loop)) is None:
        return
    bench.plain = bench.found["plain"]["timing"]["device"] / 1000
    alone = bench.stage("components=1", bench.expected(1), partial(_attached_alone, bench, loop))
    if alone is not None:
        bench.plain = statistics.mean(alone["plain"]) / 1000
    for components in (2, 4):
        _stage_of_ranks(bench, loop, components)
    _model(bench)
    half = None
    if subject.batch == 2:
        half = Loop(subject, setting, loop.denoiser, batch=1)
        bench.stage("half plain", bench.expected(1, 0.6) - SECONDS_TO_RECORD, partial(_plain, bench, half))
        for components in (4, 2):
            _stage_of_ranks(bench, half, components, "half ", 0.6)
    tokens = [] if subject.part == "unet" else measure_tokens(bench, loop, half)
    _model(bench, tokens)
    _stage_of_ranks(bench, loop, 3)
    _model(bench, tokens)
    if setting.device.type == "cuda":
        expected = SECONDS_OF_NCCL + bench.expected(4) / 4
        bench.stage("components=4, NCCL", expected, partial(_slowest_on_nccl, bench, loop, 4))
    bench.stage("kernels", bench.expected(1) + SECONDS_TO_COMPILE, partial(_kernels, bench, loop))
    bench.stage("compiled", SECONDS_TO_COMPILE, partial(_compiled, bench, loop))


def _build(bench: Bench, loops: list[Loop]) -> dict[str, Any]:
    loop = Loop(bench.subject, bench.setting)
    loops.append(loop)
    parameters = list(loop.denoiser.parameters())
    return {
        "parameters_here": sum(parameter.numel() for parameter in parameters),
        "weight_bytes": sum(parameter.numel() * parameter.itemsize for parameter in parameters),
        "shape": [loop.batch, *loop.shape],
    }


def _stage_of_ranks(bench: Bench, loop: Loop, components: int, prefix: str = "", share: float = 1.0) -> None:
    """So many components. With half of the batch: what a group computes where two groups share out the guidance."""
    expected = bench.expected(components, share)
    bench.stage(f"{prefix}components={components}", expected, partial(_ranks, bench, loop, components))


def _settings(components: int) -> Settings:
    """The default method."""
    return Settings(components=components, warmup=WARMUP)


def _plan_of_plain(bench: Bench) -> list[Kind]:
    return [Kind.FIRST, Kind.SKIPPED, *timed(bench)]


def _plain(bench: Bench, loop: Loop) -> dict[str, Any]:
    if not bench.plain:
        bench.plain = run(loop, [Kind.FIRST, Kind.FULL])[0].full / 1000
    timing, is_finite = run(loop, _plan_of_plain(bench))
    return {"timing": asdict(timing), "finite": is_finite}


def _attached_alone(bench: Bench, loop: Loop) -> dict[str, Any]:
    """One component, attached, between plain calls (after them, if they are slow): what being attached costs."""
    world = SoloWorld(1, loop.setting.device)
    plain = [Timing(**bench.found["plain"]["timing"])]
    with attached(loop, _settings(1), world):
        timing, is_finite = run(loop, plan_of_round(bench), world)
    if bench.plain < SLOW:
        plain.append(run(loop, _plan_of_plain(bench))[0])
    return {
        "timing": asdict(timing),
        "plain": [one.device for one in plain],
        "cost_percent": 100 * (timing.device / statistics.mean(one.device for one in plain) - 1),
        "finite": is_finite,
    }


def _ranks(bench: Bench, loop: Loop, components: int) -> dict[str, Any]:
    """Every rank's rounds, one rank after the other."""
    world = SoloWorld(components, loop.setting.device)
    ranks, full = [], []
    with attached(loop, _settings(components), world):
        for rank in range(components):
            world.become(rank)
            timing, is_finite = run(loop, plan_of_round(bench), world)
            full.append(timing.full)
            ranks.append({"timing": asdict(timing), "finite": is_finite, **_traffic(world)})
    division = world.last.division
    return {
        "ranks": ranks,
        "round": max(rank["timing"]["device"] for rank in ranks),
        "full": statistics.median(full),
        "first_recorded": ranks[0]["timing"]["first"],
        "shares": division.partition.shares,
        "predictor": division.partition.predictor,
        "fresh_sum": division.schedule.fresh_sum,
        "kept_versions": division.schedule.kept_versions,
        "bytes_per_round": division.bytes_per_round,
    }


def _slowest_on_nccl(bench: Bench, loop: Loop, components: int) -> dict[str, Any]:
    """The rounds of the slowest rank whose exchanges are started by NCCL, from this device to itself."""
    timings = [rank["timing"]["device"] for rank in bench.found[f"components={components}"]["ranks"]]
    rank = timings.index(max(timings))
    with line_of_one(bench.setting.device) as line:
        world = SoloWorld(components, bench.setting.device, line)
        with attached(loop, _settings(components), world):
            world.become(rank)
            timing, is_finite = run(loop, plan_of_round(bench), world)
    return {"rank": rank, "timing": asdict(timing), "finite": is_finite}


def _traffic(world: SoloWorld) -> dict[str, Any]:
    """What the current rank receives and sends in a round, predictions left out, and holds of it."""
    channel = world.last
    division, rank = channel.division, channel.rank
    received = [message for message in division.messages if message.reader == rank]
    sent = [message for message in division.messages if message.source == rank]
    return {
        "received_bytes": sum(division.graph.bytes(message.edges) for message in received),
        "sent_bytes": sum(division.graph.bytes(message.edges) for message in sent),
        "received_messages": len(received),
        "sent_messages": len(sent),
        "history_bytes": channel.held_bytes,
    }


def _kernels(bench: Bench, loop: Loop) -> dict[str, Any] | None:
    """Kernels started on the device, by the profiler; after all that is timed, which it might slow down."""
    if bench.setting.device.type != "cuda":
        return None
    until = min(time.time() + SECONDS_TO_COUNT, bench.deadline)
    plan = [Kind.FIRST, *[Kind.SKIPPED] * (WARMUP + rounds_to_fill() - 1), Kind.KERNELS]
    counted: dict[str, Any] = {"plain": run(loop, [Kind.FIRST, Kind.KERNELS])[0].kernels}
    for components in (1, 4):
        if time.time() + bench.expected(components) / 2 > until:
            break
        world = SoloWorld(components, loop.setting.device)
        counted[f"components={components}"] = by_rank = []
        with attached(loop, _settings(components), world):
            for rank in range(components):
                world.become(rank)
                by_rank.append(run(loop, plan, world)[0].kernels)
    return counted


def _compiled(bench: Bench, loop: Loop) -> dict[str, Any]:
    """A plain call with the repeated blocks compiled; also the time of the first."""
    _compile_blocks(loop.denoiser, bench.subject.blocks)
    first, _ = run(loop, [Kind.FIRST])
    timing, is_finite = run(loop, [kind for kind in _plan_of_plain(bench) if kind is not Kind.OPERATORS])
    return {"timing": asdict(timing), "finite": is_finite, "first_call": first.first}


def _compile_blocks(denoiser: Any, blocks: tuple[str, ...]) -> None:
    """What compile_repeated_blocks() does; also for classes that do not say which blocks are repeated."""
    if not blocks:
        denoiser.compile_repeated_blocks()
        return
    for module in denoiser.modules():
        if type(module).__name__ in blocks:
            module.compile()


def _model(bench: Bench, tokens: Sequence[Measured] = ()) -> None:
    """The modelled generations, from what was found so far."""
    found, subject = bench.found, bench.subject
    schedule = DEFAULT.schedule(2)
    full_steps = schedule.warmup + schedule.cooldown
    itemsize = torch.empty((), dtype=bench.setting.dtype).itemsize
    member = math.prod(found["build"]["shape"][1:]) * itemsize
    groups = []
    for components in COMPONENTS:
        for prefix, count, batch in (("", 1, subject.batch), ("half ", 2, 1)):
            stage = found.get(f"{prefix}components={components}")
            if stage is not None:
                groups.append((load_of(stage, batch * member), count))
    if (half := found.get("half plain")) is not None:
        groups.append((load_of({"ranks": [_whole(half)], "full": half["timing"]["device"]}, member), 2))
    results = [
        asdict(modelled(group, count, link, subject.steps, full_steps, bench.plain))
        for group, count in groups
        for link in LINKS
    ]
    for one in tokens:
        wanted = Wanted(subject.steps, DEFAULT.warmup, one.groups, subject.batch * member // one.groups, bench.plain)
        results += [asdict(generation) for generation in one.of.modelled(wanted)]
    bench.put("modelled", sorted(results, key=lambda one: (one["devices"], one["link"], one["way"])))


def _whole(stage: dict[str, Any]) -> dict[str, Any]:
    """A plain call as the round of a rank that is alone in its group."""
    nothing = dict.fromkeys(("received_bytes", "sent_bytes", "received_messages", "sent_messages"), 0)
    return {"timing": {**stage["timing"], "end": 0.0}, **nothing}
