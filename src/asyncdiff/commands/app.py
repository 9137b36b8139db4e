"""The command line: `asyncdiff generate`, `inspect`, `models` and `evaluate` (in its own module)."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from rich.markup import escape
from rich.progress import track
from rich.table import Column, Table

from asyncdiff.commands.evaluate import evaluate_
from asyncdiff.commands.terminal import (
    EXIT_CODES,
    Bridge,
    Cooldown,
    MaxError,
    Method,
    MethodName,
    Model,
    ResyncEvery,
    Steps,
    TargetSpeedup,
    Warmup,
    Weights,
    exit_codes,
    fail,
    refuse,
    stderr,
    stdout,
)
from asyncdiff.errors import AsyncDiffError
from asyncdiff.evaluation.compare import pixels, psnr, side_by_side, ssim
from asyncdiff.evaluation.inspection import Inspection, inspect_denoisers
from asyncdiff.launch import Job, Outcome, launch, load_pipeline
from asyncdiff.plan.mesh import Mesh
from asyncdiff.plan.schedule import Schedule
from asyncdiff.zoo import matrix

app = typer.Typer(
    name="asyncdiff",
    help="Asynchronous denoising for any diffusers pipeline: one picture, several devices. " + EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help='What to draw. The demo models know emoji, for instance "rocket".')],
    devices: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes to start: a GPU each, or a CPU thread each. They are shared out among guidance-devices * "
            "(components + stride - 1), exactly where possible; 1 runs the ordinary pipeline, unless steps are "
            "bridged. [default: what the others need, or 2]",
        ),
    ] = None,
    components: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="N: parts that the denoiser is divided into. [default: devices / guidance-devices - stride + 1]",
        ),
    ] = None,
    guidance_devices: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="G: groups of devices that share out every step: the two halves of the guidance, for instance. "
            "2 is exact, and about twice as fast. [default: 1 with --components, else as many as can share out]",
        ),
    ] = None,
    stride: Annotated[
        int,
        typer.Option(min=1, help="S: steps that one round of the components serves. 2 is faster and less exact."),
    ] = 1,
    warmup: Warmup = 3,
    bridge: Bridge = None,
    target_speedup: TargetSpeedup = None,
    max_error: MaxError = None,
    cooldown: Cooldown = None,
    resync_every: ResyncEvery = None,
    method: Method = MethodName.FORECAST,
    steps: Steps = 50,
    seed: Annotated[int, typer.Option(help="Of the initial noise.")] = 0,
    out: Annotated[Path, typer.Option(help="Picture file to write; its ending says the format.")] = Path("out.png"),
    model: Model = "demo-unet",
    dtype: Weights = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Also run the ordinary pipeline on one device. Writes both pictures side by side, and prints "
            "how alike they are (PSNR, SSIM), both times and the speed-up.",
        ),
    ] = False,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale. [default: the pipeline's own]")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that a process waits for another before it fails.")] = 300.0,
    time_shift: Annotated[
        bool,
        typer.Option(
            "--time-shift",
            help="After the warm-up give every component the timestep before, to match its inputs' age.",
        ),
    ] = False,
) -> None:
    """Draw a picture with the denoiser divided over several devices.

    Examples:

    - `asyncdiff generate "rocket" --devices 2 --compare` – two devices against one: a guidance branch each, exact

    - `asyncdiff generate "rocket" --components 2 --compare` – two devices, half of the denoiser each

    - `asyncdiff generate "rocket" --components 2 --method paper --compare` – the same as the paper has it

    - `asyncdiff generate "rocket" --devices 4 --bridge 2` – the guidance, two components, every second step forecast

    - `asyncdiff generate "rocket" --devices 1 --target-speedup 2` – one device

    - `asyncdiff generate "red apple" --components 2 --stride 2 --steps 50` – three devices, half the rounds

    - `asyncdiff generate "a fox" --model ./my-pipeline --devices 4 --out fox.png` – four components

    Every process loads the pipeline, makes one short picture that is not timed (it traces the denoiser and
    touches all memory once), and then the picture. The time is that of this pipeline call alone. On a CPU
    every process computes on one thread, with --compare the ordinary pipeline too.

    Exit codes: 0 fine, 1 a process failed (its traceback is printed), 2 bad usage, 130 interrupted (Ctrl-C).
    """
    devices = _fit(devices, components, stride, guidance_devices)
    if bridge is not None and target_speedup is not None:
        refuse("--bridge and --target-speedup both say how many steps are bridged: give one of them.")
    for name, bound in (("--target-speedup", target_speedup), ("--max-error", max_error)):
        if bound is not None and not bound > 0:
            refuse(f"{name} must be above 0, not {bound:g}.")
    if timeout <= 0:
        refuse(f"--timeout must be above 0 seconds, not {timeout:g}.")
    _check_out(out)
    job = Job(
        model=model,
        dtype=dtype.value if dtype else None,
        prompt=prompt,
        steps=steps,
        seed=seed,
        guidance=guidance,
        devices=devices,
        guidance_devices=guidance_devices,
        components=components,
        stride=stride,
        warmup=warmup,
        bridge=bridge,
        target_speedup=target_speedup,
        max_error=max_error,
        cooldown=cooldown,
        resync_every=resync_every,
        method=method.value,
        time_shift=time_shift,
        timeout=timeout,
        title="asyncdiff",
    )
    if job.is_ordinary:
        job = dataclasses.replace(job, title="sequential")
    if torch.cuda.is_available() and torch.cuda.device_count() < job.devices:
        refuse(
            f"{job.devices} devices are asked for, but there are {torch.cuda.device_count()} GPUs here; "
            "set CUDA_VISIBLE_DEVICES to nothing to run on the CPU."
        )
    with exit_codes():
        outcome = launch(job)
        sequential = None
        if compare:
            sequential = launch(dataclasses.replace(job, devices=1, bridge=1, target_speedup=None, title="sequential"))
    if sequential is None:
        outcome.picture.save(out)
    else:
        _sheet(job, sequential, outcome).save(out)
    if outcome.report is not None:
        stdout.print(str(outcome.report), markup=False, highlight=False, soft_wrap=True)
    if sequential is not None:
        stdout.print(_comparison(sequential, outcome))
    stdout.print(
        f"{out}: {job.steps} steps on {job.devices} device{'s' * (job.devices > 1)} in {outcome.seconds:.2f} s",
        markup=False,
        soft_wrap=True,
    )


@app.command("inspect")
def inspect_(
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


@app.command()
def models(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Classes of diffusers, for instance FluxTransformer2DModel. [default: all]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print plain JSON instead of a table.")] = False,
    markdown: Annotated[Path | None, typer.Option(help="Also write the table to this Markdown file.")] = None,
) -> None:
    """Check which denoiser classes of the installed diffusers can be divided.

    Builds each class small, with random weights, and checks it: units and live edges, balance for two, three
    and four components, the warm-up against the plain model, the rounds against the paper's recurrence. Nothing
    is downloaded. All classes take some minutes.

    Examples:

    - `asyncdiff models FluxTransformer2DModel UNet2DConditionModel`

    - `asyncdiff models --json > models.json`

    Exit codes: 0 fine (whether or not all classes work), 2 no such class, 130 interrupted (Ctrl-C).
    """
    with exit_codes():
        try:
            found = matrix.subjects(names or ())
        except AsyncDiffError as error:
            refuse(str(error))
        findings = [matrix.examine(subject) for subject in track(found, "checking", console=stderr)]
    if markdown is not None:
        markdown.write_text(matrix.as_page(findings), encoding="utf-8")
    if as_json:
        print(json.dumps([matrix.as_object(finding) for finding in findings], indent=2))
        return
    table = Table(*(Column(name, overflow="fold") for name in matrix.COLUMNS))
    for finding in findings:
        table.add_row(*map(escape, matrix.as_row(finding)))
    stdout.print(table)


app.command("evaluate")(evaluate_)


def main() -> None:
    """Entry point of the `asyncdiff` command."""
    app()


def _fit(devices: int | None, components: int | None, stride: int, guidance_devices: int | None) -> int:
    """The number of devices, if everything asked for fits together."""
    groups = guidance_devices or 1
    needs = "components + stride - 1" if groups == 1 else f"{groups} guidance-devices * (components + stride - 1)"
    if components is None:
        if devices is None:
            # With groups alone, nothing but exact sharing out is asked for.
            return (2 if guidance_devices is None else groups) + (stride - 1) * groups
        if devices % groups:
            refuse(
                f"--devices {devices} cannot be shared out evenly among --guidance-devices {groups}: "
                f"use --devices {-(-devices // groups) * groups}."
            )
        if devices // groups < stride:
            refuse(
                f"--devices {devices} is too few for --stride {stride}: use --devices {groups * (stride + 1)} or more, "
                f"or --stride 1."
            )
        return devices
    needed = Mesh(groups, Schedule(components, stride, warmup=1).world_size).world_size
    if devices is not None and devices != needed:
        ways = [f"--devices {needed}"]
        in_group = devices // groups if devices % groups == 0 else 0
        if in_group >= stride:
            ways.append(f"--components {in_group - stride + 1}")
        if in_group >= components:
            ways.append(f"--stride {in_group - components + 1}")
        refuse(
            f"--devices {devices} does not fit --components {components} --stride {stride}, which need "
            f"{needs} = {needed} devices: use {', or '.join(ways)}."
        )
    return needed


def _check_out(out: Path) -> None:
    Image.init()
    if out.suffix.lower() not in Image.registered_extensions():
        refuse(f"--out {out}: {out.suffix or 'no ending'} is no picture format; use .png for instance.")
    if not out.absolute().parent.is_dir():
        refuse(f"--out {out}: the folder {out.parent} does not exist.")


def _sheet(job: Job, sequential: Outcome, outcome: Outcome) -> Image.Image:
    done = "one device"
    if outcome.report is not None:
        groups = f"G={outcome.report.guidance} " if outcome.report.guidance > 1 else ""
        done = f"{groups}N={outcome.report.components} S={job.stride} w={job.warmup}"
    return side_by_side(
        [sequential.picture, outcome.picture],
        [
            f"sequential, {sequential.seconds:.2f} s",
            f"asyncdiff {done}, {outcome.seconds:.2f} s",
        ],
    )


def _comparison(sequential: Outcome, outcome: Outcome) -> Table:
    first, second = pixels(sequential.picture), pixels(outcome.picture)
    likeness = psnr(first, second)
    table = Table("", "sequential", "asyncdiff", title="sequential and asyncdiff")
    table.add_row("seconds of the pipeline call", f"{sequential.seconds:.2f}", f"{outcome.seconds:.2f}")
    table.add_row("speed-up", "", f"{sequential.seconds / outcome.seconds:.2f}x")
    if outcome.report is not None:
        for denoiser in outcome.report.denoisers:
            label = f"modelled speed-up of the {denoiser.name}'s steps"
            table.add_row(label, "", f"{denoiser.modelled_speedup:.2f}x")
    table.add_row("PSNR", "", "inf (identical)" if math.isinf(likeness) else f"{likeness:.2f} dB")
    table.add_row("SSIM", "", f"{ssim(first, second):.4f}")
    return table


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
