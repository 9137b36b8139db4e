"""Run generations on several processes of this machine, started by torch's elastic launcher.

What they bring home are files of plain data. The launcher would unpickle what their functions return: that is None.
"""

import contextlib
import inspect
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast, get_type_hints

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from asyncdiff.api import AsyncDiff
from asyncdiff.denoiser.find import finish
from asyncdiff.endings import BAD_INPUT, RefusedError, SignalledError, WorkerFailedError
from asyncdiff.errors import AsyncDiffError, ConfigurationError
from asyncdiff.exchange.world import local_device
from asyncdiff.loading import load_pipeline
from asyncdiff.lora import Lora, put_on
from asyncdiff.made.media import Made
from asyncdiff.made.output import made_by
from asyncdiff.plain import from_text, to_text
from asyncdiff.report import Report
from asyncdiff.request.signature import Signature
from asyncdiff.request.words import Request
from asyncdiff.settings import Settings

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")

_MONITOR_INTERVAL = 0.1
_SECONDS_TO_SHUT_DOWN = 5
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)  # those that the launcher handles


@dataclass(frozen=True)
class Job:
    """What is to be made. On one device, and without bridged steps, the ordinary pipeline makes it.

    Attributes:
        model: a demo model, a hub id, or a folder.
        dtype: number format of the weights; None for the usual one of the device.
        request: what is asked of the pipeline.
        seed: of the initial noise.
        settings: how the denoiser is run.
        title: of the progress bar.
        allow_pickle: whether weights may be read that are no safetensors.
        loras: that are put on the pipeline before.
        trace: the file for what happens in each process; None for none.
    """

    model: str
    dtype: str | None
    request: Request
    seed: int
    devices: int
    settings: Settings
    title: str
    allow_pickle: bool = False
    loras: tuple[Lora, ...] = ()
    trace: Path | None = None

    @property
    def is_ordinary(self) -> bool:
        """Whether the ordinary pipeline makes it."""
        settings = self.settings
        return self.devices == 1 and settings.bridge in (None, 1) and settings.target_speedup is None

    @property
    def rehearsal(self) -> Request:
        """The same with fewer steps, which is not timed: everything happens once that is slower the first time."""
        return rehearsal_of(self.request, self.settings)

    def sequential(self) -> "Job":
        """The same, made by the ordinary pipeline on one device."""
        settings = replace(self.settings, bridge=1, target_speedup=None)
        return replace(self, devices=1, settings=settings, title="sequential", trace=None)


@dataclass(frozen=True)
class Outcome:
    """What rank 0 brings home.

    Attributes:
        made: what was made.
        seconds: of the pipeline call.
        report: of what was done; None of the ordinary pipeline.
        steps: that there were, where the pipeline tells of each; of another picture it makes fewer than it is asked.
    """

    made: Made
    seconds: float
    report: Report | None
    steps: int | None = None


def rehearsal_of(request: Request, settings: Settings) -> Request:
    """The same with fewer steps: two rounds of every kind between those at the beginning and those at the end.

    As many as there are where a speed-up is aimed at: a division is made for a number of steps then.
    """
    if request.steps is None or settings.target_speedup is not None:
        return request
    schedule = settings.schedule()
    enough = schedule.warmup + 2 * schedule.stride * schedule.bridge + schedule.cooldown
    return replace(request, steps=min(request.steps, enough))


def launch(job: Job) -> Outcome:
    """Start the job's processes, wait for them, and return what rank 0 returned.

    Raises:
        RefusedError: what is asked for cannot be done.
        WorkerFailedError: one of the processes failed; all have been ended.
    """
    return cast(Outcome, run_processes(job.devices, work, job)[0])


def run_processes(count: int, function: Callable[[_Task], _Result], task: _Task) -> list[_Result]:
    """Call the function on so many processes, and return what each returned, in the order of the ranks.

    The function is one of a module; it begins with `enter_process()`, and its annotation says what `plain` data it
    returns.

    Raises:
        RefusedError: one of them found that what is asked for cannot be done; all have been ended.
        WorkerFailedError: one of the processes failed; all have been ended.
        SignalledError: this process was told to end; all have been ended.
    """
    # The failures are told by WorkerFailedError; the launcher's own log would tell them twice.
    launcher_log = logging.getLogger("torch.distributed.elastic")
    launcher_log.addHandler(logging.NullHandler())
    launcher_log.propagate = False
    # Not an argument of LaunchConfig in every torch that this package supports.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_SECONDS_TO_SHUT_DOWN))
    with _own_signals(), tempfile.TemporaryDirectory(prefix="asyncdiff-") as folder:
        return _run(_config(count, folder), function, task, folder)


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Say in words of our own that a signal came, of which the launcher makes an error, and take its handlers away."""
    in_main = threading.current_thread() is threading.main_thread()
    before = {own: signal.getsignal(own) for own in _ENDING if in_main}
    try:
        yield
    except SignalException as error:
        raise SignalledError(error.sigval) from error
    finally:
        for own, handler in before.items():
            if handler is not None:  # as of one that is not Python's
                signal.signal(own, handler)


def _config(count: int, folder: str) -> LaunchConfig:
    return LaunchConfig(
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
        logs_specs=DefaultLogsSpecs(log_dir=folder),
    )


def _run(config: LaunchConfig, function: Callable[[_Task], _Result], task: _Task, folder: str) -> list[_Result]:
    ranks = range(config.nproc_per_node)
    try:
        elastic_launch(config, _bring_home)(function, task, folder)
    except ChildFailedError as error:
        _tell_failure(error, [_refusal_file(folder, rank) for rank in ranks])
    returned = get_type_hints(function)["return"]
    texts = (_result_file(folder, rank).read_text(encoding="utf-8") for rank in ranks)
    return [from_text(returned, text) for text in texts]


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


def work(job: Job) -> Outcome | None:
    """What every process does. Returns the outcome on rank 0, None on the others."""
    rank, device = enter_process()
    is_shared = job.settings.shard and job.devices > 1
    pipe = open_pipeline(job.model, job.dtype, device, job.allow_pickle, job.loras, is_shared)
    if job.is_ordinary:
        return _generate(pipe, job, None, device, rank)
    settings = replace(job.settings, executor="distributed" if job.devices > 1 else "local")
    if job.devices == 1:
        settings = replace(settings, components=1)
    with AsyncDiff(pipe, **settings.arguments()) as attached:
        outcome = _generate(pipe, job, attached, device, rank)
        logging.getLogger(AsyncDiff.__module__).disabled = True  # its advice is for who goes on with the pipeline
        return outcome


def open_pipeline(
    model: str,
    dtype: str | None,
    device: torch.device,
    allow_pickle: bool,
    loras: Sequence[Lora],
    is_shared: bool = False,
) -> DiffusionPipeline:
    """A pipeline without bars, with LoRA files put on.

    Args:
        is_shared: whether each rank is to take its part of the weights only.

    Raises:
        ModelError: it cannot be loaded, or a file is no LoRA of it.
        ConfigurationError: it takes no LoRA.
    """
    # A LoRA is put on weights that are all there: on the CPU, from where each rank takes its part of them.
    place = torch.device("cpu") if is_shared else device
    pipe = load_pipeline(model, dtype, place, allow_pickle, is_shared and not loras)
    put_on(pipe, loras)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(
    pipe: DiffusionPipeline, request: Request, seed: int, device: torch.device, **extra: Any
) -> tuple[Made, float]:
    """What a pipeline makes of a request, and the seconds of its call.

    Raises:
        ConfigurationError: the pipeline cannot be asked for that, or makes nothing that can be seen or heard.
    """
    arguments = request.arguments_for(Signature.of(pipe))
    generator = torch.Generator().manual_seed(seed)
    finish(device)
    begin = time.perf_counter()
    output = call_pipeline(pipe, **arguments, generator=generator, **extra)
    finish(device)
    seconds = time.perf_counter() - begin
    return made_by(pipe, output), seconds


def call_pipeline(pipe: Any, **named: Any) -> Any:
    """Call a pipeline that nobody here has seen before.

    Raises:
        ConfigurationError: it takes other arguments, or refuses what they say.
    """
    Signature.of(pipe).check(named)
    try:
        return pipe(**named)
    except AsyncDiffError:
        raise
    except (ValueError, TypeError) as error:
        if isinstance(error, TypeError) and not _is_refusal(error):
            raise
        raise ConfigurationError(f"{type(pipe).__name__} refuses the call: {' '.join(str(error).split())}") from error


def _is_refusal(error: TypeError) -> bool:
    """Whether it comes from where pipelines check what they are given."""
    return any(frame.name.startswith("check_") for frame in traceback.extract_tb(error.__traceback__))


def _generate(
    pipe: DiffusionPipeline, job: Job, attached: AsyncDiff | None, device: torch.device, rank: int
) -> Outcome | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the short call: what it warns of, the timed one does too
        draw(pipe, job.rehearsal, job.seed, device)
    with contextlib.ExitStack() as stack:
        extra, count = stack.enter_context(_progress(pipe, job, rank))
        if attached is not None and job.trace is not None:
            stack.enter_context(attached.trace(job.trace))
        made, seconds = draw(pipe, job.request, job.seed, device, **extra)
    if rank:
        return None
    return Outcome(made, seconds, attached.report() if attached else None, count.steps)


@dataclass
class _Count:
    """The steps that a pipeline has told of."""

    steps: int | None = None


@contextlib.contextmanager
def _progress(pipe: DiffusionPipeline, job: Job, rank: int) -> Iterator[tuple[dict[str, Any], _Count]]:
    """One bar, on rank 0; yields the arguments that the pipeline call needs for it, and the steps it has told of."""
    count = _Count()
    if rank:
        yield {}, count
    elif "callback_on_step_end" not in inspect.signature(pipe.__call__).parameters:
        pipe.set_progress_bar_config(disable=False, desc=job.title)
        yield {}, count
    else:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        console = Console(stderr=True)  # into a file, rich would write an empty line where the bar has been
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task(job.title, total=job.request.steps)

            def advance(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
                count.steps = step + 1
                progress.update(bar, completed=step + 1, total=getattr(pipe, "num_timesteps", job.request.steps))
                return tensors

            yield {"callback_on_step_end": advance}, count


def _bring_home(function: Callable[[_Task], _Result], task: _Task, folder: str) -> None:
    """What every process is started for: to call the function, and to leave what it returns in the folder."""
    try:
        _leave_result(function, task, folder)
    except Exception:  # noqa: BLE001  it is recorded by now; of what goes on from here torch leaves a file behind
        sys.exit(1)


@record
def _leave_result(function: Callable[[_Task], _Result], task: _Task, folder: str) -> None:
    rank = int(os.environ["RANK"])
    try:
        result = function(task)
    except BAD_INPUT as error:
        _refusal_file(folder, rank).write_text(str(error), encoding="utf-8")
        raise
    _result_file(folder, rank).write_text(to_text(result), encoding="utf-8")


def _result_file(folder: str, rank: int) -> Path:
    return Path(folder, f"{rank}.json")


def _refusal_file(folder: str, rank: int) -> Path:
    return Path(folder, f"{rank}.txt")


def _tell_failure(error: ChildFailedError, refusals: Sequence[Path]) -> NoReturn:
    """What one rank cannot do, the others feel as a failure of their own: the sentence that says why goes first."""
    for path in refusals:
        if path.is_file():
            raise RefusedError(path.read_text(encoding="utf-8")) from error
    rank, failure = error.get_first_failure()
    raise WorkerFailedError(rank, failure.exitcode, _traceback_of(failure.message)) from error


def _traceback_of(message: Any) -> str:
    """The traceback in what the launcher read from a worker's error file; a plain message for a signal."""
    if isinstance(message, dict):
        return str(message.get("extraInfo", {}).get("py_callstack") or message.get("message", ""))
    return str(message)
