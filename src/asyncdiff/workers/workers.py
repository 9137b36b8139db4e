"""`Workers`: a pipeline over several devices as an object in a plain script."""

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from asyncdiff.errors import AsyncDiffError, BusyError, ConfigurationError, ExchangeError, StoppedError
from asyncdiff.model_files import check_model
from asyncdiff.plain import from_text
from asyncdiff.plan.numbers import check_whole_number, shown
from asyncdiff.report import Report
from asyncdiff.request.signature import Signature
from asyncdiff.timeline import Row, Timeline, timeline_of
from asyncdiff.workers.answer import Answer, first_failure, raise_failure, repeat
from asyncdiff.workers.fitting import settings_for
from asyncdiff.workers.parcel import generators_in, pack
from asyncdiff.workers.progress import Bar, News, Shown, Step
from asyncdiff.workers.tasks import CALLBACK, TENSORS_OF_CALLBACK, Description, Drawing, Drawn, Order, Use

if TYPE_CHECKING:
    from asyncdiff.workers.cluster import Cluster, Task, Team

_MOST_DEVICES = 1024
_SECONDS_OF_GRACE = 5.0  # beside what ranks wait for each other


class Workers:
    """A pipeline over several devices, each with a process that stays; called like the pipeline itself.

    The processes are started here, and end with `close()` or the end of `with`. What is given to a call is data:
    numbers, text, tensors, arrays, pictures, generators. Tensors go to the denoiser's device, and come back on the CPU.

    Methods of the pipeline (`load_lora_weights`, `set_adapters`), and of its parts (`pipe.vae.enable_tiling()`), are
    called by their names, and run in all processes.

    `callback_on_step_end` is called here, as `callback(workers, step, timestep, tensors)`: it is told how far the
    generation is, and cannot change it. The tensors are those named in `callback_on_step_end_tensor_inputs`, else none.

    Args:
        model: a demo model ("demo-unet", "demo-dit"), a folder, or a hub id.
        devices: how many; a GPU each or, where Ray has none, a CPU core each.
        dtype: number format of the weights, for instance "bfloat16"; by default float16 on GPUs, else float32.
        allow_pickle: whether weights may be read that are no safetensors.
        address: of a Ray that was started on one or several machines, for instance "auto". By default the one that
            this process is connected to, or one that is started here.
        settings: those of `AsyncDiff`.

    Raises:
        ConfigurationError: numbers that cannot work, or Ray is not installed.
        ModelError: the model cannot be loaded.
        ExchangeError: the processes did not come up, or together.
    """

    def __init__(
        self,
        model: str,
        devices: int = 2,
        *,
        dtype: str | None = None,
        allow_pickle: bool = False,
        address: str | None = None,
        **settings: Any,
    ) -> None:
        self._team: Team | None = None
        self._cluster: Cluster | None = None
        self._devices = check_whole_number("devices", devices, 1, _MOST_DEVICES)
        self._settings = settings_for(self._devices, settings)
        self._model = _checked_model(model, allow_pickle)
        self._dtype = _checked_dtype(dtype)
        self._allow_pickle = allow_pickle
        self._bars: dict[str, Any] = {}
        self._on_bar: Callable[[Bar], None] | None = None
        self._is_timed = False
        self._uses: list[bytes] = []  # done again where processes are started anew
        self._report: Report | None = None
        self._turn = threading.Lock()
        self._owner: int | None = None
        self._interrupt = False
        self._stop = threading.Event()
        self._is_closed = self._has_drawn = False
        self._cluster = _ray().Cluster(self._devices, address)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the pipeline in all processes; returns what it returns.

        Raises:
            ConfigurationError: the pipeline does not take these arguments, or one of them is no data.
            ExchangeError: a process has died; the next call starts all anew.
            MemoryError: a process was ended before its machine ran out of memory; the next call starts all anew.
            StoppedError: `stop()` was called.
            BusyError: another thread is generating.
        """
        with self._in_turn():
            return self._draw(self._description.signature.call(args, kwargs))

    def __setattr__(self, name: str, value: Any) -> None:
        """Only what is this object's own: of the pipeline there is one in each process.

        Raises:
            AttributeError: it is not.
        """
        _check_own(name)
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        """A method of the pipeline, to be run in all processes, or a part of it that has such methods."""
        description = self.__dict__.get("_description")
        if description is None or name.startswith("_"):
            raise AttributeError(f"Workers has no attribute {name!r}")
        if name in description.methods[""]:
            return functools.partial(self._use, "", name)
        if name in description.methods:
            return Part(name, description.methods[name], self._use)
        raise AttributeError(
            f"neither Workers nor {description.signature.pipeline} has a method or a part {name!r} that can be used "
            "from another process"
        )

    def attach(self, **settings: Any) -> None:
        """Attach AsyncDiff with other settings in all processes, which stay; where that fails, those before stay.

        Raises:
            ConfigurationError: settings that cannot work, or weights that are divided (`shard`).
            SplitError: a split that does not fit the denoiser.
            ExchangeError: a process has died; the next call starts all anew.
        """
        with self._in_turn():
            wanted = settings_for(self._devices, settings)
            if wanted == self._settings:
                return
            if wanted.shard or self._settings.shard:
                raise ConfigurationError("with shard each process has a part of the weights: open other workers")
            self._run("attach", (pack(wanted.arguments()),))
            self._settings = wanted

    def stop(self) -> None:
        """End the call of the pipeline that is under way, from another thread; it ends in a StoppedError."""
        self._stop.set()

    def revive(self) -> bool:
        """Start the processes anew if one of them is gone; whether one was. A call would do so too.

        Raises:
            ExchangeError: the processes did not come up, or together.
        """
        with self._in_turn():
            if self._team is not None and not self._team.is_alive():
                self._end_team()
            was_gone = self._team is None
            if was_gone:
                self._check_open()
                self._open()
            return was_gone

    @property
    def signature(self) -> Signature:
        """What the pipeline can be called with."""
        return self._description.signature

    def report(self) -> Report:
        """What the last generation really did, on rank 0; after `close()` still."""
        if self._report is None:
            with self._in_turn():
                self._report = from_text(Report, self._run("report", ()))
        return self._report

    def set_progress_bar_config(self, **config: Any) -> None:
        """As of the pipeline: `disable=True` for no bar, and whatever else tqdm takes."""
        self._bars = config

    def tell_progress(self, on_bar: Callable[[Bar], None] | None) -> None:
        """Have a function told how far each of the pipeline's bars is, and of which kinds its steps were."""
        self._on_bar = on_bar

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """In this block every rank notes what it does, and when: see `timeline()`. The pictures are the same."""
        self._is_timed = True
        try:
            yield
        finally:
            self._is_timed = False

    def timeline(self) -> Timeline:
        """What every rank did in the last call, and when. Times on several machines agree as their clocks do.

        Raises:
            ConfigurationError: it was not called within `timed()`.
            ExchangeError: a process has died.
        """
        with self._in_turn():
            rows: list[Row | None] = [] if self._team is None else self._run_on_all("row", ())
        if not rows or None in rows:
            raise ConfigurationError("the last call was not timed, or has failed: with workers.timed(): workers(...)")
        return timeline_of([row for row in rows if row is not None])

    @property
    def processes(self) -> tuple[int, ...]:
        """The number that each rank's process has on its machine."""
        return () if self._team is None else tuple(seat.pid for seat in self._team.seats)

    def close(self) -> None:
        """End all processes."""
        try:
            if self._has_drawn and not self._is_closed and self._team is not None:
                with contextlib.suppress(AsyncDiffError):  # then there is none to keep
                    self.report()
        finally:
            self._is_closed = True
            self._end_team()
            cluster, self._cluster = self._cluster, None
            if cluster is not None:
                cluster.close()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _draw(self, arguments: dict[str, Any]) -> Any:
        callback = arguments.pop(CALLBACK, None)
        if callback is not None and (not callable(callback) or hasattr(callback, "tensor_inputs")):
            raise ConfigurationError(
                f"{CALLBACK} must be a function that is told how far the generation is; {shown(callback)} would change "
                "it, which AsyncDiff under torchrun can do"
            )
        sends_tensors = arguments.get(TENSORS_OF_CALLBACK) is not None
        random_state = torch.get_rng_state().numpy().tobytes()
        parcel = pack(Drawing(arguments, random_state, callback is not None, sends_tensors, self._is_timed))
        self._interrupt, self._report, self._has_drawn = False, None, True
        on_step = None if callback is None else functools.partial(self._call_back, callback)
        self._stop.clear()
        with Shown(self._bars, on_step, self._on_bar) as bars:

            def show(news: News) -> None:
                bars.show(news)
                if self._stop.is_set():
                    raise StoppedError("the generation was stopped by stop()")

            drawn: Drawn = self._run("draw", (parcel,), show)
            bars.show(drawn.news)
        for generator, state in zip(generators_in(arguments), drawn.generators, strict=True):
            generator.set_state(_state(state))
        torch.set_rng_state(_state(drawn.random_state))
        return drawn.output

    def _call_back(self, callback: Callable[..., Any], step: Step) -> None:
        tensors = dict(step.tensors)
        changed = callback(self, step.index, step.timestep, dict(tensors))
        for name, value in (changed or {}).items():
            if value is not tensors.get(name):
                raise ConfigurationError(
                    f"{CALLBACK} gave another {name!r}, but it is told of steps and cannot change them: the generation "
                    "runs in other processes"
                )
        if self._interrupt:
            raise StoppedError(f"the generation was stopped by {CALLBACK} after step {step.index + 1}")

    def _use(self, part: str, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Run a method in all processes; what it returns on rank 0."""
        with self._in_turn():
            parcel = pack(Use(part, name, args, kwargs))
            result = self._run("use", (parcel,))
            self._uses.append(parcel)
            return result

    def _run(self, name: str, given: tuple[bytes, ...], on_news: Callable[[News], None] | None = None) -> Any:
        """Have all processes do one thing; what rank 0 comes to. Processes that are gone are started anew."""
        return self._run_on_all(name, given, on_news)[0]

    def _run_on_all(
        self, name: str, given: tuple[bytes, ...], on_news: Callable[[News], None] | None = None
    ) -> list[Any]:
        """The same; what each process comes to."""
        self._check_open()
        if self._team is None:
            self._open()
        team = self._present()
        task = team.begin(name, [given] * self._devices)
        return self._results_of(task, self._settings.timeout, on_news)

    def _results_of(self, task: "Task", patience: float, on_news: Callable[[News], None] | None = None) -> list[Any]:
        """What each process comes to; what one logs is logged here, and what it raises is raised here.

        Args:
            patience: seconds that the other processes have when one has failed.
        """
        try:
            answers = task.wait(self._settings.timeout + _SECONDS_OF_GRACE, patience + _SECONDS_OF_GRACE, on_news)
        except _ray().GoneError as error:
            self._end_team()
            kind = MemoryError if error.lacked_memory else ExchangeError
            raise kind(f"{error}; the next call starts the processes anew") from error
        except BaseException:  # Ctrl-C, or an error of a callback
            self._break_off(task)
            raise
        for answer in answers:
            repeat(() if answer is None else answer.remarks)
        failures = [answer.failure for answer in answers if answer is not None and answer.failure is not None]
        if None in answers:
            self._end_team()
        if failures:
            raise_failure(first_failure(failures))
        return _results(answers)

    def _break_off(self, task: "Task") -> None:
        """End a generation, after which the processes go on with the next call; or else the processes."""
        has_ended = False
        try:
            has_ended = task.stop(self._settings.timeout)
        finally:  # somebody may not want to wait for that either
            if not has_ended:
                self._end_team()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ConfigurationError("the workers were closed; open others")

    def _open(self) -> None:
        """Start the processes, and let them do again what was done in those before."""
        cluster = self._cluster
        if cluster is None:
            raise RuntimeError("there is no Ray")
        team = self._team = _ray().Team(self._devices, cluster.has_gpus)
        first = team.seats[0]
        orders = [
            Order(
                rank=rank,
                size=self._devices,
                address=first.address,
                port=first.port,
                folder=os.getcwd(),
                model=self._model,
                dtype=self._dtype,
                allow_pickle=self._allow_pickle,
                settings=self._settings.arguments(),
            )
            for rank in range(self._devices)
        ]
        try:
            # Where one process cannot load the pipeline, the others wait for it in vain.
            start = team.begin("start", [(pack(order),) for order in orders])
            self._description: Description = self._results_of(start, patience=0.0)[0]
            for use in self._uses:
                self._results_of(team.begin("use", [(use,)] * self._devices), self._settings.timeout)
        except BaseException:
            self._end_team()
            raise

    def _end_team(self) -> None:
        team, self._team = self._team, None
        if team is not None:
            team.end()

    def _present(self) -> "Team":
        if self._team is None:
            raise RuntimeError("there are no processes")
        return self._team

    @contextlib.contextmanager
    def _in_turn(self) -> Iterator[None]:
        """One thing at a time; another thread waits."""
        own, seconds = threading.get_ident(), self._settings.timeout
        if self._owner == own:
            raise BusyError("the workers are in use: a callback cannot use them")
        if not self._turn.acquire(timeout=min(seconds, threading.TIMEOUT_MAX)):
            raise BusyError(f"the workers are in use by another thread, and were not free within {seconds:g} s")
        self._owner = own
        try:
            yield
        finally:
            self._owner = None
            self._turn.release()


class Part:
    """A part of the pipeline, whose methods run in all processes."""

    def __init__(self, name: str, methods: Collection[str], use: Callable[..., Any]) -> None:
        self._name = name
        self._methods = methods
        self._use = use

    def __setattr__(self, name: str, value: Any) -> None:
        _check_own(name)
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name not in self._methods:
            raise AttributeError(f"the pipeline's {self._name!r} has no method {name!r}")
        return functools.partial(self._use, self._name, name)


def _check_own(name: str) -> None:
    """
    Raises:
        AttributeError: the attribute is one of the pipeline, or of a part of it.
    """
    if not name.startswith("_"):
        raise AttributeError(
            f"{name!r} cannot be set: the pipeline is in other processes. Save the pipeline with it "
            "(save_pretrained), and open Workers of that folder; or call a method that changes it"
        )


def _ray() -> Any:
    """The module that knows Ray, which an installation without the extra has not got."""
    try:
        from asyncdiff.workers import cluster
    except ImportError as error:
        raise ConfigurationError(
            f"Workers start their processes with Ray, which cannot be imported ({error}): pip install asyncdiff[serve]"
        ) from error
    return cluster


def _checked_model(model: str, allow_pickle: bool) -> str:
    """The model as all processes find it, whatever folder they are in."""
    if not isinstance(model, (str, Path)):
        raise ConfigurationError(
            f"model must be a name or a folder, not {shown(model)}: every process loads its own; save a pipeline with "
            "pipe.save_pretrained(folder)"
        )
    check_model(str(model), allow_pickle)
    return str(Path(model).absolute()) if Path(model).is_dir() else str(model)


def _checked_dtype(dtype: str | None) -> str | None:
    kind = None if not isinstance(dtype, str) else getattr(torch, dtype, None)
    if dtype is not None and not (isinstance(kind, torch.dtype) and kind.is_floating_point):
        raise ConfigurationError(f"dtype must be the name of a number format, for instance 'bfloat16', not {dtype!r}")
    return dtype


def _results(answers: Sequence[Answer | None]) -> list[Any]:
    """What each process comes to, rank by rank; None of those whose answer is not there."""
    if answers[0] is None:
        raise ExchangeError("rank 0 has not answered; the next call starts the processes anew")
    return [None if answer is None else answer.result for answer in answers]


def _state(state: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)
