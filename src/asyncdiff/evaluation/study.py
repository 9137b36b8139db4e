"""A small study of one's own pipeline: the same pictures drawn sequentially and with asyncdiff, compared."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, cast, get_args

import diffusers
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch.distributed.elastic.multiprocessing.errors import record

from asyncdiff.api import AsyncDiff
from asyncdiff.errors import AsyncDiffError, ConfigurationError
from asyncdiff.evaluation.compare import pixels, psnr, ssim
from asyncdiff.evaluation.machine import cpu_model, gpu_models
from asyncdiff.evaluation.metrics import Metric
from asyncdiff.launch import WorkerFailedError, draw, enter_process, load_pipeline, rehearsal_steps, run_processes
from asyncdiff.plan.schedule import Schedule
from asyncdiff.report import Report

METHODS = ("paper", "forecast")

_BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True)
class Setting:
    """One way to run the pipeline: the arguments of `AsyncDiff` that can be compared.

    Attributes:
        components: N, parts of the denoiser.
        stride: S, steps that one round serves.
        warmup: w, ordinary steps at first.
        bridge: of so many steps after the warm-up one is a round.
        target_speedup: the modelled speed-up for which steps are bridged.
        max_error: how far forecasts may be off before more is computed.
        cooldown: ordinary steps at the end.
        resync_every: of so many steps after the warm-up one is an ordinary one.
        guidance_devices: groups of devices that share the guidance branches.
        method: one of `METHODS`.
        time_shift: whether every component gets the timestep before.

    Raises:
        ConfigurationError: a number that cannot be, or no such method.
    """

    components: int = 2
    stride: int = 1
    warmup: int = 3
    bridge: int | None = None
    target_speedup: float | None = None
    max_error: float | None = None
    cooldown: int | None = None
    resync_every: int | None = None
    guidance_devices: int = 1
    method: str = "forecast"
    time_shift: bool = False

    def __post_init__(self) -> None:
        for own in fields(self):
            value = getattr(self, own.name)
            least = 0 if own.name == "cooldown" else 1
            if isinstance(value, int) and not isinstance(value, bool) and value < least:
                raise ConfigurationError(f"{_shown(own.name)} must be at least {least}, not {value}")
            if isinstance(value, float) and not value > 0:
                raise ConfigurationError(f"{_shown(own.name)} must be above 0, not {value:g}")
        if self.bridge is not None and self.target_speedup is not None:
            raise ConfigurationError("bridge and target-speedup both say how many steps are bridged; give one of them")
        if self.method not in METHODS:
            raise ConfigurationError(f"method must be {' or '.join(METHODS)}, not {self.method!r}")

    @property
    def devices(self) -> int:
        """How many devices it takes."""
        return self.guidance_devices * Schedule(self.components, self.stride, self.warmup).world_size

    @property
    def title(self) -> str:
        """What tells it from others, in a few letters."""
        parts = [self.method, f"N={self.components} S={self.stride} w={self.warmup}"]
        if self.bridge is not None and self.bridge > 1:
            parts.append(f"bridge {self.bridge}")
        for name in ("target_speedup", "max_error", "cooldown", "resync_every"):
            value = getattr(self, name)
            parts += [] if value is None else [f"{_shown(name)} {value:g}"]
        if self.guidance_devices > 1:
            parts.append(f"guidance {self.guidance_devices}")
        if self.time_shift:
            parts.append("time-shift")
        return " ".join(parts)

    def arguments(self) -> dict[str, Any]:
        """The arguments for `AsyncDiff`."""
        given = asdict(self)
        given["guidance"] = given.pop("guidance_devices")
        return given

    @property
    def rehearsal_steps(self) -> int | None:
        """Steps of a picture that is drawn before any is timed; None for as many as the others."""
        if self.target_speedup is not None:
            return None
        return rehearsal_steps(self.method, self.warmup, self.stride, self.bridge or 1, self.cooldown)


def parse_setting(text: str, base: Setting) -> Setting:
    """A setting written as "components=3,method=paper": what it does not name is as in `base`.

    The names are those of the options, and of the attributes of `Setting`.

    Raises:
        ConfigurationError: no such name, a name given twice, or a value that cannot be.
    """
    kinds = {own.name: own.type for own in fields(Setting)}
    changes: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        name = key.replace("-", "_")
        if not equals or name not in kinds:
            known = ", ".join(map(_shown, kinds))
            raise ConfigurationError(f"{part.strip()!r} is no NAME=VALUE with a NAME among {known}")
        if name in changes:
            raise ConfigurationError(f"{key} is given twice")
        if kinds[name] is bool:
            if value.lower() not in _BOOLEANS:
                raise ConfigurationError(f"{key} must be true or false, not {value!r}")
            changes[name] = _BOOLEANS[value.lower()]
        elif value.lower() == "none" and type(None) in _types(kinds[name]):
            changes[name] = None
        elif int in _types(kinds[name]):
            if not value.isdecimal():
                raise ConfigurationError(f"{key} must be a whole number, not {value!r}")
            changes[name] = int(value)
        elif float in _types(kinds[name]):
            try:
                changes[name] = float(value)
            except ValueError as error:
                raise ConfigurationError(f"{key} must be a number, not {value!r}") from error
        else:
            changes[name] = value
    return replace(base, **changes)


@dataclass(frozen=True)
class Study:
    """What is to be drawn: every prompt with every seed, sequentially and at every setting.

    Attributes:
        model: a demo model, a hub id, or a folder.
        dtype: number format of the weights; None for the usual one of the device.
        steps: denoising steps of every picture.
        guidance: guidance scale; None for the pipeline's own.
        settings: the chosen one first.
        timeout: seconds that a process waits for another.
    """

    model: str
    dtype: str | None
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    guidance: float | None
    settings: tuple[Setting, ...]
    timeout: float = 300.0

    @property
    def pairs(self) -> list[tuple[str, int]]:
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
    """One picture, and the seconds of the pipeline call; the sequential pipeline's has no account."""

    image: Image.Image
    seconds: float
    account: Account | None


@dataclass(frozen=True)
class Series:
    """All pictures of one setting, or of the sequential pipeline (None), in the order of the study's pairs.

    Attributes:
        warnings: what asyncdiff warned of.
        failure: why there are no pictures.
    """

    setting: Setting | None
    pictures: tuple[Picture, ...]
    warnings: tuple[str, ...] = ()
    failure: str | None = None


@dataclass(frozen=True)
class Scores:
    """How alike one setting's pictures are to the sequential ones: dB and similarity of each, the other metrics."""

    psnr: tuple[float, ...]
    ssim: tuple[float, ...]
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
        with AsyncDiff(pipe, **setting.arguments(), executor="local"):
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
        WorkerFailedError: the sequential run failed, or one was interrupted.
    """
    found: list[Series] = []
    for setting in (None, *study.settings):
        with _kept(setting, (WorkerFailedError,), found):
            found.append(draw_setting_on_processes(study, setting))
    return tuple(found)


def draw_setting_on_processes(study: Study, setting: Setting | None) -> Series:
    """One series, on as many processes as it takes.

    Raises:
        WorkerFailedError: one of the processes failed; all have been ended.
    """
    shares = cast(list[_Share], run_processes(setting.devices if setting else 1, _work, _Task(study, setting)))
    pictures = tuple(
        replace(picture, account=replace(picture.account, bytes_sent=sum(share.bytes_sent[number] for share in shares)))
        if picture.account
        else picture
        for number, picture in enumerate(shares[0].pictures)
    )
    return Series(setting, pictures, shares[0].warnings)


def evaluate(
    study: Study, local: bool, device: torch.device, drawn: Sequence[Series], metrics: Sequence[Metric]
) -> Evaluation:
    """Compare what was drawn, the sequential series first."""
    sequential, *others = drawn
    prompts = [prompt for prompt, _ in study.pairs]
    originals = [picture.image for picture in sequential.pictures]
    return Evaluation(
        study=study,
        local=local,
        on_cpu=device.type == "cpu",
        machine=_machine(device),
        metrics=tuple(metrics),
        sequential=sequential,
        sequential_scores={
            metric.name: metric.measure(originals, originals, prompts) for metric in metrics if metric.is_of_sequential
        },
        series=tuple(others),
        scores=tuple(_score(series, originals, prompts, metrics) for series in others),
    )


@dataclass(frozen=True)
class _Task:
    """What every process of a series is given."""

    study: Study
    setting: Setting | None


@dataclass(frozen=True)
class _Share:
    """What one rank brings home: the bytes that it sent for every picture; on rank 0 also the pictures."""

    bytes_sent: tuple[int, ...]
    pictures: tuple[Picture, ...] = ()
    warnings: tuple[str, ...] = ()


@record
def _work(task: _Task) -> _Share:
    rank, device = enter_process()
    pipe = load_pipeline(task.study.model, task.study.dtype, device)
    pipe.set_progress_bar_config(disable=True)
    executor: Literal["local", "distributed"] = "local"
    if task.setting and task.setting.devices > 1:
        executor = "distributed"
    share = _draw_share(pipe, task.study, task.setting, device, executor, is_shown=rank == 0)
    return _Share(share.bytes_sent) if rank else share


def _draw_share(
    pipe: DiffusionPipeline,
    study: Study,
    setting: Setting | None,
    device: torch.device,
    executor: Literal["local", "distributed"],
    is_shown: bool,
) -> _Share:
    if setting is None:
        return _draw_pairs(pipe, study, None, 2, device, "sequential", is_shown)
    rehearsal = setting.rehearsal_steps or study.steps
    with AsyncDiff(pipe, **setting.arguments(), executor=executor, timeout=study.timeout) as attached:
        return _draw_pairs(pipe, study, attached, rehearsal, device, setting.title, is_shown)


def _draw_pairs(
    pipe: DiffusionPipeline,
    study: Study,
    attached: AsyncDiff | None,
    rehearsal: int,
    device: torch.device,
    title: str,
    is_shown: bool,
) -> _Share:
    """Every picture, after a short one that is not timed: it traces the denoiser and touches all memory once."""
    pictures = []
    with _warnings_of_asyncdiff() as caught:
        prompt, seed = study.pairs[0]
        draw(pipe, prompt, seed, min(study.steps, rehearsal), study.guidance, device)
        caught.clear()
        console = Console(stderr=True)
        for prompt, seed in track(study.pairs, title, console=console, disable=not is_shown):
            image, seconds = draw(pipe, prompt, seed, study.steps, study.guidance, device)
            pictures.append(Picture(image, seconds, _account(attached.report()) if attached else None))
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
    sent = report.bytes_sent
    if report.executor == "local":
        sent = sum(denoiser.bytes_per_round * denoiser.counts.rounds for denoiser in report.denoisers)
    return Account(calls, speedups, sent)


def _score(
    series: Series, originals: Sequence[Image.Image], prompts: Sequence[str], metrics: Sequence[Metric]
) -> Scores | None:
    if series.failure is not None:
        return None
    images = [picture.image for picture in series.pictures]
    pairs = [(pixels(image), pixels(original)) for image, original in zip(images, originals, strict=True)]
    return Scores(
        psnr=tuple(psnr(*pair) for pair in pairs),
        ssim=tuple(ssim(*pair) for pair in pairs),
        metrics={metric.name: metric.measure(originals, images, prompts) for metric in metrics},
    )


def _machine(device: torch.device) -> dict[str, str]:
    return {
        "asyncdiff": importlib.metadata.version("asyncdiff"),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "Python": platform.python_version(),
        "system": platform.platform(),
        "device": ", ".join(gpu_models()) if device.type == "cuda" else f"{cpu_model()}, {os.cpu_count()} cores",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(" ", timespec="minutes"),
    }


@contextlib.contextmanager
def _kept(setting: Setting | None, kinds: tuple[type[Exception], ...], found: list[Series]) -> Iterator[None]:
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


def _types(kind: Any) -> tuple[Any, ...]:
    """The types of an attribute that may also be None."""
    return get_args(kind) or (kind,)


def _shown(name: str) -> str:
    """An attribute's name as the option is written."""
    return name.replace("_", "-")
