"""Hold a plan's predicted times against two real processes: how far is each way off, in per cent?

Two worker processes of one thread each live through the whole measurement. The plan is given what is measured here: a
call's time and its units', while the other process makes one as well (they share caches and memory), and the link
between them, by sending it bytes. What it predicts is the denoising loop; measured is the pipeline's call with its
prompt encoded before, and no decoding.

What else the machine does only ever adds to a time. So what the plan is given and what it is held against are measured
in turn, several times over, and the least of each is taken; how far the others are above it is told.
"""

import argparse
import functools
import itertools
import json
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch.multiprocessing.spawn import spawn

from asyncdiff import AsyncDiff
from asyncdiff.call import Call
from asyncdiff.denoiser.find import find_denoisers
from asyncdiff.denoiser.form import CallForm
from asyncdiff.denoiser.graph import build_graph
from asyncdiff.denoiser.rates import CPU
from asyncdiff.denoiser.trace import Trace, record
from asyncdiff.hooks import intercept_call
from asyncdiff.plan.link import Link
from asyncdiff.plan.schedule import StepKind
from asyncdiff.plan.timeline import Activity
from asyncdiff.planning.candidates import AloneTimes, Conditions, Planner, Way
from asyncdiff.planning.describing import describe
from asyncdiff.planning.first_step import FirstStep
from asyncdiff.planning.measuring import Times, time_calls, time_rounds
from asyncdiff.planning.subject import Subject as Described
from benchmarks.machine import machine
from benchmarks.speedup import GUIDANCE, Settings, Subject, demo_dit, demo_unet, gather, generate, large_unet

Key = TypeVar("Key", bound=Hashable)

WORLD_SIZE = 2
MODELS = {"demo-unet": demo_unet, "demo-dit": demo_dit, "large-unet": large_unet}
WAYS: tuple[dict[str, Any], ...] = (
    {"components": 2, "bridge": 1, "guidance": 1, "shard": False},
    {"components": 2, "bridge": 2, "guidance": 1, "shard": False},
    {"components": 2, "bridge": 1, "guidance": 1, "shard": True},
    {"components": 1, "bridge": 1, "guidance": 2, "shard": False},
    {"components": 1, "bridge": 2, "guidance": 2, "shard": False},
)
_LARGE, _SMALL = 2**23, 2**3  # bytes that are sent to find out what the link can do
_SENT = 20  # how often
_UNTIMED_STEPS = 14  # of the generation that records the call
_SECONDS = 4.0  # that the timed generations of a way take, in each turn, if one alone does not take longer


@dataclass(frozen=True)
class Held:
    """A way's prediction against what was measured, in seconds.

    Attributes:
        measured: the least of the runs, until the slower rank was done.
        runs: all of them.
        sequential: the least of the plain pipeline's, on all ranks at once.
        sequential_predicted: what the plan takes that for.
        round: a round on rank 0, from one step's end to the next: the median of the steps of the quickest run.
        round_computing: what the plan takes the longest component of it for.
        steps, steps_predicted: what the steps of each kind take together, in the quickest run and by the plan.
    """

    model: str
    way: str
    predicted: float
    measured: float
    runs: tuple[float, ...]
    sequential: float
    sequential_predicted: float
    round: float
    round_computing: float
    steps: Mapping[str, float]
    steps_predicted: Mapping[str, float]

    @property
    def error(self) -> float:
        """Of the prediction, in per cent of what was measured."""
        return 100 * (self.predicted / self.measured - 1)

    @property
    def spread(self) -> float:
        """How far the median of the runs is above the least of them, in per cent of that."""
        return 100 * (statistics.median(self.runs) / self.measured - 1)

    @property
    def overhead(self) -> float:
        """Seconds of a round beside its longest component: the runtime, forecasts and what is waited for."""
        return self.round - self.round_computing


@dataclass
class Generations:
    """What was measured of one way, turn by turn: seconds of a generation, and rank 0's at the end of every step."""

    runs: list[tuple[float, list[float]]] = field(default_factory=list)

    def add(self, subject: Subject, steps: int) -> float:
        """One more; every rank takes part. Returns its seconds, until the slowest rank was done."""
        dist.barrier()
        begin, ends = time.perf_counter(), list[float]()
        own = generate(subject, steps, lambda _: ends.append(time.perf_counter() - begin))
        taken = max(gather(own))
        self.runs.append((taken, gather(ends)[0]))
        return taken

    @property
    def quickest(self) -> tuple[float, list[float]]:
        """The one that took the shortest time."""
        return min(self.runs)


def link_here() -> Link:
    """What the first two processes are joined by: the least of what several messages take, there and back."""
    half = {size: _there_and_back(size) / 2 for size in (_LARGE, _SMALL)}
    return Link("measured", (_LARGE - _SMALL) / (half[_LARGE] - half[_SMALL]), half[_SMALL])


def _there_and_back(size: int) -> float:
    rank, message = dist.get_rank(), torch.zeros(size, dtype=torch.uint8)
    taken = []
    for _ in range(_SENT):
        dist.barrier()
        begin = time.perf_counter()
        for sender in range(2):
            if rank == sender:
                dist.send(message, 1 - rank)
            elif rank == 1 - sender:
                dist.recv(message, sender)
        taken.append(time.perf_counter() - begin)
    return gather(min(taken))[0]


def first_step_of(subject: Subject) -> FirstStep:
    """The denoiser's first call, recorded, and how many a step makes."""
    ((name, denoiser),) = find_denoisers(subject.pipe).items()
    traces: list[Trace] = []

    def look(call: Call) -> object:
        result, trace = record(denoiser, call, CallForm(denoiser).batch(call))
        traces.append(trace)
        return result

    undo = intercept_call(denoiser, look)
    generate(subject, 1)
    undo()
    return FirstStep(name, traces[0], len(traces), pictures=1)


def hold(
    name: str, subject: Subject, ways: Sequence[Mapping[str, Any]], settings: Settings, are_timed: bool = True
) -> list[Held]:
    """All ways of one model, turn by turn; every rank takes part.

    Args:
        are_timed: whether the units are; otherwise the plan goes by what is counted of them.
    """
    subject.pipe.set_progress_bar_config(disable=True)
    step = first_step_of(subject)
    measured: list[Conditions] = []
    found = [Generations() for _ in ways]
    plain = Generations()
    for _ in range(settings.runs):
        measured.append(conditions(subject, step, ways, settings, are_timed))
        plain.add(subject, settings.steps)
        for way, generations in zip(ways, found, strict=True):
            async_diff = AsyncDiff(subject.pipe, warmup=settings.warmup, executor="distributed", **way)
            generate(subject, _UNTIMED_STEPS)  # records the call
            spent = 0.0
            while spent < _SECONDS:
                spent += generations.add(subject, settings.steps)
            async_diff.gather()  # the pipeline is whole again, whatever it was divided into
    given, described = functools.reduce(least, measured), describe(subject.pipe, step)
    return [
        judged(name, described, given, Way(stride=1, warmup=settings.warmup, **way), generations, plain)
        for way, generations in zip(ways, found, strict=True)
    ]


def conditions(
    subject: Subject, step: FirstStep, ways: Sequence[Mapping[str, Any]], settings: Settings, are_timed: bool
) -> Conditions:
    """What a plan is given, measured once by all ranks at the same time; the slowest counts, which others wait for."""
    arguments = {**subject.arguments, "guidance_scale": GUIDANCE, "output_type": "latent"}
    units = {unit.name for unit in build_graph(step.trace, CPU).units} if are_timed else set()
    dist.barrier()
    groups = {way["guidance"] for way in ways} - {1}
    times = time_calls(subject.pipe, step.denoiser, arguments, groups, units)
    times = Times(_slowest(times.calls), max(gather(times.outside)), _slowest(times.units))
    alone = {}
    for components in sorted({way["components"] for way in ways}):
        dist.barrier()
        here = time_rounds(subject.pipe, arguments, components, times)
        alone[components] = AloneTimes(max(gather(here.round)), max(gather(here.bridged)))
    return Conditions(
        devices=dist.get_world_size(),
        memory=None,
        link=link_here(),
        rates=CPU,
        steps=settings.steps,
        warmup=settings.warmup,
        call=times.calls,
        outside=times.outside,
        alone=alone,
        units=times.units,
    )


def _slowest(seconds: Mapping[Key, float]) -> dict[Key, float]:
    """Of what all ranks have measured."""
    everyone = gather(dict(seconds))
    return {key: max(each[key] for each in everyone) for key in seconds}


def least(one: Conditions, other: Conditions) -> Conditions:
    """The shorter times of two measurements."""
    quicker = {
        components: AloneTimes(min(first.round, second.round), min(first.bridged, second.bridged))
        for components, first in one.alone.items()
        for second in (other.alone[components],)
    }
    link = Link("measured", max(one.link.bandwidth, other.link.bandwidth), min(one.link.latency, other.link.latency))
    return replace(
        one,
        link=link,
        call={part: min(seconds, other.call[part]) for part, seconds in one.call.items()},
        outside=min(one.outside, other.outside),
        alone=quicker,
        units={unit: min(seconds, other.units[unit]) for unit, seconds in one.units.items()},
    )


def judged(
    model: str, subject: Described, given: Conditions, way: Way, generations: Generations, plain: Generations
) -> Held:
    """A way's prediction against its generations."""
    predicted, (measured, ends) = Planner(subject, given, {}).timeline(way), generations.quickest
    nothing_beside = replace(given, alone=dict.fromkeys(given.alone, AloneTimes(0.0, 0.0)), outside=0.0)
    kinds = {span.step: span.kind.value for span in predicted.spans}
    ends_predicted = [max(span.end for span in predicted.spans if span.step == step) for step in range(given.steps)]
    computing: dict[tuple[int, int], float] = defaultdict(float)  # of a rank in a step, all calls together
    for span in Planner(subject, nothing_beside, {}).timeline(way).spans:
        if span.kind is StepKind.ROUND and span.activity is Activity.COMPUTING:
            computing[span.step, span.rank] += span.end - span.begin
    rounds = [b - a for step, (a, b) in enumerate(itertools.pairwise(ends), 1) if kinds[step] == StepKind.ROUND.value]
    return Held(
        model=model,
        way=str(way),
        predicted=predicted.seconds,
        measured=measured,
        runs=tuple(taken for taken, _ in generations.runs),
        sequential=plain.quickest[0],
        sequential_predicted=given.steps * subject.calls * (given.call[1.0] + given.outside),
        round=statistics.median(rounds) if rounds else 0.0,
        round_computing=max(computing.values(), default=0.0),
        steps=_together(kinds, ends),
        steps_predicted=_together(kinds, ends_predicted),
    )


def _together(kinds: Mapping[int, str], ends: Sequence[float]) -> dict[str, float]:
    """Seconds of all steps of each kind; those of the first one apart."""
    found: dict[str, float] = defaultdict(float)
    for step, (begin, end) in enumerate(itertools.pairwise([0.0, *ends])):
        found[kinds[step] if step else "first"] += end - begin
    return dict(found)


def work(rank: int, meeting_point: str, settings: Settings, out: Path) -> None:
    """One of the worker processes."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    diffusers.utils.logging.set_verbosity_error()
    dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=WORLD_SIZE)
    try:
        held = [way for name in settings.models for way in hold(name, MODELS[name](), WAYS, settings)]
        if rank == 0:
            save(out, settings, held)
            show(held)
    finally:
        dist.destroy_process_group()


def save(out: Path, settings: Settings, held: list[Held]) -> None:
    """Write everything as JSON."""
    content = {
        "machine": machine(),
        "settings": asdict(settings),
        "ways": [told(way) for way in held],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def told(way: Held) -> dict[str, Any]:
    """As JSON has it."""
    of_all = {"error_in_per_cent": way.error, "spread_in_per_cent": way.spread, "overhead_of_a_round": way.overhead}
    return asdict(way) | of_all


def show(held: list[Held]) -> None:
    """Print a table."""
    table = Table(
        "model", "way", "predicted", "measured", "error", "spread", "beside a round's computing", "plain", "predicted"
    )
    for way in held:
        seconds = [f"{value:.3f} s" for value in (way.predicted, way.measured)]
        plain = [f"{value:.3f} s" for value in (way.sequential, way.sequential_predicted)]
        overhead = f"{1000 * way.overhead:.2f} ms" if way.round else ""
        table.add_row(way.model, way.way, *seconds, f"{way.error:+.1f} %", f"{way.spread:.1f} %", overhead, *plain)
    Console(width=max(Console().width, 150)).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--runs", type=int, default=3, help="turns")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "planning.json")
    given = parser.parse_args()
    settings = Settings(tuple(given.models), given.runs, given.steps, given.warmup)
    with tempfile.TemporaryDirectory() as folder:
        arguments = (str(Path(folder) / "meeting"), settings, given.out)
        spawn(work, args=arguments, nprocs=WORLD_SIZE)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
