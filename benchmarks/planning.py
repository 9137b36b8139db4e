"""Hold a plan's predicted times against two real processes: how far is each way off, in per cent?

Two worker processes of one thread each live through the whole measurement. The plan is given what is measured here: a
call's time, while the other process makes one as well (they share caches and memory), and the link between them, by
sending it bytes. What it predicts is the denoising loop; measured is the pipeline's call with its prompt encoded
before, and no decoding.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
from asyncdiff.denoiser.rates import CPU
from asyncdiff.denoiser.trace import Trace, record
from asyncdiff.hooks import intercept_call
from asyncdiff.planning.candidates import AloneTimes, Conditions, Planner, Way
from asyncdiff.planning.describing import describe
from asyncdiff.planning.first_step import FirstStep
from asyncdiff.planning.links import Link
from asyncdiff.planning.measuring import Times, time_calls, time_rounds
from benchmarks.machine import machine
from benchmarks.speedup import GUIDANCE, Settings, Subject, demo_dit, demo_unet, gather, generate, large_unet

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


@dataclass(frozen=True)
class Held:
    """A way's prediction against what was measured: medians over the runs, in seconds."""

    model: str
    way: str
    predicted: float
    measured: float
    runs: tuple[float, ...]
    sequential: float
    sequential_predicted: float

    @property
    def error(self) -> float:
        """Of the prediction, in per cent of what was measured."""
        return 100 * (self.predicted / self.measured - 1)


def link_here() -> Link:
    """What the two processes are joined by: medians over what several messages take, there and back."""
    half = {size: _there_and_back(size) / 2 for size in (_LARGE, _SMALL)}
    return Link("measured", (_LARGE - _SMALL) / (half[_LARGE] - half[_SMALL]), half[_SMALL])


def _there_and_back(size: int) -> float:
    rank, message = dist.get_rank(), torch.zeros(size, dtype=torch.uint8)
    taken = []
    for _ in range(_SENT):
        dist.barrier()
        begin = time.perf_counter()
        for sender in range(WORLD_SIZE):
            if rank == sender:
                dist.send(message, 1 - rank)
            else:
                dist.recv(message, 1 - rank)
        taken.append(time.perf_counter() - begin)
    return statistics.median(gather(statistics.median(taken)))


def first_step_of(subject: Subject) -> FirstStep:
    """The denoiser's first call, recorded."""
    ((name, denoiser),) = find_denoisers(subject.pipe).items()
    traces: list[Trace] = []

    def look(call: Call) -> object:
        if traces:
            return call()
        result, trace = record(denoiser, call, CallForm(denoiser).batch(call))
        traces.append(trace)
        return result

    undo = intercept_call(denoiser, look)
    generate(subject, 1)
    undo()
    return FirstStep(name, traces[0], 1)


def hold(name: str, settings: Settings, link: Link) -> list[Held]:
    """All ways of one model; every rank takes part."""
    plain = MODELS[name]()
    plain.pipe.set_progress_bar_config(disable=True)
    step = first_step_of(plain)
    arguments = {**plain.arguments, "guidance_scale": GUIDANCE, "output_type": "latent"}
    dist.barrier()
    times = time_calls(plain.pipe, step.denoiser, arguments, (2,))
    # The slower rank's, on which the other one waits.
    calls = {part: max(gather(seconds)) for part, seconds in times.calls.items()}
    times = Times(calls, max(gather(times.outside)))
    alone = {}
    for components in sorted({told["components"] for told in WAYS}):
        dist.barrier()
        alone[components] = time_rounds(plain.pipe, arguments, components, times)
    conditions = Conditions(
        devices=WORLD_SIZE,
        memory=None,
        link=link,
        rates=CPU,
        steps=settings.steps,
        warmup=settings.warmup,
        call=times.calls,
        outside=times.outside,
        alone={
            components: AloneTimes(max(gather(found.round)), max(gather(found.bridged)))
            for components, found in alone.items()
        },
    )
    planner = Planner(describe(plain.pipe, step, 1), conditions, {})
    found = []
    for told in WAYS:
        way = Way(stride=1, warmup=settings.warmup, **told)
        predicted = planner.timeline(way).seconds
        async_diff = AsyncDiff(plain.pipe, warmup=settings.warmup, executor="distributed", **told)
        runs = []
        for number in range(settings.runs + 1):
            dist.barrier()
            taken = max(gather(generate(plain, settings.steps)))
            runs += [taken] if number else []  # the first one records the call
        async_diff.gather()  # the pipeline is whole again, whatever it was divided into
        dist.barrier()
        sequential = max(gather(generate(plain, settings.steps)))
        expected = settings.steps * (times.calls[1.0] + times.outside)
        found.append(Held(name, str(way), predicted, statistics.median(runs), tuple(runs), sequential, expected))
    return found


def work(rank: int, meeting_point: str, settings: Settings, out: Path) -> None:
    """One of the worker processes."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    diffusers.utils.logging.set_verbosity_error()
    dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=WORLD_SIZE)
    try:
        link = link_here()
        held = list(itertools.chain.from_iterable(hold(name, settings, link) for name in settings.models))
        if rank == 0:
            save(out, settings, link, held)
            show(held)
    finally:
        dist.destroy_process_group()


def save(out: Path, settings: Settings, link: Link, held: list[Held]) -> None:
    """Write everything as JSON."""
    content = {
        "machine": machine(),
        "settings": asdict(settings),
        "link": asdict(link),
        "ways": [asdict(way) | {"error_in_per_cent": way.error} for way in held],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def show(held: list[Held]) -> None:
    """Print a table."""
    table = Table("model", "way", "predicted", "measured", "error", "plain: predicted", "measured, both ranks at once")
    for way in held:
        seconds = [f"{value:.3f} s" for value in (way.predicted, way.measured)]
        plain = [f"{value:.3f} s" for value in (way.sequential_predicted, way.sequential)]
        table.add_row(way.model, way.way, *seconds, f"{way.error:+.1f} %", *plain)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--runs", type=int, default=3)
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
