"""A small study of one's own pipeline: the same pictures drawn sequentially and with asyncdiff, compared."""

import contextlib
import datetime
import math
import os
import platform
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import diffusers
import torch
from diffusers import DiffusionPipeline
from rich.console import Console
from rich.progress import track

from asyncdiff.api import AsyncDiff
from asyncdiff.endings import RefusedError, WorkerFailedError
from asyncdiff.errors import AsyncDiffError
from asyncdiff.evaluation.compare import Likeness, likeness
from asyncdiff.evaluation.machine import cpu_model, gpu_models
from asyncdiff.evaluation.metrics import Metric
from asyncdiff.evaluation.written import devices_of, title_of
from asyncdiff.launch import (
    draw,
    enter_process,
    open_pipeline,
    rehearsal_of,
    run_processes,
)
from asyncdiff.lora import Lora
from asyncdiff.made.media import Made
from asyncdiff.report import Report
from asyncdiff.request.words import Request
from asyncdiff.settings import Executor, Settings
from asyncdiff.versions import version_of


@dataclass(frozen=True)
class Study:
    """What is to be drawn: every prompt with every seed, sequentially and at every setting.

    Attributes:
        model: a demo model, a hub id, or a folder.
        dtype: number format of the weights; None for the usual one of the device.
        prompts: None of a pipeline that takes none.
        request: what is asked of the pipeline, but for the prompt.
        settings: the chosen ones first; the executor is the study's own choice.
        allow_pickle: whether weights may be read that are no safetensors.
        loras: that are put on the pipeline before.
    """

    model: str
    dtype: str | None
    prompts: tuple[str | None, ...]
    seeds: tuple[int, ...]
    request: Request
    settings: tuple[Settings, ...]
    allow_pickle: bool = False
    loras: tuple[Lora, ...] = ()

    @property
    def pairs(self) -> list[tuple[str | None, int]]:
        """Prompt and seed of every picture, in the order of drawing."""
        return [(prompt, seed) for prompt in self.prompts for seed in self.seeds]


@dataclass(frozen=True)
class Account:
    """What asyncdiff did for one picture.

    Attributes:
        calls: the denoiser's calls by kind.
        modelled_speedup: of each denoiser's loop, from the shares, without communication.
        bytes_sent: over all ranks; in one process, where nothing is sent, those of the live edges that would be.
    """

    calls: Mapping[str, int]
    modelled_speedup: Mapping[str, float]
    bytes_sent: int


@dataclass(frozen=True)
class Picture:
    """One picture, video or sound, and the seconds of the pipeline call; the sequential pipeline's has no account."""

    made: Made
    seconds: float
    account: Account | None


@dataclass(frozen=True)
class Series:
    """All pictures of one setting, or of the sequential pipeline (None), in the order of the study's pairs.

    Attributes:
        warnings: what asyncdiff warned of.
        failure: why there are no pictures.
    """

    setting: Settings | None
    pictures: tuple[Picture, ...]
    warnings: tuple[str, ...] = ()
    failure: str | None = None


@dataclass(frozen=True)
class Scores:
    """How alike one setting's pictures are to the sequential ones, each and by the other metrics."""

    likenesses: tuple[Likeness, ...]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Evaluation:
    """The result of a study.

    Attributes:
        local: whether all ranks were computed in one process, so that times mean nothing.
        on_cpu: whether no GPU was used.
        machine: versions and devices.
        metrics: those beyond PSNR and SSIM.
        sequential_scores: the metrics that the sequential pictures alone have.
        scores: of each of `series`; None for one that failed.
    """

    study: Study
    local: bool
    on_cpu: bool
    machine: Mapping[str, str]
    metrics: tuple[Metric, ...]
    sequential: Series
    sequential_scores: Mapping[str, float]
    series: tuple[Series, ...]
    scores: tuple[Scores | None, ...]


def check_settings(pipe: DiffusionPipeline, study: Study) -> None:
    """Attach each setting once, so that one that the pipeline cannot take is known before anything is drawn.

    Raises:
        AsyncDiffError: a setting cannot be attached.
    """
    for setting in study.settings:
        with AsyncDiff(pipe, **replace(setting, executor="local").arguments()):
            pass


def draw_locally(pipe: DiffusionPipeline, study: Study, device: torch.device) -> tuple[Series, ...]:
    """The sequential series and every setting's, all ranks of a setting one after the other in this process."""
    pipe.set_progress_bar_config(disable=True)
    found: list[Series] = []
    for setting in (None, *study.settings):
        # RuntimeError: for instance memory that is used up. What is drawn already is not thrown away for it.
        with _kept(setting, (AsyncDiffError, RuntimeError), found):
            share = _draw_share(pipe, study, setting, device, executor="local", is_shown=True)
            found.append(Series(setting, share.pictures, share.warnings))
    return tuple(found)


def draw_on_processes(study: Study) -> tuple[Series, ...]:
    """The sequential series and every setting's, each on as many processes as it takes.

    Raises:
        RefusedError: the model cannot be loaded, or makes no pictures of prompts.
        WorkerFailedError: the sequential run failed, or one was interrupted.
    """
    found: list[Series] = []
    for setting in (None, *study.settings):
        with _kept(setting, (RefusedError, WorkerFailedError), found):
            found.append(draw_setting_on_processes(study, setting))
    return tuple(found)


def draw_setting_on_processes(study: Study, setting: Settings | None) -> Series:
    """One series, on as many processes as it takes.

    Raises:
        RefusedError: the setting cannot be drawn at.
        WorkerFailedError: one of the processes failed; all have been ended.
    """
    shares = cast(list[_Share], run_processes(devices_of(setting) if setting else 1, _work, _Task(study, setting)))
    pictures = tuple(
        replace(picture, account=replace(picture.account, bytes_sent=sum(share.bytes_sent[number] for share in shares)))
        if picture.account
        else picture
        for number, picture in enumerate(shares[0].pictures)
    )
    return Series(setting, pictures, shares[0].warnings)


def judge(
    study: Study, local: bool, device: torch.device, drawn: Sequence[Series], metrics: Sequence[Metric]
) -> Evaluation:
    """Compare what was drawn, the sequential series first."""
    sequential, *others = drawn
    prompts = [prompt or "" for prompt, _ in study.pairs]
    originals = [picture.made for picture in sequential.pictures]
    return Evaluation(
        study=study,
        local=local,
        on_cpu=device.type == "cpu",
        machine=_machine(device),
        metrics=tuple(metrics),
        sequential=sequential,
        sequential_scores={
            metric.name: _measured(metric, originals, originals, prompts)
            for metric in metrics
            if metric.is_of_sequential
        },
        series=tuple(others),
        scores=tuple(_score(series, originals, prompts, metrics) for series in others),
    )


@dataclass(frozen=True)
class _Task:
    """What every process of a series is given."""

    study: Study
    setting: Settings | None


@dataclass(frozen=True)
class _Share:
    """What one rank brings home: the bytes that it sent for every picture; on rank 0 also the pictures."""

    bytes_sent: tuple[int, ...]
    pictures: tuple[Picture, ...] = ()
    warnings: tuple[str, ...] = ()


def _work(task: _Task) -> _Share:
    rank, device = enter_process()
    is_shared = task.setting is not None and task.setting.shard and devices_of(task.setting) > 1
    study = task.study
    pipe = open_pipeline(study.model, study.dtype, device, study.allow_pickle, study.loras, is_shared)
    executor: Executor = "distributed" if task.setting and devices_of(task.setting) > 1 else "local"
    share = _draw_share(pipe, study, task.setting, device, executor, is_shown=rank == 0)
    return _Share(share.bytes_sent) if rank else share


def _draw_share(
    pipe: DiffusionPipeline,
    study: Study,
    setting: Settings | None,
    device: torch.device,
    executor: Executor,
    is_shown: bool,
) -> _Share:
    if setting is None:
        rehearsal = replace(study.request, steps=min(study.request.steps or 2, 2))
        return _draw_pairs(pipe, study, None, rehearsal, device, "sequential", is_shown)
    rehearsal = rehearsal_of(study.request, setting)
    with AsyncDiff(pipe, **replace(setting, executor=executor).arguments()) as attached:
        return _draw_pairs(pipe, study, attached, rehearsal, device, title_of(setting), is_shown)


def _draw_pairs(
    pipe: DiffusionPipeline,
    study: Study,
    attached: AsyncDiff | None,
    rehearsal: Request,
    device: torch.device,
    title: str,
    is_shown: bool,
) -> _Share:
    """Every picture, after a short one that is not timed: it traces the denoiser and touches all memory once."""
    pictures = []
    with _warnings_of_asyncdiff() as caught:
        prompt, seed = study.pairs[0]
        draw(pipe, rehearsal.of(prompt), seed, device)
        caught.clear()
        console = Console(stderr=True)
        for prompt, seed in track(study.pairs, title, console=console, disable=not is_shown):
            made, seconds = draw(pipe, study.request.of(prompt), seed, device)
            pictures.append(Picture(made, seconds, _account(attached.report()) if attached else None))
    sent = tuple(picture.account.bytes_sent if picture.account else 0 for picture in pictures)
    said = dict.fromkeys(str(warning.message) for warning in caught)
    return _Share(sent, tuple(pictures), tuple(said))


def _account(report: Report) -> Account:
    calls: Counter[str] = Counter()
    for denoiser in report.denoisers:
        counts = denoiser.counts
        calls["full"] += counts.full.total()
        calls["rounds"] += counts.rounds
        calls["bridged"] += counts.bridged
        calls["stored"] += counts.stored
    speedups = {denoiser.name: denoiser.modelled_speedup for denoiser in report.denoisers}
    return Account(calls, speedups, report.bytes_sent)


def _score(
    series: Series, originals: Sequence[Made], prompts: Sequence[str], metrics: Sequence[Metric]
) -> Scores | None:
    if series.failure is not None:
        return None
    mades = [picture.made for picture in series.pictures]
    return Scores(
        likenesses=tuple(likeness(original, made) for original, made in zip(originals, mades, strict=True)),
        metrics={metric.name: _measured(metric, originals, mades, prompts) for metric in metrics},
    )


def _measured(metric: Metric, originals: Sequence[Made], mades: Sequence[Made], prompts: Sequence[str]) -> float:
    """A metric of pictures, over all frames; of sound there is none."""
    if not any(made.frames for made in mades):
        return math.nan
    of_each = [prompt for prompt, made in zip(prompts, mades, strict=True) for _ in made.frames]
    plain, drawn = ([frame for made in several for frame in made.frames] for several in (originals, mades))
    return metric.measure(plain, drawn, of_each)


def _machine(device: torch.device) -> dict[str, str]:
    return {
        "asyncdiff": version_of("asyncdiff"),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "Python": platform.python_version(),
        "system": platform.platform(),
        "device": ", ".join(gpu_models()) if device.type == "cuda" else f"{cpu_model()}, {os.cpu_count()} cores",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(" ", timespec="minutes"),
    }


@contextlib.contextmanager
def _kept(setting: Settings | None, kinds: tuple[type[Exception], ...], found: list[Series]) -> Iterator[None]:
    """Note a setting's failure instead of losing the others' pictures; without the sequential ones all is lost."""
    try:
        yield
    except kinds as error:
        if setting is None or (isinstance(error, WorkerFailedError) and error.was_interrupted):
            raise
        found.append(Series(setting, (), failure=str(error)))


@contextlib.contextmanager
def _warnings_of_asyncdiff() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", message="asyncdiff |guidance=", category=UserWarning)
        yield caught
