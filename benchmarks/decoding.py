"""How much faster two processes decode the tiles of a picture than one: the VAE of Stable Diffusion, random weights.

In one run, in the same two processes of one thread each, by turns: both decode a picture inside of a pipeline's call,
with `AsyncDiff(share_decode=True)`; then rank 0 decodes the same latents by itself, while rank 1 sleeps at a barrier.
The two pictures must be the same to the last bit. A decoding on both counts from when both have come to it until the
slower one has the picture. The processor's time is told as well, which a machine that has other work to do lengthens
least.
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from asyncdiff import AsyncDiff
from asyncdiff.launch import enter_process, run_processes
from benchmarks.machine import machine

# Stable Diffusion's VAE as stabilityai/sd-vae-ft-mse has it: its tiles are of 256 pixels, a quarter of which overlaps.
VAE: dict[str, Any] = dict(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
    sample_size=256,
)
# What makes the latents does not matter: it is not timed.
UNET: dict[str, Any] = dict(
    block_out_channels=(8, 16),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    cross_attention_dim=16,
    norm_num_groups=4,
    attention_head_dim=4,
)
UNTIMED_SIZE = 320


@dataclass(frozen=True)
class Task:
    """Height and width of a picture, and how many of them are decoded."""

    size: int
    runs: int


@dataclass(frozen=True)
class Decoded:
    """One picture on one rank: wall-clock and processor's seconds shared out, and alone (on rank 0; else 0)."""

    shared: float
    shared_processor: float
    alone: float = 0.0
    alone_processor: float = 0.0
    is_same: bool = True


class Timed:
    """Stands around `decode` while a pipeline runs, and keeps what it was given and gave."""

    def __init__(self, decode: Callable[..., Any]) -> None:
        self._decode = decode
        self.latents = self.picture = torch.empty(0)
        self.decoded = Decoded(0.0, 0.0)

    def __call__(self, latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.latents = latents.clone()
        dist.barrier()
        result, self.decoded = _timed(functools.partial(self._decode, latents, *args, **kwargs))
        self.picture = result[0].clone()
        return result


def _timed(function: Callable[[], Any]) -> tuple[Any, Decoded]:
    begin, processor = time.perf_counter(), time.process_time()
    result = function()
    return result, Decoded(time.perf_counter() - begin, time.process_time() - processor)


def measure(task: Task) -> tuple[Decoded, ...]:
    """Decode some pictures on one rank."""
    enter_process()
    pipe = _pipeline()
    with AsyncDiff(pipe, components=2, warmup=2, share_decode=True, executor="distributed", timeout=600):
        attached = pipe.vae.decode
        timed = pipe.vae.decode = Timed(attached)
        try:
            _both(pipe, attached, timed, UNTIMED_SIZE, 0)
            return tuple(_both(pipe, attached, timed, task.size, seed) for seed in range(1, task.runs + 1))
        finally:
            pipe.vae.decode = attached


@torch.no_grad()
def _both(pipe: Any, decode: Callable[..., Any], timed: Timed, size: int, seed: int) -> Decoded:
    """One picture decoded by both ranks, and by rank 0."""
    pipe(
        prompt_embeds=torch.zeros(1, 7, 16),
        height=size,
        width=size,
        num_inference_steps=2,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
    )
    dist.barrier()
    found = timed.decoded
    if dist.get_rank() == 0:
        (picture,), alone = _timed(lambda: decode(timed.latents, return_dict=False))
        is_same = torch.equal(picture, timed.picture)
        found = replace(found, alone=alone.shared, alone_processor=alone.shared_processor, is_same=is_same)
    dist.barrier()
    return found


def _pipeline() -> Any:
    torch.manual_seed(0)
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(**VAE).eval(),
        unet=UNet2DConditionModel(**UNET).eval(),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        text_encoder=None,  # type: ignore[arg-type]
        tokenizer=None,  # type: ignore[arg-type]
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.vae.enable_tiling()
    return pipe


def main() -> None:
    """Measure, print, and write benchmarks/results/decoding.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512, help="height and width of the picture, in pixels")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/decoding.json"))
    arguments = parser.parse_args()
    ranks = run_processes(2, measure, Task(arguments.size, arguments.runs))
    pairs = list(zip(*ranks, strict=True))
    speedups = [first.alone / max(first.shared, second.shared) for first, second in pairs]
    by_processor = [
        first.alone_processor / max(first.shared_processor, second.shared_processor) for first, second in pairs
    ]
    result = {
        "command": f"python -m benchmarks.decoding --size {arguments.size} --runs {arguments.runs}",
        "machine": machine(),
        "vae": VAE,
        "is_same_to_the_last_bit": all(each.is_same for pair in pairs for each in pair),
        "seconds_alone": statistics.median(first.alone for first, _ in pairs),
        "seconds_on_two": statistics.median(max(first.shared, second.shared) for first, second in pairs),
        "speedup": statistics.median(speedups),
        "speedups": speedups,
        "speedup_by_processor_time": statistics.median(by_processor),
        "pictures": [[asdict(each) for each in pair] for pair in pairs],
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"alone {result['seconds_alone']:.2f} s, on two {result['seconds_on_two']:.2f} s")
    print(f"speed-up {result['speedup']:.2f}x, by the processor's time {result['speedup_by_processor_time']:.2f}x")
    print("the same picture" if result["is_same_to_the_last_bit"] else "ANOTHER PICTURE")


if __name__ == "__main__":
    main()
