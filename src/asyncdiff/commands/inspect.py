"""The command `asyncdiff inspect`."""

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from asyncdiff.commands.checks import check_weights, read_split
from asyncdiff.commands.options import AllowPickle, Model, SplitFile, Steps, Warmup, Weights
from asyncdiff.commands.terminal import exit_codes, refuse, stdout
from asyncdiff.errors import AsyncDiffError
from asyncdiff.settings import Settings, in_options

if TYPE_CHECKING:
    from asyncdiff.evaluation.inspection import Inspection, Sent


def inspect(
    model: Model = "demo-unet",
    components: Annotated[
        int | None, typer.Option(min=1, help="N: parts that the denoiser is divided into. [default: 2]")
    ] = None,
    split: SplitFile = None,
    warmup: Warmup = 3,
    steps: Steps = 50,
    prompt: Annotated[str, typer.Option(help="Of the two steps that are run to look at the denoiser.")] = "rocket",
    dtype: Weights = None,
    allow_pickle: AllowPickle = False,
    exchange: Annotated[
        bool, typer.Option("--exchange", help="Show what the ranks of a group exchange, step by step, in which order.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print plain JSON instead of tables.")] = False,
) -> None:
    """Show how a pipeline's denoiser is divided, before any device is used for it.

    Prints its units with their share of the cost of a call, the N components, the tensors that each reads
    from the others in every round (live edges) with their sizes, and the modelled speed-up of --steps steps
    without communication. Runs two steps in this process.

    Examples:

    - `asyncdiff inspect --model demo-dit --components 3`

    - `asyncdiff inspect --components 3 --exchange`

    - `asyncdiff inspect --json > division.json`

    Exit codes: 0 fine, 1 the pipeline failed, 2 it cannot be loaded, or not be divided so, 130 interrupted (Ctrl-C).
    """
    names = read_split(split) if split is not None else None
    try:
        parts = Settings(components=components, split=names).told_components or 2
    except AsyncDiffError as error:
        refuse(f"{in_options(str(error), '--')}.")
    check_weights(model, allow_pickle)
    import torch

    from asyncdiff.evaluation.inspection import inspect_denoisers
    from asyncdiff.loading import load_pipeline

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with exit_codes():
        pipe = load_pipeline(model, dtype.value if dtype else None, device, allow_pickle)
        pipe.set_progress_bar_config(disable=True)
        try:
            inspections = inspect_denoisers(pipe, prompt, parts, warmup, steps, (1, 2, 3), names)
        except AsyncDiffError as error:
            refuse(str(error))
    if as_json:
        print(json.dumps({"model": model, "denoisers": [dataclasses.asdict(found) for found in inspections]}, indent=2))
        return
    for found in inspections:
        if exchange:
            _print_exchange(found)
        else:
            _print_inspection(found, steps, warmup)


def _print_inspection(found: "Inspection", steps: int, warmup: int) -> None:
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
    title = f"{steps} step{'s' * (steps != 1)}, warm-up {warmup}, without communication"
    forecasts = Table("stride", "devices", "MiB per round, all ranks", "modelled speed-up", title=title)
    for forecast in found.forecasts:
        forecasts.add_row(
            str(forecast.stride),
            str(forecast.devices),
            f"{forecast.bytes_per_round / 2**20:.2f}",
            f"{forecast.modelled_speedup:.2f}x",
        )
    stdout.print(forecasts)


def _print_exchange(found: "Inspection") -> None:
    """A table for every kind of step: a row for each moment, a column for each rank."""
    for exchanged in found.exchange:
        sent = [message for moment in exchanged.moments for message in moment]
        ranks = range(len(found.components))
        numbers = _ranges(exchanged.steps)
        title = f"{found.denoiser}, {exchanged.kind}: step{'s' if len(exchanged.steps) > 1 else ''} {numbers}"
        if not sent:
            stdout.print(f"{title}: nothing is exchanged")
            continue
        table = Table("moment", *(f"rank {rank}" for rank in ranks), title=title)
        for number, moment in enumerate(exchanged.moments):
            cells = [
                "\n".join(_part(message, rank) for message in moment if rank in (message.source, message.reader))
                for rank in ranks
            ]
            table.add_row(str(number), *cells)
        stdout.print(table)


def _part(message: "Sent", rank: int) -> str:
    """A rank's part in a message."""
    size = f"{message.what}, {message.bytes / 1024:.1f} KiB"
    return f"to {message.reader}: {size}" if rank == message.source else f"from {message.source}: {size}"


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers in rising order, neighbours joined: 3-7, 9."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
