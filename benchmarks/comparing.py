"""What it costs that the ranks compare what must be the same: the share of a generation of twenty calls.

Two processes with one thread each draw with the demo U-Net. Timed are the generation, and in it all that is done to
compare: the fingerprint of structure and weights, every argument, the random state, and the words exchanged for it.
That is told three ways. As a rank has it, where waiting for the other one counts; from when both have come to a
comparison until both are through, since one that is late would be waited for soon, compared or not; and the processor's
time, which a machine that has other work to do lengthens least.
"""

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from asyncdiff import AsyncDiff, load_demo
from asyncdiff.denoiser.look import Look
from asyncdiff.exchange.distributed import DistributedExchange
from asyncdiff.exchange.world import DistributedWorld
from asyncdiff.launch import enter_process, run_processes
from benchmarks.machine import machine

STEPS = 20
TIMED = (
    (DistributedWorld, "check_agreement"),
    (DistributedWorld, "share_random_state"),
    (DistributedWorld, "renew"),
    (DistributedExchange, "check_agreement"),
    (Look, "structure"),
)


@dataclass(frozen=True)
class Comparison:
    """When one began and ended, by the clock that all processes of a machine have, and the processor's seconds."""

    begin: float
    end: float
    processor: float


@dataclass(frozen=True)
class Generation:
    """The seconds of one, and what was compared in it."""

    seconds: float
    processor: float
    comparisons: tuple[Comparison, ...]


def measure(runs: int) -> tuple[Generation, ...]:
    """Some generations on one rank."""
    enter_process()
    pipe = load_demo("unet")
    pipe.set_progress_bar_config(disable=True)
    found = []
    with AsyncDiff(pipe, components=2, executor="distributed", timeout=120):
        for number in range(runs + 1):
            begin, processor = time.perf_counter(), time.process_time()
            with _comparisons() as comparisons:
                generator = torch.Generator().manual_seed(number)
                pipe("rocket", num_inference_steps=STEPS, generator=generator, output_type="latent")
            seconds = time.perf_counter() - begin
            found.append(Generation(seconds, time.process_time() - processor, tuple(comparisons)))
    return tuple(found[1:])  # in the first one the denoiser is recorded


@contextlib.contextmanager
def _comparisons() -> Iterator[list[Comparison]]:
    """Gets those that are made meanwhile."""
    made: list[Comparison] = []
    running: list[str] = []
    with contextlib.ExitStack() as stack:
        for owner, name in TIMED:
            stack.enter_context(mock.patch.object(owner, name, _timed(getattr(owner, name), made, running)))
        yield made


def _timed(function: Callable[..., Any], made: list[Comparison], running: list[str]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        begin, processor = time.perf_counter(), time.process_time()
        running.append(function.__name__)
        try:
            return function(*args, **kwargs)
        finally:
            running.pop()
            if not running:  # else it is part of another one
                made.append(Comparison(begin, time.perf_counter(), time.process_time() - processor))

    return timed


def _shares(ranks: Sequence[Generation]) -> dict[str, list[float]]:
    """Of one generation on all ranks: seconds of comparing, and their share of it."""
    seconds = [sum(each.end - each.begin for each in rank.comparisons) for rank in ranks]
    processor = [sum(each.processor for each in rank.comparisons) for rank in ranks]
    together = sum(
        max(each.end for each in same) - max(each.begin for each in same)
        for same in zip(*(rank.comparisons for rank in ranks), strict=True)
    )
    whole = max(rank.seconds for rank in ranks)
    return {
        "seconds_of_the_generation": [rank.seconds for rank in ranks],
        "seconds": seconds,
        "share": [each / rank.seconds for each, rank in zip(seconds, ranks, strict=True)],
        "seconds_when_all_have_come": [together],
        "share_when_all_have_come": [together / whole],
        "processor_seconds": processor,
        "processor_share": [each / rank.processor for each, rank in zip(processor, ranks, strict=True)],
    }


def main() -> None:
    """Measure, print, and write benchmarks/results/comparing.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/comparing.json"))
    arguments = parser.parse_args()
    of_ranks = run_processes(2, measure, arguments.runs)
    generations = [_shares(ranks) for ranks in zip(*of_ranks, strict=True)]
    medians = {
        name: [statistics.median(values) for values in zip(*(each[name] for each in generations), strict=True)]
        for name in generations[0]
    }
    result = {
        "command": f"python -m benchmarks.comparing --runs {arguments.runs}",
        "machine": machine(),
        "medians": medians,
        "generations": generations,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, values in medians.items():
        print(name, " ".join(f"{value:.2%}" if "share" in name else f"{1000 * value:.1f} ms" for value in values))


if __name__ == "__main__":
    main()
