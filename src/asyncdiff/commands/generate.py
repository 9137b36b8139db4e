"""The command `asyncdiff generate`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asyncdiff.commands.asking import with_request
from asyncdiff.commands.checks import check_out, check_seed, check_weights
from asyncdiff.commands.options import AllowPickle, Model, Weights, is_typed, typed_settings, with_settings
from asyncdiff.commands.remote import ask
from asyncdiff.commands.terminal import exit_codes, refuse, stdout
from asyncdiff.commands.writing import check_made, write_out
from asyncdiff.lora import Lora
from asyncdiff.made.files import FRAMES_PER_SECOND
from asyncdiff.made.media import Made
from asyncdiff.request.words import Request, advice_on
from asyncdiff.settings import Settings, knobs

if TYPE_CHECKING:
    from asyncdiff.launch import Job, Outcome


@with_settings
@with_request
def generate(
    context: typer.Context,
    prompt: Annotated[
        str | None,
        typer.Argument(
            help='What to draw, if the pipeline draws words. The demo models know emoji, for instance "rocket".'
        ),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes to start: a GPU each, or a CPU thread each. They are shared out among guidance-devices * "
            "(components + stride - 1), exactly where possible; 1 runs the ordinary pipeline, unless steps are "
            "bridged. [default: what the others need, or 2]",
        ),
    ] = None,
    settings: Settings = Settings(),
    seed: Annotated[int, typer.Option(help="Of the initial noise.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            readable=False,
            help="File to write; its ending says the format: .png, .mp4, .gif, .wav. [default: out, with the ending of "
            "what is made]",
        ),
    ] = None,
    model: Model = "demo-unet",
    dtype: Weights = None,
    asked: Callable[[], Request] = Request,
    loras: tuple[Lora, ...] = (),
    count: Annotated[
        int | None, typer.Option(min=1, help="Pictures, videos or sounds to make. [default: the pipeline's own]")
    ] = None,
    fps: Annotated[
        int, typer.Option(min=1, max=240, help="Frames per second of a video that is written.")
    ] = FRAMES_PER_SECOND,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Also run the ordinary pipeline on one device. Writes both side by side (sound: the ordinary one in "
            "the first file), and says how alike they are (PSNR, SSIM), how long it took, and the speed-up.",
        ),
    ] = False,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            readable=False,
            help="Also write what every device does, and when, to a file that ui.perfetto.dev opens.",
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Have a running `asyncdiff serve` make it, for instance http://127.0.0.1:8000, with its model. Its "
            "key, if it asks for one, is read from the variable ASYNCDIFF_API_KEY.",
        ),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Print the whole report of what was done, in place of a line of it.")
    ] = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Draw a picture, or make a video or sound, with the denoiser divided over several devices.

    Examples:

    - `asyncdiff generate "rocket" --devices 2 --compare` – two devices against one: a guidance branch each, exact

    - `asyncdiff generate "rocket" --components 2 --compare` – two devices, half of the denoiser each

    - `asyncdiff generate "rocket" --components 2 --method paper --compare` – the same as the paper has it

    - `asyncdiff generate "rocket" --model demo-dit --tokens 2` – two devices, half of the picture on each

    - `asyncdiff generate "rocket" --devices 4 --bridge 2` – the guidance, two components, every second step forecast

    - `asyncdiff generate "rocket" --devices 1 --target-speedup 2` – one device

    - `asyncdiff generate "red apple" --components 2 --stride 2 --steps 50` – three devices, half the rounds

    - `asyncdiff generate "a fox" --model ./my-pipeline --devices 4 --out fox.png` – four devices

    - `asyncdiff generate "a fox runs" --model ./my-video-pipeline --frames 33 --size 832x480 --out fox.mp4` – a video

    - `asyncdiff generate "a fox" --model ./my-pipeline --image dog.png --set strength=0.6` – of another picture

    - `asyncdiff generate "a fox" --model ./my-pipeline --lora style.safetensors=0.8` – in another style

    Every process loads the pipeline, makes one short picture that is not timed (it traces the denoiser and
    touches all memory once), and then the picture. The time is that of this pipeline call alone. On a CPU
    every process computes on one thread, with --compare the ordinary pipeline too.

    Exit codes: 0 fine, 1 a process failed (its traceback is printed), 2 bad usage, or a model that cannot be loaded or
    divided so, 130 interrupted (Ctrl-C).
    """
    check_made(out, fps)
    check_seed("--seed", seed)
    if server is not None:
        own = {"--devices": devices, "--dtype": dtype, "--lora": loras, "--trace": trace, "--compare": compare}
        given = [name for name, value in {**own, "--report": report, "--allow-pickle": allow_pickle}.items() if value]
        typed = typed_settings(context, settings)
        given += [f"--{knob.option}" for knob in knobs() if knob.is_fixed and knob.name in typed]
        if given:
            refuse(f"{', '.join(given)} cannot be given together with --server: the service has its own.")
        request = asked()
        if not is_typed(context, "steps"):
            request = dataclasses.replace(request, steps=None)
        ask(server, model, request, seed, typed, out, fps)
        return
    devices = _fit(devices, settings)
    check_weights(model, allow_pickle)
    request = asked()
    import torch

    from asyncdiff.launch import Job, launch

    job = Job(
        model=model,
        dtype=dtype.value if dtype else None,
        request=request,
        seed=seed,
        devices=devices,
        settings=settings,
        title="asyncdiff",
        allow_pickle=allow_pickle,
        loras=loras,
        trace=trace,
    )
    if trace is not None:
        _check_trace(trace, job)
    if job.is_ordinary:
        job = dataclasses.replace(job, title="sequential")
    if torch.cuda.is_available() and torch.cuda.device_count() < job.devices:
        gpus = torch.cuda.device_count()
        refuse(
            f"{job.devices} devices are asked for, but here {'is 1 GPU' if gpus == 1 else f'are {gpus} GPUs'}; "
            "set CUDA_VISIBLE_DEVICES to nothing to run on the CPU."
        )
    with exit_codes(advice=advice_on(request.arguments)):
        outcome = launch(job)
        sequential = None
        if compare:
            sequential = launch(job.sequential())
    made = outcome.made if sequential is None else _beside(sequential, outcome)
    files = write_out(made, out, fps)
    steps = outcome.steps or request.steps
    lines = [
        f"{', '.join(map(str, files))}: {steps} step{'s' * (steps != 1)} on {job.devices} "
        f"device{'s' * (job.devices > 1)} in {outcome.seconds:.2f} s"
    ]
    if outcome.report is not None:
        lines.append(str(outcome.report) if report else outcome.report.summary)
    if sequential is not None:
        lines.append(_comparison(sequential, outcome))
    stdout.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _fit(devices: int | None, settings: Settings) -> int:
    """The number of devices, if everything asked for fits together."""
    components, stride, groups = settings.told_components, settings.stride, settings.guidance or 1
    needs = "components + stride - 1" if groups == 1 else f"{groups} guidance-devices * (components + stride - 1)"
    if components is None:
        if devices is None:
            # With groups alone, nothing but exact sharing out is asked for.
            return (2 if settings.guidance is None else groups) + (stride - 1) * groups
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
    needed = settings.mesh(components).world_size
    if settings.tokens is not None and devices not in (None, needed):
        each = f" and --components {components}" if components > 1 else ""
        each += f" for each of {groups} --guidance-devices" if groups > 1 else ""
        refuse(f"--devices {devices} does not fit --tokens {settings.tokens}{each}: use --devices {needed}.")
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


def _check_trace(trace: Path, job: "Job") -> None:
    if job.is_ordinary:
        refuse("--trace: the ordinary pipeline runs by itself, and nothing is traced; use --devices 2, or --bridge 2.")
    check_out("--trace", trace)


def _beside(sequential: "Outcome", outcome: "Outcome") -> Made:
    from asyncdiff.evaluation.compare import beside

    done = "one device"
    if outcome.report is not None:
        groups = f"G={outcome.report.guidance} " if outcome.report.guidance > 1 else ""
        done = f"{groups}{outcome.report.parts} w={outcome.report.warmup}"
    captions = [f"sequential, {sequential.seconds:.2f} s", f"asyncdiff {done}, {outcome.seconds:.2f} s"]
    return beside([sequential.made, outcome.made], captions)


def _comparison(sequential: "Outcome", outcome: "Outcome") -> str:
    from asyncdiff.evaluation.compare import likeness

    ratio = sequential.seconds / outcome.seconds
    apart = likeness(sequential.made, outcome.made)
    return f"against the ordinary pipeline on one device, {sequential.seconds:.2f} s: {ratio:.2f}x as fast, {apart}"
