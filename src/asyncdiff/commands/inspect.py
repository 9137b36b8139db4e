"""The command `asyncdiff inspect`."""

import dataclasses
import json
from typing import Annotated

import torch
import typer
from rich.markup import escape
from rich.table import Column, Table

from asyncdiff.commands.options import Model, Steps, Warmup, Weights
from asyncdiff.commands.terminal import exit_codes, fail, refuse, stdout
from asyncdiff.errors import AsyncDiffError
from asyncdiff.evaluation.inspection import Inspection, inspect_denoisers
from asyncdiff.launch import load_pipeline


def inspect(
    model: Model = "demo-unet",
    components: Annotated[int, typer.Option(min=1, help="N: parts that the denoiser is divided into.")] = 2,
    warmup: Warmup = 3,
    steps: Steps = 50,
    prompt: Annotated[str, typer.Option(help="Of the two steps that are run to look at the denoiser.")] = "rocket",
    dtype: Weights = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print plain JSON instead of tables.")] = False,
) -> None:
    """Show how a pipeline's denoiser is divided, before any device is used for it.

    Prints its units with their share of the cost of a call, the N components, the tensors that each reads
    from the others in every round (live edges) with their sizes, and the modelled speed-up of --steps steps
    without communication. Runs two steps in this process.

    Examples:

    - `asyncdiff inspect --model demo-dit --components 3`

    - `asyncdiff inspect --json > division.json`

    Exit codes: 0 fine, 1 the pipeline failed, 2 it cannot be divided so, 130 interrupted (Ctrl-C).
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with exit_codes():
        try:
            pipe = load_pipeline(model, dtype.value if dtype else None, device)
        except (AsyncDiffError, OSError, ValueError) as error:
            fail(f"{model} cannot be loaded: {error}")
        pipe.set_progress_bar_config(disable=True)
        try:
            inspections = inspect_denoisers(pipe, prompt, components, warmup, steps, (1, 2, 3))
        except AsyncDiffError as error:
            refuse(str(error))
    if as_json:
        print(json.dumps({"model": model, "denoisers": [dataclasses.asdict(found) for found in inspections]}, indent=2))
        return
    for found in inspections:
        _print_inspection(found, steps, warmup)


def _print_inspection(found: Inspection, steps: int, warmup: int) -> None:
    units = Table("unit", "share of a call", "component", title=f"{found.denoiser}: {found.kind}")
    for unit in found.units:
        call = f" (call {unit.ordinal + 1})" if unit.ordinal else ""
        where = "every device" if unit.component is None else str(unit.component)
        units.add_row(escape(unit.name + call), f"{unit.share:.2%}", where)
    stdout.print(units)
    reads = Column("reads", overflow="fold")
    parts = Table("component", "share of a call", reads, "from", "shape", "KiB", title="live edges")
    for number, part in enumerate(found.components):
        parts.add_row(str(number), f"{part.share:.1%}", f"{len(part.reads)} live edges", "", "", "")
        for edge in part.reads:
            shape = "x".join(str(size) for size in edge.shape)
            name = f"{edge.unit} → {edge.leaf}"
            parts.add_row("", "", escape(name), str(edge.from_component), shape, f"{edge.bytes / 1024:.1f}")
    stdout.print(parts)
    title = f"{steps} steps, warm-up {warmup}, without communication"
    forecasts = Table("stride", "devices", "MiB per round, all ranks", "modelled speed-up", title=title)
    for forecast in found.forecasts:
        forecasts.add_row(
            str(forecast.stride),
            str(forecast.devices),
            f"{forecast.bytes_per_round / 2**20:.2f}",
            f"{forecast.modelled_speedup:.2f}x",
        )
    stdout.print(forecasts)
