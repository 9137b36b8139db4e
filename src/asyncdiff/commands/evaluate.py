"""The command `asyncdiff evaluate`."""

import traceback
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from asyncdiff.commands.asking import with_request
from asyncdiff.commands.checks import check_out, check_seed, check_weights, write_file
from asyncdiff.commands.options import AllowPickle, Model, Weights, with_settings
from asyncdiff.commands.terminal import exit_codes, fail, refuse, stderr, stdout
from asyncdiff.endings import WorkerFailedError
from asyncdiff.errors import AsyncDiffError, ConfigurationError
from asyncdiff.evaluation.written import METRIC_NAMES, compared, devices_of, parse_settings, title_of
from asyncdiff.lora import Lora
from asyncdiff.model_files import DEMO_MODELS
from asyncdiff.request.words import Request, advice_on
from asyncdiff.settings import Settings

if TYPE_CHECKING:
    import torch

    from asyncdiff.evaluation.metrics import Metric
    from asyncdiff.evaluation.study import Evaluation, Series, Study

_PROMPTS_OF_DEMO = 8


class Executor(str, Enum):
    """Where a setting's ranks are computed."""

    LOCAL = "local"
    DISTRIBUTED = "distributed"


@with_settings
@with_request
def evaluate(
    model: Model = "demo-unet",
    prompts: Annotated[
        Path | None,
        typer.Option(readable=False, help="Text file with a prompt per line. [default: 8 prompts of a demo model]"),
    ] = None,
    seeds: Annotated[
        str, typer.Option(help="Of the initial noise, with commas between; every prompt with each.")
    ] = "0",
    asked: Callable[[], Request] = Request,
    loras: tuple[Lora, ...] = (),
    settings: Settings = Settings(),
    compare_with: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE,...",
            help="A further setting, by what it changes in the chosen one; can be given again. Names: "
            f"{', '.join(compared())}.",
        ),
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(
            help=f"Beyond PSNR and SSIM, with commas between: {', '.join(METRIC_NAMES)}. They need "
            "asyncdiff[evaluate] and download weights."
        ),
    ] = "",
    out: Annotated[Path, typer.Option(readable=False, help="HTML file to write.")] = Path("report.html"),
    devices: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes that a setting may take: a GPU each, or a CPU thread each. 1 computes everything in one "
            "process. [default: the GPUs here if they are enough, or 1]",
        ),
    ] = None,
    executor: Annotated[
        Executor | None,
        typer.Option(
            help="local: the numbers of several devices, computed in one process; distributed: as many processes as "
            "a setting takes. [default: local on one device]"
        ),
    ] = None,
    dtype: Weights = None,
    allow_pickle: AllowPickle = False,
) -> None:
    """Draw the same pictures or videos sequentially and with asyncdiff, and write a report on how alike they are.

    Examples:

    - `asyncdiff evaluate` – a demo model, eight prompts, in one process

    - `asyncdiff evaluate --model ./my-pipeline --prompts prompts.txt --seeds 0,1 --compare-with components=4
      --compare-with stride=2,warmup=5` – three settings of one's own

    - `asyncdiff evaluate --devices 2 --out two.html` – on two processes, with measured times

    The report is one HTML file: a table (PSNR, SSIM, times, modelled speed-up), and for every prompt and seed
    the sequential picture, every setting's, and the differences; videos play side by side. All pictures are kept in
    memory until then.

    Exit codes: 0 fine, 1 a process or a setting failed (the others are in the report), 2 bad usage, or a model or a
    metric that cannot be had here, 130 interrupted (Ctrl-C).
    """
    _check_page(out)
    check_weights(model, allow_pickle)
    drawn_at = _settings(replace(settings, components=_components(settings, devices)), compare_with or [])
    drawn_from, drawn_of = _seeds(seeds), _prompts(prompts, model)
    request = asked()
    import torch

    from asyncdiff.evaluation.page import render
    from asyncdiff.evaluation.study import Study, draw_on_processes, judge

    study = Study(
        model=model,
        dtype=dtype.value if dtype else None,
        prompts=drawn_of,
        seeds=drawn_from,
        request=request,
        settings=drawn_at,
        allow_pickle=allow_pickle,
        loras=loras,
    )
    local = _is_local(study.settings, devices, executor)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with exit_codes(advice=advice_on(request.arguments)):
        loaded = _metrics(metrics, study, device)
        drawn = _draw_locally(study, device) if local else draw_on_processes(study)
        evaluation = judge(study, local, device, drawn, loaded)
        write_file("--out", out, render(evaluation))
    stdout.print(_table(evaluation))
    count, kind = len(study.pairs), evaluation.sequential.pictures[0].made.kind
    stdout.print(f"{out}: {count} {kind}{'s' * (count > 1)} at every setting", markup=False, soft_wrap=True)
    failed = [series for series in evaluation.series if series.failure is not None]
    for series in failed:
        stderr.print(
            f"{title_of(series.setting) if series.setting else ''}: {series.failure}", markup=False, soft_wrap=True
        )
    if failed:
        fail(f"{len(failed)} of {len(study.settings)} settings failed; the report has the others.")


def _check_page(out: Path) -> None:
    if out.suffix.lower() not in (".html", ".htm"):
        refuse(f"--out {out}: the report is HTML, so its name must end in .html.")
    check_out("--out", out)


def _components(settings: Settings, devices: int | None) -> int:
    """N, where it is not told: what the devices allow; or 2, and 1 with groups."""
    groups = settings.guidance or 1
    if settings.told_components is not None:
        return settings.told_components
    if devices is None or devices == 1:
        return 2 if groups == 1 else 1
    fitting = devices // groups - settings.stride + 1
    if fitting < 1:
        refuse(
            f"--devices {devices} is too few for --stride {settings.stride} and --guidance-devices {groups}: "
            f"use --devices {groups * (settings.stride + 1)} or more."
        )
    return fitting


def _prompts(file: Path | None, model: str) -> tuple[str | None, ...]:
    if file is None:
        if model not in DEMO_MODELS:
            from asyncdiff.loading import signature_of

            signature = signature_of(model)
            if signature is not None and "prompt" not in signature.names:
                return (None,)
            refuse(f"--prompts is needed for {model}: a text file with a prompt per line.")
        from asyncdiff.demo import demo_prompts

        known = demo_prompts()
        return tuple(known[number * len(known) // _PROMPTS_OF_DEMO] for number in range(_PROMPTS_OF_DEMO))
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        refuse(f"--prompts {file} cannot be read: {error}")
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        refuse(f"--prompts {file} holds no prompt: write one per line.")
    return found


def _seeds(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        refuse(f"--seeds {text!r}: write whole numbers with commas between, for instance 0,1,2.")
    for part in parts:
        check_seed("--seeds", int(part))
    return tuple(dict.fromkeys(map(int, parts)))


def _settings(chosen: Settings, further: list[str]) -> tuple[Settings, ...]:
    found = [chosen]
    for text in further:
        try:
            setting = parse_settings(text, chosen)
        except ConfigurationError as error:
            refuse(f"--compare-with {text!r}: {error}.")
        if setting in found:
            refuse(f"--compare-with {text!r}: this is {title_of(setting)}, which is among the settings already.")
        found.append(setting)
    return tuple(found)


def _is_local(settings: tuple[Settings, ...], devices: int | None, executor: Executor | None) -> bool:
    """Whether one process computes everything; refuses what there are not enough devices for."""
    import torch

    largest = max(settings, key=devices_of)
    needed, title = devices_of(largest), title_of(largest)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else None
    if executor is Executor.LOCAL:
        if devices is not None and devices > 1:
            refuse(f"--executor local computes in one process: leave out --devices {devices}.")
        return True
    if executor is None and (devices == 1 or (devices is None and (gpus or 0) < max(needed, 2))):
        return True
    available = devices if devices is not None else needed
    if needed > available:
        refuse(f"{title} takes {needed} devices, but --devices is {available}; or use --devices 1.")
    if gpus is not None and gpus < needed:
        there = "is 1 GPU" if gpus == 1 else f"are {gpus} GPUs"
        refuse(f"{title} takes {needed} devices, but there {there}; use --executor local.")
    return False


def _metrics(text: str, study: "Study", device: "torch.device") -> "list[Metric]":
    from asyncdiff.evaluation.metrics import load_metrics

    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if "fid" in names and len(study.pairs) < 2:
        refuse("--metrics fid needs at least two pictures: more prompts, or more seeds.")
    try:
        return load_metrics(names, device)
    except AsyncDiffError as error:
        refuse(f"--metrics {text}: {error}.")


def _draw_locally(study: "Study", device: "torch.device") -> "tuple[Series, ...]":
    from asyncdiff.evaluation.study import check_settings, draw_locally
    from asyncdiff.launch import open_pipeline

    pipe = open_pipeline(study.model, study.dtype, device, study.allow_pickle, study.loras)
    try:
        check_settings(pipe, study)
    except AsyncDiffError as error:
        refuse(str(error))
    try:
        return draw_locally(pipe, study, device)
    except AsyncDiffError:
        raise
    except Exception as error:  # whatever the pipeline stumbles over, told as that of a process of its own
        raise WorkerFailedError(0, 1, traceback.format_exc()) from error


def _table(evaluation: "Evaluation") -> Table:
    from asyncdiff.evaluation.page import summary

    names = [metric.title for metric in evaluation.metrics]
    measured = ["speed-up"] if not evaluation.local else []
    numbers = ["PSNR", "worst", "SSIM", *names, "seconds", *measured, "modelled"]
    columns = [Column(name, no_wrap=True) for name in numbers]
    table = Table(Column("setting"), *columns, title=f"{evaluation.study.model}, sequential and asyncdiff")
    for row in summary(evaluation):
        speedup = [row.speedup] if not evaluation.local else []
        title = row.title + (": failed" if row.failure else "")
        table.add_row(title, row.psnr, row.worst, row.ssim, *row.metrics, row.seconds, *speedup, row.modelled)
    return table
