"""Holds the one-process executor against real processes: a sample of points drawn with both."""

import json
import os
import uuid
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from asyncdiff.demo import DemoName
from asyncdiff.plan.method import PAPER
from benchmarks.machine import machine
from benchmarks.quality.drawing import draw
from benchmarks.quality.settings import Setting, base

_PROMPTS = [0, 100]
_STEPS = 16


def sample(model: DemoName) -> list[Setting]:
    """Points that between them use every kind of exchange."""
    few = base(model, steps=_STEPS, prompts=len(_PROMPTS))
    return [
        replace(few, method=PAPER),
        replace(few, components=3, stride=2, method=PAPER),
        few,
        replace(few, stride=2),
        replace(few, bridge=2),
        replace(few, guidance=2, bridge=2),
    ]


def check(models: list[DemoName], path: Path) -> None:
    """Print and keep the largest difference of a pixel between the executors, for every point of the sample."""
    table = Table("model", "point", "processes", "largest difference of a pixel (of 1)")
    found = []
    for model in models:
        for setting in sample(model):
            alone, _ = draw(setting, _PROMPTS)
            difference = float((drawn_by_processes(setting) - alone.pictures).abs().max())
            table.add_row(model, str(setting), str(setting.devices), f"{difference:.1e}")
            found.append({"setting": setting.written(), "largest_difference_of_a_pixel": difference})
    Console().print(table)
    path.write_text(json.dumps({"machine": machine(), "points": found}, indent=1) + "\n", encoding="utf-8")


def drawn_by_processes(setting: Setting) -> Tensor:
    """The pictures as rank 0 of a distributed run has them."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=setting.devices,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="spawn",
    )
    pictures = elastic_launch(config, _draw)(setting)
    return torch.tensor(pictures[0])


def _draw(setting: Setting) -> list[object]:
    """What every process does; lists, because a tensor's shared memory may be gone before it is read."""
    torch.set_num_threads(1)
    drawn, _ = draw(setting, _PROMPTS, executor="distributed")
    return drawn.pictures.tolist() if os.environ["RANK"] == "0" else []
