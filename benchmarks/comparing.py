"""What it costs that the ranks compare what must be the same: the share of a generation of twenty calls.

Two processes with one thread each draw with the demo U-Net. Timed are the generation, and in it all that is done to
compare: the fingerprint of structure and weights, every argument, the random state, and the words exchanged for it.
Waiting for a rank that is not there yet counts too, on the rank that waits.
"""

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from asyncdiff import AsyncDiff, load_demo
from asyncdiff.exchange.distributed import DistributedExchange
from asyncdiff.exchange.world import DistributedWorld
from asyncdiff.launch import enter_process, run_processes
from asyncdiff.runtime import dividing
from benchmarks.machine import machine

STEPS = 20
TIMED = (
    (DistributedWorld, "check_agreement"),
    (DistributedWorld, "share_random_state"),
    (DistributedWorld, "renew"),
    (DistributedExchange, "check_agreement"),
    (dividing, "structure_of"),
)


def measure(runs: int) -> tuple[tuple[float, ...], ...]:
    """On one rank: the seconds of every generation, and those of comparing in it."""
    enter_process()
    pipe, spent = load_demo("unet"), [0.0]
    pipe.set_progress_bar_config(disable=True)
    found: list[tuple[float, ...]] = []
    with AsyncDiff(pipe, components=2, executor="distributed", timeout=120):
        for number in range(runs + 1):
            spent[0] = 0.0
            begin = time.perf_counter()
            with _timing(spent):
                generator = torch.Generator().manual_seed(number)
                pipe("rocket", num_inference_steps=STEPS, generator=generator, output_type="latent")
            if number:  # in the first one the denoiser is recorded
                found.append((time.perf_counter() - begin, spent[0]))
    return tuple(found)


@contextlib.contextmanager
def _timing(spent: list[float]) -> Iterator[None]:
    """Adds what the calls of the timed functions take."""
    with contextlib.ExitStack() as stack:
        for owner, name in TIMED:
            stack.enter_context(mock.patch.object(owner, name, _timed(getattr(owner, name), spent)))
        yield


def _timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[0] += time.perf_counter() - begin

    return timed


def main() -> None:
    """Measure, print, and write benchmarks/results/comparing.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/comparing.json"))
    arguments = parser.parse_args()
    of_ranks = run_processes(2, measure, arguments.runs)
    shares = [statistics.median(spent / whole for whole, spent in runs) for runs in of_ranks]
    result = {
        "command": f"python -m benchmarks.comparing --runs {arguments.runs}",
        "machine": machine(),
        "median_share_of_a_generation": shares,
        "seconds_and_seconds_comparing": of_ranks,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    for rank, (share, runs) in enumerate(zip(shares, of_ranks, strict=True)):
        seconds = statistics.median(spent for _, spent in runs)
        whole = statistics.median(each for each, _ in runs)
        print(f"rank {rank}: {1000 * seconds:.1f} ms of {whole:.2f} s, {share:.2%}")


if __name__ == "__main__":
    main()
