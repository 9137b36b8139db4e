"""A thousand generations in a row on two processes, each otherwise than the one before.

Everything changes at random: prompt, batch, size, steps, scheduler, guidance, an adapter put on and off; now and then a
generation fails or is stopped, on one rank or on both. Every picture is held against the one that a fresh process makes
of the same call, in one process for both devices; and what the processes hold (memory, files, threads, divisions) after
the last hundred against what they held after the second.
"""

import argparse
import gc
import json
import multiprocessing
import os
import random
import socket
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from asyncdiff import AsyncDiff
from asyncdiff.errors import StoppedError
from asyncdiff.plan.division import Division
from benchmarks.machine import machine

RANKS = 2
EVERY = 100  # generations after which it is noted what is held
SETTINGS: dict[str, Any] = {"components": 2, "timeout": 60.0}
SCHEDULERS = ("DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler")
# All that a pipeline of Stable Diffusion would else correct in the config it is given, in silence.
SCHEDULE = {"clip_sample": False, "steps_offset": 1}
TOLERANCE = 1e-5  # relative; one process and two differ by less


@dataclass(frozen=True)
class Trial:
    """One call of the pipeline."""

    prompt: int
    batch: int
    size: int
    steps: int
    scheduler: str
    guidance: bool
    adapter: bool


@dataclass(frozen=True)
class Mishap:
    """What goes wrong in a generation: at the end of which step, on which ranks, and how."""

    kind: str
    step: int
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Held:
    """What a process holds."""

    generations: int
    memory: int
    files: int
    threads: int
    divisions: int


class FailedOnPurposeError(Exception):
    """Raised by a callback."""


def build() -> StableDiffusionPipeline:
    """A small pipeline with random weights, always the same."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=16)
    text = CLIPTextModel(
        CLIPTextConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    scheduler = diffusers.DDIMScheduler(**SCHEDULE)
    pipe = StableDiffusionPipeline(vae, text, None, unet, scheduler, None, None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: StableDiffusionPipeline, trial: Trial, callback: Any = None) -> Tensor:
    """The latents of one call."""
    kind = getattr(diffusers, trial.scheduler)
    if type(pipe.scheduler) is not kind:
        # Not from the config of the one before: what it was is not to matter.
        pipe.scheduler = kind.from_config(SCHEDULE)
    has_adapter = bool(getattr(pipe.unet, "peft_config", {}))
    if trial.adapter and not has_adapter:
        torch.manual_seed(1)
        pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "style")
    elif has_adapter and not trial.adapter:
        pipe.unet.delete_adapters("style")
    words = torch.randn(2, 1, 7, 16, generator=torch.Generator().manual_seed(trial.prompt))
    result = pipe(
        prompt_embeds=words[0].repeat(trial.batch, 1, 1),
        negative_prompt_embeds=words[1].repeat(trial.batch, 1, 1),
        num_inference_steps=trial.steps,
        guidance_scale=5.0 if trial.guidance else 1.0,
        height=trial.size,
        width=trial.size,
        generator=torch.Generator().manual_seed(trial.prompt),
        output_type="latent",
        callback_on_step_end=callback,
    )
    latents: Tensor = result.images
    return latents


def trials(count: int, seed: int) -> list[tuple[Trial, Mishap | None]]:
    """What is drawn, one after the other."""
    chance = random.Random(seed)
    found: list[tuple[Trial, Mishap | None]] = []
    for _ in range(count):
        trial = Trial(
            prompt=chance.randrange(4),
            batch=chance.choice((1, 2)),
            size=chance.choice((16, 24)),
            steps=chance.choice((6, 8, 11)),
            scheduler=chance.choice(SCHEDULERS),
            guidance=chance.random() < 0.7,
            adapter=chance.random() < 0.4,
        )
        mishap = None
        if chance.random() < 0.04:
            who = chance.choice(((0,), (1,), (0, 1)))
            mishap = Mishap(chance.choice(("fails", "stops")), chance.randrange(trial.steps - 1), who)
        found.append((trial, mishap))
    return found


def held(generations: int) -> Held:
    """What this process holds now."""
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return Held(
        generations,
        memory=int(status["VmRSS"].split()[0]) * 1024,
        files=len(os.listdir("/proc/self/fd")),
        threads=int(status["Threads"]),
        divisions=sum(isinstance(each, Division) for each in gc.get_objects()),
    )


def run_rank(rank: int, port: int, planned: list[tuple[Trial, Mishap | None]], folder: str) -> None:
    """One of the two processes: all generations, one after the other."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    pipe, notes, ended, seconds = build(), list[Held](), Counter[str](), list[float]()
    with AsyncDiff(pipe, executor="distributed", **SETTINGS):
        for number, (trial, mishap) in enumerate(planned):
            begin = time.perf_counter()
            try:
                picture = draw(pipe, trial, callback(mishap, rank))
                if mishap is None:
                    save_file({"latents": picture.contiguous()}, str(Path(folder, f"{number}-{rank}.safetensors")))
                    seconds.append(time.perf_counter() - begin)
                ended["drawn" if mishap is None else "stopped here"] += 1
            except StoppedError:
                ended["ended by the other rank"] += 1
            except FailedOnPurposeError:
                ended["failed here"] += 1
            if (number + 1) % EVERY == 0:
                notes.append(held(number + 1))
    report = {"held": [asdict(note) for note in notes], "ended": ended, "seconds": sum(seconds) / max(len(seconds), 1)}
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(report))


def callback(mishap: Mishap | None, rank: int) -> Any:
    """What brings a mishap about, on the ranks that have it."""

    def act(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if mishap is not None and rank in mishap.ranks and index == mishap.step:
            if mishap.kind == "fails":
                raise FailedOnPurposeError
            pipe._interrupt = True
        return values

    return act


def fresh(trial: Trial) -> Any:
    """What a process that has drawn nothing before makes of a call, as an array: it ends before a tensor is fetched."""
    torch.set_num_threads(1)
    pipe = build()
    with AsyncDiff(pipe, executor="local", **SETTINGS):
        return draw(pipe, trial).numpy()


def main() -> None:
    """Run, compare, and write benchmarks/results/soak.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/soak.json"))
    arguments = parser.parse_args()
    planned = trials(arguments.generations, arguments.seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.soak"])
    with tempfile.TemporaryDirectory() as folder:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks = [context.Process(target=run_rank, args=(rank, port, planned, folder)) for rank in range(RANKS)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        reports = [json.loads(Path(folder, f"rank-{rank}.json").read_text()) for rank in range(RANKS)]
        print(
            f"{arguments.generations} generations: {reports[0]['ended']}; now the same in fresh processes", flush=True
        )
        distinct = list(dict.fromkeys(trial for trial, mishap in planned if mishap is None))
        with context.Pool(2, maxtasksperchild=1) as pool:
            expected = dict(zip(distinct, pool.map(fresh, distinct, chunksize=1), strict=True))
        errors, compared = [], 0
        for number, (trial, mishap) in enumerate(planned):
            if mishap is None:
                for rank in range(RANKS):
                    found = load_file(str(Path(folder, f"{number}-{rank}.safetensors")))["latents"]
                    wanted = torch.from_numpy(expected[trial])
                    difference = (found - wanted).norm() / wanted.norm()
                    errors.append(float(difference))
                    compared += 1
    result = {
        "command": f"python -m benchmarks.soak --generations {arguments.generations} --seed {arguments.seed}",
        "machine": machine(),
        "pictures_compared": compared,
        "distinct_calls": len(distinct),
        "pictures_that_differ": sum(not error <= TOLERANCE for error in errors),
        "largest_relative_error": max(errors),
        "ranks": reports,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    for rank, report in enumerate(reports):
        first, last = report["held"][min(1, len(report["held"]) - 1)], report["held"][-1]
        print(f"rank {rank}: after {first['generations']}: {first}\n        after {last['generations']}: {last}")
    print(f"{compared} pictures compared, {result['pictures_that_differ']} differ; largest {max(errors):.1e}")


if __name__ == "__main__":
    main()
