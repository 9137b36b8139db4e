"""What a round costs beside the components' own work: operators started, and time of the host.

On GPUs small models are bound by the host and by the number of kernels that it starts; there a division pays only as
far as it starts fewer. Both are ratios to one ordinary call, measured side by side in one run: real structures, tiny
widths, all ranks' rounds one after the other in this process.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from asyncdiff import AsyncDiff
from benchmarks.gpu.loop import Loop, Setting
from benchmarks.gpu.measure import OperatorCounter
from benchmarks.gpu.models import SUBJECTS
from benchmarks.machine import machine

MODELS = ("sd15", "flux")
COMPONENTS = (1, 2, 4)
# Warm-up, and rounds until all versions are there that a forecast looks at.
FIRST_STEADY, STEADY = 10, 12
# Times at most, and where they are told: what all ranks start, and take, relative to one call.
MOST_OPERATORS = {2: 1.10, 4: 1.30}
MOST_HOST_TIME = {2: 1.10, 4: 1.20}


@dataclass(frozen=True)
class Overhead:
    """What all ranks' rounds together cost, in ordinary calls.

    Attributes:
        model: one of `benchmarks.gpu.models`.
        components: N.
        method: what stands in for what is not there yet.
        operators: those of one rank's round on average that are no views, relative to a call's divided by N.
        host_time: of all ranks' rounds one after the other.
        operators_of_a_call: what the first is relative to.
        milliseconds_of_a_call: what the second is relative to.
    """

    model: str
    components: int
    method: str
    operators: float
    host_time: float
    operators_of_a_call: int
    milliseconds_of_a_call: float


def operators_of(loop: Loop, settings: dict[str, Any] | None) -> int:
    """Operators of one steady step: of an ordinary call, or of the rounds of all ranks."""
    counts: list[int] = []

    def count(index: int, call: Callable[[], Any]) -> Any:
        if index != FIRST_STEADY:
            return call()
        with OperatorCounter() as counter:
            result = call()
        counts.append(counter.count)
        return result

    with _attached(loop, settings):
        loop(FIRST_STEADY + 1, count)
    return counts[0]


def seconds_of(loop: Loop, settings: dict[str, Any] | None, runs: int) -> Iterator[list[float]]:
    """The seconds of every steady step, generation by generation."""
    seconds: list[float] = []

    def clock(index: int, call: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        result = call()
        if index >= FIRST_STEADY:
            seconds.append(time.perf_counter() - begin)
        return result

    with _attached(loop, settings):
        loop(FIRST_STEADY + STEADY, clock)  # in which everything happens once that is slower the first time
        for _ in range(runs):
            seconds.clear()
            loop(FIRST_STEADY + STEADY, clock)
            yield list(seconds)


def measure(model: str, components: int, method: str, runs: int) -> Overhead:
    """One model in so many components; ordinary generations and divided ones take turns."""
    setting = Setting(torch.device("cpu"), torch.float32, tiny=True)
    plain, divided = Loop(SUBJECTS[model], setting), Loop(SUBJECTS[model], setting)
    settings = {"components": components, "method": method}
    operators = operators_of(plain, None)
    counted = operators_of(divided, settings)
    pairs = list(zip(seconds_of(plain, None, runs), seconds_of(divided, settings, runs), strict=True))
    ratios = [statistics.median(rounds) / statistics.median(calls) for calls, rounds in pairs]
    call = statistics.median(seconds for calls, _ in pairs for seconds in calls)
    return Overhead(model, components, method, counted / operators, statistics.median(ratios), operators, 1000 * call)


@contextmanager
def _attached(loop: Loop, settings: dict[str, Any] | None) -> Iterator[None]:
    if settings is None:
        yield
        return
    with AsyncDiff(loop, executor="local", **settings):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9, help="pairs of generations for every figure")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/overhead.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    print("model | N | method | operators of a round, in calls / N | host time of all rounds, in calls")
    for model in MODELS:
        for components in COMPONENTS:
            for method in ("paper", "forecast"):
                overhead = measure(model, components, method, arguments.runs)
                print(
                    f"{model} | {components} | {method} | {overhead.operators:.3f} | {overhead.host_time:.3f}",
                    flush=True,
                )
                found.append(asdict(overhead))
    arguments.output.write_text(json.dumps({"machine": machine(), "overheads": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
