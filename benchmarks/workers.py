"""What a picture costs through `asyncdiff.Workers`, against the same in processes that torch's launcher has started.

Both have two processes that stay, of the same model with the same settings. They draw in turns, one picture each, so
that what else the machine does falls on both; those that have no turn sleep. Timed is the whole call of the pipeline
where it is called: from the caller's process, or on rank 0. The first pictures are not timed. What is told is the
median of the differences between two neighbours, with its 95 % interval; and that of what lies outside of rank 0's own
work, from its first part to its last: that does not depend on how fast the machine computes at the time.
"""

import argparse
import json
import math
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from asyncdiff import AsyncDiff, Workers
from asyncdiff.launch import enter_process, run_processes
from asyncdiff.loading import load_pipeline
from asyncdiff.timeline import Row, row_of
from benchmarks.machine import machine

DEVICES = 2
UNTIMED = 3
AIM = 10  # milliseconds that a picture may take longer
SECONDS = 300  # that one waits for the other
PAUSE = 0.05  # in which everybody has gone to sleep


@dataclass(frozen=True)
class Task:
    """What is drawn: so many pictures of so many steps.

    Attributes:
        folder: where whoever draws finds its turn, a file for each picture, and leaves its seconds.
    """

    model: str
    steps: int
    pictures: int
    folder: str

    def turn(self, number: int) -> Path:
        return Path(self.folder, f"turn-{number}")

    def seconds(self, number: int) -> Path:
        return Path(self.folder, f"seconds-{number}")


@dataclass(frozen=True)
class Seconds:
    """Of a picture: the whole call, and what of it lies outside of rank 0's own work."""

    call: float
    outside: float


def draw(pipe: Any, task: Task, number: int) -> float:
    """The seconds of a picture."""
    generator = torch.Generator().manual_seed(number)
    begin = time.perf_counter()
    pipe("a red apple", num_inference_steps=task.steps, generator=generator)
    return time.perf_counter() - begin


def beside(call: float, row: Row) -> Seconds:
    """The seconds of a picture, given what rank 0 did."""
    return Seconds(call, call - max(span.end for span in row.spans) + min(span.begin for span in row.spans))


def more(pairs: Sequence[tuple[Seconds, Seconds]], name: str) -> dict[str, Any]:
    """By how many milliseconds the second is longer: the median, and its 95 % interval, from the differences' order."""
    found = sorted(1000 * (getattr(second, name) - getattr(first, name)) for first, second in pairs)
    middle, half = len(found) / 2, math.sqrt(len(found))
    interval = [found[max(0, int(middle - half))], found[min(len(found) - 1, int(middle + half))]]
    return {"median": statistics.median(found), "interval": interval}


def wait_for(path: Path) -> None:
    end = time.monotonic() + SECONDS
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"{path} did not appear")
        time.sleep(0.005)


def under_torchrun(task: Task) -> None:
    """What every process does that the launcher starts."""
    rank, device = enter_process()
    pipe = load_pipeline(task.model, None, device)
    pipe.set_progress_bar_config(disable=bool(rank))
    with AsyncDiff(pipe, components=DEVICES, executor="distributed") as async_diff:
        for number in range(UNTIMED + task.pictures):
            wait_for(task.turn(number))
            with async_diff.noted() as events:
                call = draw(pipe, task, number)
            if not rank:
                made = task.seconds(number).with_suffix(".part")
                made.write_text(json.dumps(asdict(beside(call, row_of(rank, events)))), encoding="utf-8")
                made.rename(task.seconds(number))


def in_turns(task: Task) -> dict[str, Any]:
    """Both, one picture each."""
    launcher = threading.Thread(target=run_processes, args=(DEVICES, under_torchrun, task), daemon=True)
    launcher.start()
    begin = time.perf_counter()
    with Workers(task.model, DEVICES, components=DEVICES) as pipe:
        opened = time.perf_counter() - begin
        pairs = []
        for number in range(UNTIMED + task.pictures):
            task.turn(number).touch()
            wait_for(task.seconds(number))
            time.sleep(PAUSE)
            launched = Seconds(**json.loads(task.seconds(number).read_text(encoding="utf-8")))
            with pipe.timed():
                call = draw(pipe, task, number)
            pairs.append((launched, beside(call, pipe.timeline().rows[0])))
            time.sleep(PAUSE)
        begin = time.perf_counter()
    closed = time.perf_counter() - begin
    launcher.join(SECONDS)
    timed = pairs[UNTIMED:]
    return {
        "model": task.model,
        "steps": task.steps,
        "milliseconds_more": more(timed, "call"),
        "milliseconds_more_outside": more(timed, "outside"),
        "under_torchrun": [asdict(first) for first, _ in timed],
        "through_workers": [asdict(second) for _, second in timed],
        "seconds_to_open": opened,
        "seconds_to_close": closed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo-unet", help="a demo model, or a folder")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 20])
    parser.add_argument("--pictures", type=int, default=60, help="of each kind")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/workers.json"))
    arguments = parser.parse_args()
    results = []
    for steps in arguments.steps:
        with tempfile.TemporaryDirectory() as folder:
            result = in_turns(Task(arguments.model, steps, arguments.pictures, folder))
        launched, through = (
            1000 * statistics.median(each["call"] for each in result[name])
            for name in ("under_torchrun", "through_workers")
        )
        whole, outside = (
            "{:+.1f} ms ({:+.1f} to {:+.1f})".format(told["median"], *told["interval"])
            for told in (result["milliseconds_more"], result["milliseconds_more_outside"])
        )
        print(
            f"{arguments.model}, {steps} steps: {launched:.1f} ms under torchrun, {through:.1f} ms through Workers; of "
            f"neighbours {whole}, outside of rank 0's own work {outside} (aim: at most {AIM}); opened in "
            f"{result['seconds_to_open']:.1f} s"
        )
        results.append(result)
    arguments.output.write_text(
        json.dumps({"machine": machine(), "results": results}, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
