"""What asynchronous denoising costs in quality: the demo models at the paper's five settings.

The one-process executor gives the numbers of the distributed run. For every setting: prompt agreement
(is the nearest training picture the prompted one?) and the PSNR to the sequential picture of the same seed.
"""

import argparse
import json
import math
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from asyncdiff import AsyncDiff, load_demo
from asyncdiff.demo import demo_prompts, prompt_agreement
from asyncdiff.evaluation.compare import pixels, psnr
from benchmarks.machine import machine

SETTINGS = ((2, 1), (3, 1), (4, 1), (2, 2), (3, 2))
BATCH_SIZE = 16


@dataclass(frozen=True)
class Row:
    """One setting of one model; PSNR is None for the sequential run."""

    model: str
    components: int
    stride: int
    pictures: int
    agreement_percent: float
    psnr_mean: float | None
    psnr_half_interval: float | None
    psnr_worst: float | None
    modelled_speedup: float


def draw(pipe: Any, prompts: list[str], steps: int, guidance: float, seed: int) -> list[Image.Image]:
    """One picture for every prompt; the seed of a picture depends on its place alone."""
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), BATCH_SIZE):
        part = prompts[start : start + BATCH_SIZE]
        generators = [torch.Generator().manual_seed(seed + start + number) for number in range(len(part))]
        pictures += pipe(part, num_inference_steps=steps, guidance_scale=guidance, generator=generators).images
    return pictures


def measure(model: str, given: argparse.Namespace) -> list[Row]:
    """All settings of one model."""
    pipe = load_demo(model)  # type: ignore[arg-type]
    pipe.set_progress_bar_config(disable=True)
    known = demo_prompts()
    prompts = [known[number * len(known) // given.prompts] for number in range(given.prompts)]
    common = (prompts, given.steps, given.guidance, given.seed)
    sequential = draw(pipe, *common)
    rows = [Row(model, 1, 1, len(prompts), prompt_agreement(sequential, prompts), None, None, None, 1.0)]
    for components, stride in SETTINGS:
        with AsyncDiff(pipe, components, stride, given.warmup, executor="local", method="paper") as async_diff:
            pictures = draw(pipe, *common)
            speedup = async_diff.report().denoisers[0].modelled_speedup
        decibels = [psnr(pixels(one), pixels(other)) for one, other in zip(pictures, sequential, strict=True)]
        rows.append(
            Row(
                model,
                components,
                stride,
                len(prompts),
                prompt_agreement(pictures, prompts),
                statistics.fmean(decibels),
                1.96 * statistics.stdev(decibels) / math.sqrt(len(decibels)),
                min(decibels),
                speedup,
            )
        )
    return rows


def show(rows: list[Row]) -> None:
    """Print the rows as a table."""
    table = Table("model", "N", "S", "agreement %", "PSNR dB (95 %)", "worst dB", "modelled speed-up")
    for row in rows:
        decibels = "–" if row.psnr_mean is None else f"{row.psnr_mean:.1f} ± {row.psnr_half_interval:.1f}"
        worst = "–" if row.psnr_worst is None else f"{row.psnr_worst:.1f}"
        cells = (row.components, row.stride, f"{row.agreement_percent:.1f}", decibels, worst)
        table.add_row(row.model, *map(str, cells), f"{row.modelled_speedup:.2f}x")
    Console().print(table)


def main() -> None:
    """Measure, print, and write the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["unet", "dit"], choices=["unet", "dit"])
    parser.add_argument("--prompts", type=int, default=64, help="how many of the demo's prompts, evenly chosen")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/agreement.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for model in given.models for row in measure(model, given)]
    show(rows)
    settings = {name: value for name, value in vars(given).items() if name != "out"}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine(), "settings": settings, "rows": [asdict(row) for row in rows]}
    given.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
