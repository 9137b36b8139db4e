"""How close pictures stay where tokens are divided, beside components on as many devices, and one device that bridges.

The demo DiT, one process that computes for all devices, every way on the same prompts and seeds: PSNR against the
ordinary picture, its mean, the worst, and the paired difference to other ways with its 95 % interval; what a rank holds
and what all of them send in a round. The modelled speed-up counts no communication. With `--processes` several ways are
drawn at the same time. What the file has already, of the same prompts and conditions, is not drawn again.

With keys of the step itself (`tokens=P`) every step is the ordinary one, unless they travel in few bits: of those ways
that alone is drawn in which steps are bridged.
"""

import argparse
import concurrent.futures
import json
import math
import multiprocessing
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from asyncdiff import AsyncDiff, Method, load_demo
from asyncdiff.demo import demo_prompts
from benchmarks.machine import machine

_AT_ONCE = 8  # pictures in a call
_T95 = 1.96

_COUNTS = (2, 4, 8)  # of devices
_IN_BF16 = "ordinary, in bf16"  # what the number format of most users costs: no way to draw on several devices
# What can be compared, as arguments of AsyncDiff.
WAYS: dict[str, dict[str, Any]] = {
    _IN_BF16: {},
    **{f"one device, bridge={bridge}": {"components": 1, "bridge": bridge} for bridge in (2, 3, 4, 6)},
    **{f"components={count}": {"components": count} for count in _COUNTS},
    **{f"components={count}, bridge=2": {"components": count, "bridge": 2} for count in _COUNTS},
    **{f"tokens={count}, bridge=2": {"tokens": count, "bridge": 2} for count in _COUNTS},
    # In 8 bits the picture is the same for every number of devices that deals out heads.
    **{f"tokens={count}, 8 bits": {"tokens": count, "method": Method(bits=8)} for count in (2, 4)},
    **{
        f"tokens={count}, bridge=2, 8 bits": {"tokens": count, "bridge": 2, "method": Method(bits=8)}
        for count in (2, 4)
    },
    **{f"tokens={count}, fresh=False": {"tokens": count, "fresh": False} for count in _COUNTS},
    **{
        f"tokens={count}, fresh=False, not packed": {"tokens": count, "fresh": False, "method": Method()}
        for count in _COUNTS
    },
    **{f"tokens={count}, components=2": {"tokens": count, "components": 2} for count in (2, 4)},
}

# Pairs whose difference is told: the first is closer by so much.
PAIRS = (
    *((f"tokens={count}, bridge=2", f"components={count}") for count in _COUNTS),
    *((f"tokens={count}, bridge=2, 8 bits", f"components={count}") for count in (2, 4)),
    *((f"tokens={count}, fresh=False", f"components={count}") for count in _COUNTS),
    ("tokens=4, bridge=2", "one device, bridge=6"),
)


@dataclass(frozen=True)
class Condition:
    """What pictures are drawn with.

    Attributes:
        guidance: guidance scale; None for the pipeline's own, 1 for none.
        fresh_noise: whether the sampler adds noise in every step.
    """

    steps: int
    warmup: int
    guidance: float | None = None
    fresh_noise: bool = False


@dataclass(frozen=True)
class Task:
    """One way, and the prompts; without a way the ordinary pipeline."""

    condition: Condition
    prompts: tuple[str, ...]
    way: str | None = None


@dataclass(frozen=True)
class Drawn:
    """Pictures, shape (prompts, channels, height, width), and what AsyncDiff says of their way."""

    way: str | None
    pictures: Tensor
    modelled_speedup: float = 1.0
    bytes_per_round: int = 0
    held_bytes: int = 0


@dataclass(frozen=True)
class Measured:
    """One way: the modelled speed-up, bytes, and the PSNR of every picture in dB.

    Attributes:
        bytes_per_round: what all ranks send.
        held_bytes: what all of them hold, of a batch of so many pictures as are drawn at once.
    """

    way: str
    modelled_speedup: float
    bytes_per_round: int
    held_bytes: int
    psnr: tuple[float, ...]


def draw(task: Task) -> Drawn:
    """Pictures of the prompts, each from noise of its own."""
    torch.set_num_threads(1)
    condition, prompts = task.condition, task.prompts
    pipe: Any = load_demo("dit")
    pipe.set_progress_bar_config(disable=True)
    if task.way == _IN_BF16:
        pipe.to(dtype=torch.bfloat16)
    if condition.fresh_noise:
        pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config, stochastic_sampling=True)
    given: dict[str, Any] = {"num_inference_steps": condition.steps, "output_type": "pt"}
    if condition.guidance is not None:
        given["guidance_scale"] = condition.guidance

    def every() -> Tensor:
        pictures = []
        for start in range(0, len(prompts), _AT_ONCE):
            batch = list(prompts[start : start + _AT_ONCE])
            torch.manual_seed(start)  # of samplers whose noise the pipeline draws without its generators
            generators = [torch.Generator().manual_seed(start + number) for number in range(len(batch))]
            pictures.append(pipe(batch, generator=generators, **given)[0])
        return torch.cat(pictures).float()

    if task.way in (None, _IN_BF16):
        return Drawn(task.way, every())
    with AsyncDiff(pipe, warmup=condition.warmup, guidance=1, executor="local", **WAYS[task.way]) as async_diff:
        pictures = every()
        (denoiser,) = async_diff.report().denoisers
    return Drawn(task.way, pictures, denoiser.modelled_speedup, denoiser.bytes_per_round, denoiser.held_bytes)


def measured(drawn: Drawn, plain: Tensor) -> Measured:
    """One way, against the ordinary pictures."""
    errors = (drawn.pictures - plain).square().flatten(1).mean(1)
    psnr = tuple(-10 * math.log10(max(float(error), 1e-30)) for error in errors)
    return Measured(str(drawn.way), drawn.modelled_speedup, drawn.bytes_per_round, drawn.held_bytes, psnr)


def closer(found: Sequence[Measured]) -> list[dict[str, Any]]:
    """How much closer one way is than another: the mean, and half the width of its interval, in dB."""
    by_name, told = {one.way: one for one in found}, []
    for first, second in PAIRS:
        if not {first, second} <= by_name.keys():
            continue
        pairs = zip(by_name[first].psnr, by_name[second].psnr, strict=True)
        differences = [ours - theirs for ours, theirs in pairs]
        half = _T95 * statistics.stdev(differences) / math.sqrt(len(differences))
        told.append({"closer": first, "than": second, "decibels": statistics.mean(differences), "half_of_95": half})
    return told


def record(found: Sequence[Measured], condition: Condition, prompts: Sequence[str]) -> dict[str, Any]:
    """What is written."""
    order = list(WAYS)
    return {
        "command": " ".join(["python -m benchmarks.tokens", *sys.argv[1:]]),
        "condition": asdict(condition),
        "machine": machine(),
        "prompts": list(prompts),
        "ways": [
            asdict(one) | {"mean": statistics.mean(one.psnr), "worst": min(one.psnr)}
            for one in sorted(found, key=lambda one: order.index(one.way))
        ],
        "closer": closer(found),
    }


def kept(file: Path, condition: Condition, prompts: Sequence[str]) -> list[Measured]:
    """What the file has of the same pictures."""
    if not file.is_file():
        return []
    held = json.loads(file.read_text(encoding="utf-8"))
    if (held.get("condition"), held["prompts"]) != (asdict(condition), list(prompts)):
        return []
    names = Measured.__dataclass_fields__
    return [Measured(**{name: way[name] for name in names} | {"psnr": tuple(way["psnr"])}) for way in held["ways"]]


def several(tasks: Iterable[Task], processes: int) -> Iterator[Drawn]:
    """All of them, as they are done."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, context) as pool:
        waiting = [pool.submit(draw, task) for task in tasks]
        for done in concurrent.futures.as_completed(waiting):
            yield done.result()


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), metavar="WAY", help="by name")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--fresh-noise", action="store_true")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "tokens.json")
    given = parser.parse_args()
    condition = Condition(given.steps, given.warmup, given.guidance, given.fresh_noise)
    every = demo_prompts()
    prompts = tuple(every[number * len(every) // given.prompts] for number in range(given.prompts))
    found = kept(given.out, condition, prompts)
    missing = [name for name in given.ways if name not in {one.way for one in found}]
    early: list[Drawn] = []  # before there is something to compare with
    plain: Tensor | None = None
    for drawn in several((Task(condition, prompts, name) for name in (None, *missing)), given.processes):
        if drawn.way is None:
            plain = drawn.pictures
        else:
            early.append(drawn)
        if plain is None:
            continue
        for one in (measured(way, plain) for way in early):
            found.append(one)
            print(
                f"{one.way:36s} {statistics.mean(one.psnr):5.1f} dB, worst {min(one.psnr):5.1f}, "
                f"modelled {one.modelled_speedup:.2f}x",
                flush=True,
            )
        early.clear()
        text = json.dumps(record(found, condition, prompts), indent=1)
        given.out.write_text(text + "\n", encoding="utf-8")
    for gain in closer(found):
        print(f"{gain['closer']} to {gain['than']}: {gain['decibels']:+.1f} ± {gain['half_of_95']:.1f} dB")


if __name__ == "__main__":
    main()
