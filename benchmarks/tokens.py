"""How close pictures stay where tokens are divided, beside components on as many devices, and one device that bridges.

The demo DiT, one process that computes for all devices, every way on the same prompts and seeds: PSNR against the
ordinary picture, its mean, the worst, and the paired difference to components with its 95 % interval; what a rank holds
and what all of them send in a round. The modelled speed-up counts no communication; every device computes the text,
16 of the demo DiT's 272 tokens.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asyncdiff import AsyncDiff, Method, load_demo
from asyncdiff.demo import demo_prompts
from benchmarks.machine import machine

_AT_ONCE = 8  # pictures in a call
_T95 = 1.96


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

    @property
    def mean(self) -> float:
        """Of all pictures."""
        return statistics.mean(self.psnr)


def draw(pipe: Any, prompts: Sequence[str], steps: int) -> Tensor:
    """Pictures of some prompts, each from noise of its own."""
    pictures = []
    for start in range(0, len(prompts), _AT_ONCE):
        batch = list(prompts[start : start + _AT_ONCE])
        generators = [torch.Generator().manual_seed(start + number) for number in range(len(batch))]
        pictures.append(pipe(batch, num_inference_steps=steps, output_type="pt", generator=generators)[0])
    return torch.cat(pictures)


def ways(devices: Sequence[int]) -> dict[str, dict[str, Any]]:
    """What is compared, as arguments of AsyncDiff."""
    return {
        **{f"tokens={count}": {"tokens": count} for count in devices},
        **{f"tokens={count}, not packed": {"tokens": count, "method": Method()} for count in devices},
        **{f"tokens={count}, bridge=2": {"tokens": count, "bridge": 2} for count in devices},
        **{f"tokens={count}, fresh, bridge=2": {"tokens": count, "fresh": True, "bridge": 2} for count in devices},
        **{f"components={count}": {"components": count} for count in devices},
        **{
            f"tokens={count // 2}, components=2": {"tokens": count // 2, "components": 2}
            for count in devices
            if count > 2 and count % 2 == 0
        },
        **{f"one device, bridge={bridge}": {"components": 1, "bridge": bridge} for bridge in (2, 4)},
    }


def measure(pipe: Any, prompts: Sequence[str], devices: Sequence[int], steps: int, warmup: int) -> list[Measured]:
    """All ways."""
    plain = draw(pipe, prompts, steps)
    found = []
    for name, way in ways(devices).items():
        with AsyncDiff(pipe, warmup=warmup, guidance=1, executor="local", **way) as async_diff:
            pictures = draw(pipe, prompts, steps)
            (denoiser,) = async_diff.report().denoisers
        errors = (pictures - plain).square().flatten(1).mean(1)
        psnr = tuple(-10 * math.log10(max(float(error), 1e-30)) for error in errors)
        sizes = denoiser.bytes_per_round, denoiser.held_bytes
        found.append(Measured(name, denoiser.modelled_speedup, *sizes, psnr))
        print(
            f"{name:28s} {found[-1].mean:5.1f} dB, worst {min(psnr):5.1f}, modelled {denoiser.modelled_speedup:.2f}x",
            flush=True,
        )
    return found


def gains(found: Sequence[Measured], devices: Sequence[int]) -> dict[str, dict[str, float]]:
    """How much closer tokens are than components on as many devices: the mean, and half the width of its interval."""
    by_name = {measured.way: measured for measured in found}
    told = {}
    for count in devices:
        pairs = zip(by_name[f"tokens={count}"].psnr, by_name[f"components={count}"].psnr, strict=True)
        differences = [ours - theirs for ours, theirs in pairs]
        half = _T95 * statistics.stdev(differences) / math.sqrt(len(differences))
        told[str(count)] = {"decibels": statistics.mean(differences), "half_of_95_per_cent_interval": half}
    return told


def main() -> None:
    """Measure, print, and write benchmarks/results/tokens.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--devices", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "tokens.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pipe: Any = load_demo("dit")
    pipe.set_progress_bar_config(disable=True)
    every = demo_prompts()
    prompts = [every[number * len(every) // given.prompts] for number in range(given.prompts)]
    found = measure(pipe, prompts, given.devices, given.steps, given.warmup)
    told = gains(found, given.devices)
    for count, gain in told.items():
        print(f"{count} devices: {gain['decibels']:+.1f} ± {gain['half_of_95_per_cent_interval']:.1f} dB to components")
    result = {
        "command": " ".join(["python -m benchmarks.tokens", *sys.argv[1:]]),
        "warmup": given.warmup,
        "machine": machine(),
        "prompts": prompts,
        "ways": [asdict(measured) | {"mean": measured.mean, "worst": min(measured.psnr)} for measured in found],
        "closer_than_components": told,
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
