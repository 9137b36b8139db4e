"""What attaching costs: the first call of a real-sized denoiser with asyncdiff, against an ordinary one.

The first call is recorded operator by operator, and the denoiser is divided; nothing of that happens in later
calls of the same shape. Finding is also timed alone, on models of which only the shapes exist (meta tensors), so
that the arithmetic does not drown it. All weights are random.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    UNet2DConditionModel,
    WanTransformer3DModel,
)
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from asyncdiff import AsyncDiff
from asyncdiff.call import Call
from asyncdiff.denoiser.rates import ELSEWHERE
from asyncdiff.denoiser.trace import record
from asyncdiff.plan.division import divide_denoiser
from asyncdiff.plan.schedule import Schedule
from benchmarks.gpu import models
from benchmarks.machine import machine

COMPONENTS = 4
LATER_CALLS = 2


@dataclass(frozen=True)
class Subject:
    """A denoiser of a real size: how to build it, and the shapes of one call's arguments."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Finding:
    """What it takes to find a denoiser's units and to divide it, in seconds of processor time."""

    subject: str
    operators: int
    units: int
    ordinary_call: float
    recorded_call: float
    dividing: float

    @property
    def added(self) -> float:
        """What attaching adds to the first call."""
        return self.recorded_call - self.ordinary_call + self.dividing


@dataclass(frozen=True)
class Attached:
    """Whole calls of a denoiser with weights, in seconds."""

    subject: str
    device: str
    dtype: str
    ordinary_calls: list[float]
    first_call: float
    later_calls: list[float]


def sd15_unet() -> Any:
    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)


def sd15_inputs() -> dict[str, Any]:
    return {
        "sample": torch.randn(2, 4, 64, 64),
        "timestep": torch.tensor(500.0),
        "encoder_hidden_states": torch.randn(2, 77, 768),
    }


def sdxl_unet() -> Any:
    return UNet2DConditionModel(**models.SUBJECTS["sdxl"].config)


def sdxl_inputs() -> dict[str, Any]:
    return {
        "sample": torch.randn(2, 4, 128, 128),
        "timestep": torch.tensor(500.0),
        "encoder_hidden_states": torch.randn(2, 77, 2048),
        "added_cond_kwargs": {"text_embeds": torch.randn(2, 1280), "time_ids": torch.randn(2, 6)},
    }


def pixart_transformer() -> Any:
    return PixArtTransformer2DModel(sample_size=64, cross_attention_dim=1152, caption_channels=4096)


def pixart_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(2, 4, 64, 64),
        "timestep": torch.full((2,), 500.0),
        "encoder_hidden_states": torch.randn(2, 120, 4096),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def flux_transformer() -> Any:
    return FluxTransformer2DModel(guidance_embeds=True)


def flux_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, 4096, 64),
        "timestep": torch.full((1,), 0.5),
        "encoder_hidden_states": torch.randn(1, 512, 4096),
        "pooled_projections": torch.randn(1, 768),
        "guidance": torch.full((1,), 3.5),
        "txt_ids": torch.zeros(512, 3),
        "img_ids": torch.zeros(4096, 3),
    }


def wan_transformer() -> Any:
    return WanTransformer3DModel()


def wan_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, 16, 21, 60, 104),
        "timestep": torch.full((1,), 500.0),
        "encoder_hidden_states": torch.randn(1, 512, 4096),
    }


SUBJECTS = {
    "sd15": Subject(sd15_unet, sd15_inputs),
    "sdxl": Subject(sdxl_unet, sdxl_inputs),
    "pixart": Subject(pixart_transformer, pixart_inputs),
    "flux": Subject(flux_transformer, flux_inputs),
    "wan-14b": Subject(wan_transformer, wan_inputs),
}
WHOLE = ("sd15", "pixart")


class Stage:
    """What asyncdiff needs of a pipeline: a denoiser and a scheduler."""

    def __init__(self, denoiser: nn.Module) -> None:
        self.transformer = denoiser
        self.scheduler = FlowMatchEulerDiscreteScheduler()
        self.components = {"transformer": denoiser, "scheduler": self.scheduler}

    def end_step(self, index: int) -> None:
        self.scheduler.step(torch.zeros(1), self.scheduler.timesteps[index], torch.zeros(1))


def find(name: str, repeats: int) -> Finding:
    """Time the finding on shapes alone; the least of some repeats, in processor time."""
    with torch.device("meta"):
        model, inputs = SUBJECTS[name].build().eval(), SUBJECTS[name].inputs()
    model(**inputs)
    ordinary, recorded, dividing = [], [], []
    for _ in range(repeats):
        begin = time.process_time()
        model(**inputs)
        called = time.process_time()
        _, trace = record(model, Call(model.forward, (), inputs))
        seen = time.process_time()
        division = divide_denoiser(trace, Schedule(COMPONENTS, 1, 1), None, ELSEWHERE)
        ordinary.append(called - begin)
        recorded.append(seen - called)
        dividing.append(time.process_time() - seen)
    units = len(division.graph.units)
    return Finding(name, len(trace.operators), units, min(ordinary), min(recorded), min(dividing))


def attach(name: str, device: torch.device, dtype: torch.dtype) -> Attached:
    """Time ordinary calls, the first one with asyncdiff, and later ones with it, all of them in full."""
    with device:
        torch.set_default_dtype(dtype)
        model, inputs = SUBJECTS[name].build().eval(), SUBJECTS[name].inputs()
        torch.set_default_dtype(torch.float32)
    inputs = {key: cast(value, dtype) for key, value in inputs.items()}
    seconds(model, inputs)
    ordinary = [seconds(model, inputs) for _ in range(LATER_CALLS)]
    stage = Stage(model)
    with AsyncDiff(stage, COMPONENTS, warmup=LATER_CALLS + 1, executor="local", method="paper"):
        stage.scheduler.set_timesteps(LATER_CALLS + 2)
        attached = []
        for index in range(LATER_CALLS + 1):
            attached.append(seconds(model, inputs))
            stage.end_step(index)
    return Attached(name, device_name(device), str(dtype), ordinary, attached[0], attached[1:])


def cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, dict):
        return {key: cast(inner, dtype) for key, inner in value.items()}
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def seconds(model: nn.Module, inputs: dict[str, Any]) -> float:
    begin = time.perf_counter()
    model(**inputs)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu, one thread"


def show(found: list[Finding], attached: list[Attached]) -> None:
    """Print both tables."""
    finding = Table("denoiser", "operators", "units", "recording adds", "dividing", title="finding, processor time")
    for row in found:
        adds = f"{row.recorded_call - row.ordinary_call:.2f} s"
        finding.add_row(row.subject, str(row.operators), str(row.units), adds, f"{row.dividing:.2f} s")
    Console().print(finding)
    whole = Table("denoiser", "device", "ordinary call", "first with asyncdiff", "later with it", title="whole calls")
    for one in attached:
        cells = (statistics.median(one.ordinary_calls), one.first_call, statistics.median(one.later_calls))
        whole.add_row(one.subject, one.device, *(f"{cell:.2f} s" for cell in cells))
    Console().print(whole)


@torch.no_grad()
def main() -> None:
    """Measure, print, and write the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--finding", nargs="*", default=list(SUBJECTS), choices=list(SUBJECTS))
    parser.add_argument("--whole", nargs="*", default=list(WHOLE), choices=list(SUBJECTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default=None, choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/attach.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(given.device)
    dtype = getattr(torch, given.dtype or ("float32" if device.type == "cpu" else "bfloat16"))
    found = [find(name, given.repeats) for name in given.finding]
    attached = [attach(name, device, dtype) for name in given.whole]
    show(found, attached)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": machine(),
        "components": COMPONENTS,
        "finding": [{**asdict(row), "added": row.added} for row in found],
        "whole": [asdict(row) for row in attached],
    }
    given.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
