"""Run generations on several processes of this machine, started by torch's elastic launcher."""

import contextlib
import inspect
import logging
import os
import signal
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from transformers.utils import logging as transformers_logging

from asyncdiff.api import AsyncDiff
from asyncdiff.demo import load_demo, quiet_loading
from asyncdiff.errors import ConfigurationError
from asyncdiff.exchange.world import local_device
from asyncdiff.report import Report
from asyncdiff.settings import Settings

DEMO_MODELS = ("demo-unet", "demo-dit")

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")

_MONITOR_INTERVAL = 0.1
_SECONDS_TO_SHUT_DOWN = 5


@dataclass(frozen=True)
class Job:
    """One picture to make. On one device, and without bridged steps, it is made by the ordinary pipeline.

    Attributes:
        model: a demo model, a hub id, or a folder.
        dtype: number format of the weights; None for the usual one of the device.
        guidance: guidance scale; None for the pipeline's own.
        settings: how the denoiser is run.
        title: of the progress bar.
    """

    model: str
    dtype: str | None
    prompt: str
    steps: int
    seed: int
    guidance: float | None
    devices: int
    settings: Settings
    title: str

    @property
    def is_ordinary(self) -> bool:
        """Whether the ordinary pipeline makes it."""
        settings = self.settings
        return self.devices == 1 and settings.bridge in (None, 1) and settings.target_speedup is None

    @property
    def rehearsal_steps(self) -> int:
        """Steps of a picture that is not timed, in which everything happens once that is slower the first time."""
        return self.steps if self.is_ordinary else min(self.steps, rehearsal_steps(self.settings) or self.steps)

    def sequential(self) -> "Job":
        """The same picture, made by the ordinary pipeline on one device."""
        settings = replace(self.settings, bridge=1, target_speedup=None)
        return replace(self, devices=1, settings=settings, title="sequential")


@dataclass(frozen=True)
class Outcome:
    """What rank 0 brings home: the picture, the seconds of the pipeline call, and what was done."""

    picture: Image.Image
    seconds: float
    report: Report | None


class WorkerFailedError(Exception):
    """A process failed; the message holds its own traceback."""

    def __init__(self, rank: int, exit_code: int, message: str) -> None:
        super().__init__(f"rank {rank} failed:\n{message}")
        self.was_interrupted = exit_code == -signal.SIGINT


def rehearsal_steps(settings: Settings) -> int | None:
    """So many that there are two rounds of every kind between the steps at the beginning and those at the end.

    None where it must be as many as of a picture that counts: a division is made for a number of steps where a speed-up
    is aimed at.
    """
    if settings.target_speedup is not None:
        return None
    schedule = settings.schedule()
    return schedule.warmup + 2 * schedule.stride * schedule.bridge + schedule.cooldown


def launch(job: Job) -> Outcome:
    """Start the job's processes, wait for them, and return what rank 0 returned.

    Raises:
        WorkerFailedError: one of the processes failed; all have been ended.
    """
    return cast(Outcome, run_processes(job.devices, work, job)[0])


def run_processes(count: int, function: Callable[[_Task], _Result], task: _Task) -> list[_Result]:
    """Call the function on so many processes, and return what each returned, in the order of the ranks.

    The function is one of a module, wrapped in torch's `record`; it begins with `enter_process()`.

    Raises:
        WorkerFailedError: one of the processes failed; all have been ended.
    """
    # The failures are told by WorkerFailedError; the launcher's own log would tell them twice.
    launcher_log = logging.getLogger("torch.distributed.elastic")
    launcher_log.addHandler(logging.NullHandler())
    launcher_log.propagate = False
    # Not an argument of LaunchConfig in every torch that this package supports.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_SECONDS_TO_SHUT_DOWN))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        monitor_interval=_MONITOR_INTERVAL,
        start_method="spawn",
    )
    try:
        results = elastic_launch(config, function)(task)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise WorkerFailedError(rank, failure.exitcode, _traceback_of(failure.message)) from error
    return [results[rank] for rank in range(count)]


def enter_process() -> tuple[int, torch.device]:
    """Make a process that `run_processes` started ready: its rank, and the device that it computes on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # end at once and in silence: the parent tells of it
    rank, device = int(os.environ["RANK"]), local_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    if rank:
        warnings.simplefilter("ignore")
        diffusers_logging.set_verbosity_error()
    return rank, device


def load_pipeline(model: str, dtype: str | None, device: torch.device) -> DiffusionPipeline:
    """A demo pipeline, or one from a folder or the hub, on the device; loaded without bars and advice."""
    transformers_logging.set_verbosity_error()
    chosen = getattr(torch, dtype) if dtype else (torch.float16 if device.type == "cuda" else torch.float32)
    folder = Path(model)
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        raise ConfigurationError(f"the folder {model!r} holds no diffusers pipeline: it has no model_index.json")
    with quiet_loading():
        if model == "demo-unet":
            pipe = load_demo("unet", torch_dtype=chosen)
        elif model == "demo-dit":
            pipe = load_demo("dit", torch_dtype=chosen)
        else:
            pipe = DiffusionPipeline.from_pretrained(model, torch_dtype=chosen)
    return pipe.to(device)


@record
def work(job: Job) -> Outcome | None:
    """What every process does. Returns the outcome on rank 0, None on the others."""
    rank, device = enter_process()
    pipe = load_pipeline(job.model, job.dtype, device)
    pipe.set_progress_bar_config(disable=True)
    if job.is_ordinary:
        return _generate(pipe, job, None, device, rank)
    settings = replace(job.settings, executor="distributed" if job.devices > 1 else "local")
    if job.devices == 1:
        settings = replace(settings, components=1)
    with AsyncDiff(pipe, **settings.arguments()) as attached:
        return _generate(pipe, job, attached, device, rank)


def draw(
    pipe: DiffusionPipeline,
    prompt: str,
    seed: int,
    steps: int,
    guidance: float | None,
    device: torch.device,
    **extra: Any,
) -> tuple[Image.Image, float]:
    """One picture, and the seconds of the pipeline call; no guidance scale means the pipeline's own.

    Raises:
        ConfigurationError: the pipeline makes something else than pictures.
    """
    if guidance is not None:
        extra["guidance_scale"] = guidance
    _synchronize(device)
    begin = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    output = pipe(prompt, num_inference_steps=steps, generator=generator, **extra)
    _synchronize(device)
    seconds = time.perf_counter() - begin
    if not hasattr(output, "images"):
        raise ConfigurationError(f"{type(pipe).__name__} makes no pictures; use AsyncDiff from Python for it")
    return output.images[0], seconds


def _generate(
    pipe: DiffusionPipeline, job: Job, attached: AsyncDiff | None, device: torch.device, rank: int
) -> Outcome | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the short call: what it warns of, the timed one does too
        draw(pipe, job.prompt, job.seed, job.rehearsal_steps, job.guidance, device)
    with _progress(pipe, job, rank) as extra:
        picture, seconds = draw(pipe, job.prompt, job.seed, job.steps, job.guidance, device, **extra)
    if rank:
        return None
    return Outcome(picture, seconds, attached.report() if attached else None)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def _progress(pipe: DiffusionPipeline, job: Job, rank: int) -> Iterator[dict[str, Any]]:
    """One bar, on rank 0; yields the arguments that the pipeline call needs for it."""
    if rank:
        yield {}
    elif "callback_on_step_end" not in inspect.signature(pipe.__call__).parameters:
        pipe.set_progress_bar_config(disable=False, desc=job.title)
        yield {}
    else:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            bar = progress.add_task(job.title, total=job.steps)

            def advance(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
                progress.update(bar, completed=step + 1)
                return tensors

            yield {"callback_on_step_end": advance}


def _traceback_of(message: Any) -> str:
    """The traceback in what the launcher read from a worker's error file; a plain message for a signal."""
    if isinstance(message, dict):
        return str(message.get("extraInfo", {}).get("py_callstack") or message.get("message", ""))
    return str(message)
