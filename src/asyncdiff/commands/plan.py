"""The command `asyncdiff plan`."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from asyncdiff.commands.checks import check_out, write_file
from asyncdiff.commands.options import AllowPickle, Model, Steps, Weights
from asyncdiff.commands.terminal import exit_codes, refuse, stdout, warn
from asyncdiff.errors import AsyncDiffError, ConfigurationError
from asyncdiff.model_files import PICKLE_WARNING
from asyncdiff.planning.asked import Request
from asyncdiff.planning.device import DEVICES
from asyncdiff.planning.quantity import written_bytes

if TYPE_CHECKING:
    from asyncdiff.planning.candidates import Candidate
    from asyncdiff.planning.planner import Plan

_MADE_OF = {
    "own_weights": "own weights",
    "shared_weights": "weights on every device",
    "history": "history",
    "buffers": "buffers",
    "activations": "activations",
    "others": "other modules",
}
_HEADINGS = ("seconds", "speed-\nup", "a round\nsends", "a picture\nsends", "memory", "dB of demo\nmodels")
_SPEEDS = ", ".join(f"{device.speed / 1e12:g} of a {device.name}" for device in DEVICES.values())


def plan(
    devices: Annotated[int, typer.Option(min=1, max=64, help="How many devices there are.")],
    model: Model = "demo-unet",
    memory: Annotated[
        str | None, typer.Option(help="Of each device, as 24GB or 24GiB. [default: it is not looked at]")
    ] = None,
    link: Annotated[
        str, typer.Option(help="Between devices: nvlink, pcie4, pcie3, ethernet, or 12GB/s in one direction.")
    ] = "pcie4",
    height: Annotated[int | None, typer.Option(min=1, help="Of the picture. [default: the pipeline's own]")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Of the picture. [default: the pipeline's own]")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Of a video. [default: the pipeline's own]")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Prompts at the same time.")] = 1,
    steps: Steps = 50,
    warmup: Annotated[int, typer.Option(min=1, help="w, ordinary steps at first.")] = 5,
    device: Annotated[
        str | None, typer.Option(help="Kind of device whose time is modelled: gpu or cpu. [default: gpu]")
    ] = None,
    tflops: Annotated[
        float | None, typer.Option(help=f"10¹² operations per second that a device reaches. [default: {_SPEEDS}]")
    ] = None,
    dtype: Weights = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Load the weights, and time the denoiser on this machine.")
    ] = False,
    allow_pickle: AllowPickle = False,
    timeline: Annotated[
        Path | None, typer.Option(help="SVG file to draw what the devices of the chosen way do when.", metavar="FILE")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print plain JSON instead of tables.")] = False,
) -> None:
    """Say what a model would do on so many devices, before any of them is there.

    For every sensible way: predicted time for a picture, speed-up, traffic, and memory of the device that needs most.
    No weights are read, unless they are to be measured with; of a model on the hub the small files are fetched. The
    decibels are those of the demo models: an indication of what a way does to a picture, not a promise for this model.

    Examples:

    - `asyncdiff plan --model demo-dit --devices 4`

    - `asyncdiff plan --devices 2 --memory 24GB --link pcie3 --timeline plan.svg`

    - `asyncdiff plan --devices 2 --measure --json > plan.json`

    Exit codes: 0 fine, 2 the model cannot be planned for, or nothing fits, 130 interrupted (Ctrl-C).
    """
    if timeline is not None:
        check_out("--timeline", timeline)
    try:
        request = Request(
            model=model,
            devices=devices,
            memory=memory,
            link=link,
            steps=steps,
            warmup=warmup,
            batch=batch,
            device=device,
            tflops=tflops,
            dtype=dtype.value if dtype else None,
            measure=measure,
            allow_pickle=allow_pickle,
        )
    except ConfigurationError as error:
        refuse(f"--{str(error).replace(' measure ', ' --measure ')}.")
    except AsyncDiffError as error:
        refuse(f"--model: {error}.")
    if allow_pickle:
        warn(PICKLE_WARNING)
    from asyncdiff.planning.drawing import draw
    from asyncdiff.planning.planner import plan_for

    with exit_codes():
        told = {"height": height, "width": width, "num_frames": frames}
        try:
            found = plan_for(request, {name: value for name, value in told.items() if value is not None})
        except AsyncDiffError as error:
            refuse(str(error))
    if as_json:
        print(json.dumps(_as_data(found), indent=2))
    else:
        _print(found)
    if timeline is not None and found.timeline is not None and found.chosen is not None:
        title = f"{found.denoiser}, {found.chosen.way} ({'measured' if found.is_measured else 'modelled'})"
        write_file("--timeline", timeline, draw(found.timeline, found.chosen.way.guidance, title))
    if found.chosen is None:
        refuse(found.reason)


def _print(found: "Plan") -> None:
    source = "measured on this machine" if found.is_measured else "modelled"
    calls = "" if found.calls == 1 else f", {found.calls} calls a step"
    title = (
        f"{found.denoiser}: {found.call * 1000:.3g} ms a call ({source}){calls}, {found.steps} steps, "
        f"link {found.link.name}"
    )
    stdout.print(_table(found, title))
    stdout.print(
        "✓ chosen; * no other that fits is faster and, by the indication, as close; + in memory: what is missing. "
        "Seconds: for a picture, of the denoising loop. Decibels: demo UNet · DiT, an indication.",
        highlight=False,
    )
    if found.no_tokens is not None:
        stdout.print(f"No way divides tokens: {found.no_tokens.rstrip('.')}.", markup=False, highlight=False)
    if found.chosen is not None:
        made_of = dataclasses.asdict(found.chosen.memory)
        memory = Table("on the device that needs most", "", title=f"memory of {found.chosen.way}")
        for name, said in _MADE_OF.items():
            memory.add_row(said, written_bytes(made_of[name]))
        memory.add_row("together", written_bytes(found.chosen.memory.total))
        stdout.print(memory)
        stdout.print(f"{_settings(found.chosen)}: {found.reason}", markup=False, highlight=False)


def _table(found: "Plan", title: str) -> Table:
    """A section for each number of devices. At 80 columns it is ways alone that take several lines."""
    table = Table(
        "",
        "way",
        *(Column(heading, no_wrap=True) for heading in _HEADINGS),
        title=title,
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,
    )
    for devices, candidates in itertools.groupby(found.candidates, key=lambda candidate: candidate.devices):
        table.add_section()
        table.add_row("", f"[bold]{devices} device{'s' * (devices > 1)}[/bold]")
        for candidate in candidates:
            table.add_row(*map(escape, _cells(candidate, candidate == found.chosen)))
    return table


def _settings(candidate: "Candidate") -> str:
    """The settings of a way, all that have to be given."""
    return f"AsyncDiff(pipe, {candidate.way}, warmup={candidate.way.warmup})"


def _cells(candidate: "Candidate", is_chosen: bool) -> tuple[str, ...]:
    memory = written_bytes(candidate.memory.total)
    return (
        "✓" if is_chosen else "*" if candidate.is_best else "",
        str(candidate.way),
        f"{candidate.seconds:#.3g}",
        f"{candidate.speedup:.2f}x",
        written_bytes(candidate.bytes_per_round),
        written_bytes(candidate.bytes_per_picture),
        memory if candidate.fits else f"{memory}\n+{written_bytes(candidate.missing)}",
        _decibels(candidate),
    )


def _decibels(candidate: "Candidate") -> str:
    if candidate.way.is_exact:
        return "exact"
    found = candidate.indication
    if found is None:
        return "not\nmeasured"
    asked = "" if found.components == candidate.way.components else f"\n(N={found.components})"
    return f"{found.unet:.1f} · {found.dit:.1f}{asked}"


def _as_data(found: "Plan") -> dict[str, Any]:
    """The plan as plain JSON."""
    candidates = [_candidate_as_data(candidate) for candidate in found.candidates]
    chosen = None if found.chosen is None else candidates[found.candidates.index(found.chosen)]
    return {
        "model": found.model,
        "denoiser": found.denoiser,
        "steps": found.steps,
        "link": dataclasses.asdict(found.link),
        "memory": found.memory,
        "call_seconds": found.call,
        "call": "measured" if found.is_measured else "modelled",
        "calls": found.calls,
        "pictures": found.pictures,
        "no_tokens": found.no_tokens,
        "candidates": candidates,
        "chosen": chosen,
        "reason": found.reason,
    }


def _candidate_as_data(candidate: "Candidate") -> dict[str, Any]:
    memory = dataclasses.asdict(candidate.memory) | {"total": candidate.memory.total}
    return dataclasses.asdict(candidate) | {
        "memory": memory,
        "fits": candidate.fits,
        "is_exact": candidate.way.is_exact,
    }
