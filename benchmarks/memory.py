"""How much memory a rank takes that has a share of a denoiser's weights: at its peak, loading included.

A UNet and a DiT of some 400 million random parameters lie in a folder as safetensors. Each rank is a process that holds
nothing else; what it takes is the growth of its resident memory, at its peak, since just before the pipeline is loaded.
Allowed are an equal share of the denoiser's bytes, what every rank has of it, what the other parts take on this rank,
and buffers, all as they are counted, and 5 % of the denoiser's share. The activations of a call are measured apart:
by the same pipeline's plain call, in a process of its own, in which weights are there already.
"""

import argparse
import ctypes
import gc
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import nn

import asyncdiff
from asyncdiff.call import Call
from asyncdiff.denoiser.elsewhere import Elsewhere
from asyncdiff.denoiser.rehearsal import rehearse
from asyncdiff.launch import enter_process, run_processes
from benchmarks.machine import machine

STEPS = 4
TOLERANCE = 0.05
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h


@dataclass(frozen=True)
class Task:
    """A folder to load, by how many ranks, or plainly."""

    folder: str
    denoiser: str
    components: int


@dataclass(frozen=True)
class Held:
    """What one rank takes, in bytes.

    Attributes:
        peak: the growth of resident memory at its peak, since just before loading.
        weights: of the denoiser, that this rank has.
        everywhere: of these, what every rank has.
        others: of the pipeline's other parts, that this rank has.
        whole: the denoiser's, all together.
        versions: live edges that are held.
        call: what a plain call takes beside weights; 0 where it was not measured.
    """

    peak: int
    weights: int
    everywhere: int
    others: int
    whole: int
    versions: int = 0
    call: int = 0


def main() -> None:
    """Measure, and write benchmarks/results/memory.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/memory.json"))
    parser.add_argument("--small", action="store_true", help="a tenth of the parameters")
    arguments = parser.parse_args()
    rows = []
    for name, make in {"unet": unet_pipeline, "dit": dit_pipeline}.items():
        with tempfile.TemporaryDirectory() as folder:
            denoiser = make(Path(folder), arguments.small)
            (plain,) = run_processes(1, take_plainly, Task(folder, denoiser, 1))
            for components in (2, 4):
                ranks = run_processes(components, take_share, Task(folder, denoiser, components))
                row = summary(name, components, ranks, plain)
                print(json.dumps(row), flush=True)
                rows.append(row)
    result = {"command": "python -m benchmarks.memory", "machine": machine(), "rows": rows}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def summary(name: str, components: int, ranks: list[Held], plain: Held) -> dict[str, Any]:
    """What is measured beside what is allowed."""
    found = []
    for rank in ranks:
        share = (rank.whole - rank.everywhere) / components
        allowed = share * (1 + TOLERANCE) + rank.everywhere + rank.others + rank.versions + plain.call
        found.append({**asdict(rank), "allowed": round(allowed), "is_within": rank.peak <= allowed})
    return {
        "denoiser": name,
        "components": components,
        "denoiser_bytes": plain.whole,
        "plain_peak": plain.peak,
        "call_beside_weights": plain.call,
        "weights_of_denoiser": [round(rank.weights / rank.whole, 4) for rank in ranks],
        "ranks": found,
    }


def take_share(task: Task) -> Held:
    """A rank's part: load, draw, and say what that took."""
    enter_process()
    before = _settled()
    with asyncdiff.load(task.folder, components=task.components, dtype="float32") as async_diff:
        _draw(async_diff.pipe)
        peak = _peak()
        denoiser = getattr(async_diff.pipe, task.denoiser)
        report = async_diff.report().denoisers[0]
        here, all_of_it = _bytes(denoiser)
        everywhere = _everywhere(async_diff, task.denoiser)
        parts = [part for part in async_diff.pipe.components.values() if isinstance(part, nn.Module)]
        others = sum(_bytes(part)[0] for part in parts if part is not denoiser)
    return Held(peak - before, here, everywhere, others, all_of_it, report.held_bytes)


def take_plainly(task: Task) -> Held:
    """The plain pipeline: what it takes in all, and what a call takes once the weights are there."""
    enter_process()
    before = _settled()
    pipe = asyncdiff.load(task.folder, components=1, dtype="float32", shard=False).pipe
    denoiser = getattr(pipe, task.denoiser)
    for weight in denoiser.parameters():
        weight.sum()  # files are mapped, and read when they are used
    loaded = _peak()
    _draw(pipe)
    return Held(_peak() - before, *_bytes(denoiser)[:1], 0, 0, _bytes(denoiser)[1], call=max(0, _peak() - loaded))


def _draw(pipe: Any) -> None:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    if isinstance(pipe, DiTPipeline):
        pipe([1], num_inference_steps=STEPS, generator=generator, output_type="pt")
        return
    embeddings = torch.zeros(1, 8, pipe.unet.config.cross_attention_dim)
    pipe(
        prompt_embeds=embeddings,
        negative_prompt_embeds=embeddings,
        height=64,
        width=64,
        num_inference_steps=STEPS,
        generator=generator,
        output_type="latent",
    )


def _everywhere(async_diff: asyncdiff.AsyncDiff, denoiser: str) -> int:
    """The bytes of a denoiser's weights that every rank has."""
    if async_diff._sharing is None:
        raise RuntimeError("the weights are not divided")
    return sum(weight.nbytes for _, weight in async_diff._sharing.shares[denoiser].held_by_all())


def _bytes(module: nn.Module) -> tuple[int, int]:
    """Of the weights that are here, and of all."""
    weights = list(module.parameters())
    return sum(each.nbytes for each in weights if not isinstance(each, Elsewhere)), sum(each.nbytes for each in weights)


class _Small(nn.Module):
    """So that all code is there before anything is measured: recording alone imports some hundred MB."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.layer(sample)
        return made


def _settled() -> int:
    """The resident memory now, from which on its peak is counted.

    What is freed from now on the C library gives back: else it keeps up to 32 MB of each for what may come, so that
    what convolutions need for a moment would be counted as held.
    """
    _give_back_what_is_freed()
    small = _Small()
    rehearse(small, Call(small, (torch.ones(1, 2),), {}))
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _give_back_what_is_freed() -> None:
    for parameter in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):  # once set, they do not grow with what is freed
        if not ctypes.CDLL(None).mallopt(parameter, 2**17):
            raise RuntimeError("this C library's allocator cannot be set so")


def _peak() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def unet_pipeline(folder: Path, small: bool) -> str:
    """A pipeline with a UNet shaped like that of SD 1.5 in a folder; returns the denoiser's name."""
    channels = (96, 192, 384, 384) if small else (224, 448, 896, 896)
    unet = UNet2DConditionModel(block_out_channels=channels, cross_attention_dim=256, attention_head_dim=8)
    pipe = StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return "unet"


def dit_pipeline(folder: Path, small: bool) -> str:
    """A pipeline with a DiT in a folder; returns the denoiser's name."""
    layers, heads = (8, 11) if small else (28, 14)  # of a layer, whatever its width, much has to be found out
    transformer = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=64,
        num_layers=layers,
        sample_size=8,
        out_channels=8,
        num_embeds_ada_norm=1000,
    )
    DiTPipeline(transformer=transformer, vae=_vae(), scheduler=DDIMScheduler()).save_pretrained(folder)
    return "transformer"


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 16, 16, 16),
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
    )


if __name__ == "__main__":
    main()
