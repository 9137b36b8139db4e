"""`AsyncDiff`: attach asynchronous denoising to a diffusers pipeline."""

import contextlib
import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import nn

from asyncdiff.call import Call
from asyncdiff.denoiser.find import device_of, find_denoisers
from asyncdiff.denoiser.form import CallForm
from asyncdiff.denoiser.structure import check_callable_in_parts
from asyncdiff.denoiser.wrapper import check_wrappers, not_reached, unwrapped
from asyncdiff.errors import ConfigurationError, SplitError, StoppedError
from asyncdiff.exchange.agreement import Statement
from asyncdiff.exchange.protocol import Exchange
from asyncdiff.exchange.world import DistributedWorld, LocalWorld, World, is_launched, local_device
from asyncdiff.happening import Event
from asyncdiff.hooks import intercept_call, intercept_method, is_intercepted
from asyncdiff.plan.mesh import Mesh
from asyncdiff.plan.method import Method
from asyncdiff.plan.numbers import shown
from asyncdiff.plan.places import Places
from asyncdiff.plan.split import Split
from asyncdiff.report import Counts, Report
from asyncdiff.runtime.advice import Advice
from asyncdiff.runtime.attachment import Attachment
from asyncdiff.runtime.branches import Branches
from asyncdiff.runtime.calling import wants_gradients
from asyncdiff.runtime.clock import Clock, find_schedulers
from asyncdiff.runtime.decoding import find_decoders
from asyncdiff.runtime.generation import PAUSED, Generations, told
from asyncdiff.runtime.layout import DEVICES_OF_PREVIEW, Layout
from asyncdiff.runtime.statements import about_arguments
from asyncdiff.runtime.tracing import noting, tracing
from asyncdiff.settings import Executor, MethodName, Processes, Settings
from asyncdiff.weights.part import Group
from asyncdiff.weights.sharing import Sharing

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class AsyncDiff:
    """Divides a pipeline's denoiser over several devices that all compute at the same time.

    After `warmup` ordinary steps the N components of the denoiser run in parallel, each on what the
    others made one round earlier (AsyncDiff, NeurIPS 2024, section 3.2). The pipeline is used as
    before: `pipe(prompt)`. `disable()` leaves it as it was; as a context manager it does so at the end.

    With neither `components` nor `guidance`, the devices are shared out at the first call of a generation: among
    as many groups as the batch, or the guidance, can be shared out among exactly, and inside a group by components.

    In several processes the ranks take over rank 0's random state here.

    Args:
        pipe: Any diffusers pipeline that has a denoiser.
        components: N, parts of the denoiser; N + S − 1 devices. By default as many as there are devices for, or tokens
            instead, where that is exact and fast.
        stride: S, noise predictions that one parallel round yields: 2 is faster, less exact.
        warmup: w, ordinary steps at first: more is slower and closer to the ordinary picture. Best with (w − 1)
            divisible by S.
        guidance: G, groups of devices that share out every step: parts of the batch, or a guidance branch each.
            Exact. G · (N + S − 1) devices. By default 1 where components are given, else as many as can share out.
        tokens: P, parts of the picture's tokens: each device runs all of a transformer on its own, with the others'
            keys and values; steps in full are divided too. With components, rounds run one on each part: G · P · N
            devices.
        fresh: With tokens: True exchanges the others' keys and values within every step that is computed, which is
            exact (bridge still forecasts steps); False forecasts them. By default True with tokens alone, False with
            components as well.
        time_shift: After the warm-up give every component the timestep before, to match its inputs' age.
        split: N lists of module names of the denoiser, to divide it by hand; units that no list names run on every
            device. By default found by counting costs.
        bridge: k: of k steps after the warm-up one is computed, the others are forecast; on one device too. By
            default 1.
        target_speedup: A modelled speed-up: as many steps are bridged as it takes. In place of bridge.
        max_error: The guard: where forecasts are off by more than this, relative to their size, more is computed;
            0.05 for instance.
        cooldown: Ordinary steps at the end. By default 2 with a method that forecasts, else 0.
        resync_every: After the warm-up, every so manieth step is an ordinary one. By default none is.
        shard: Each device gets its own part of the denoiser's weights alone; steps in full are then computed by one
            device after the other. For a pipeline on the CPU; guidance is 1 unless it is given.
        place: With shard, the rank of a group that alone has a part of the pipeline beside the denoiser (text encoders,
            VAE): it computes, the others receive. By name; None for all ranks. By default dealt out to even memory out.
        share_decode: The VAE's decoding is shared out among the devices: pictures or frames of a batch, or its tiles,
            where tiling is on. The same picture.
        method: What stands in for what other devices are still computing: forecast, what the steps before let expect;
            or paper, what they made last, much farther from the ordinary picture.
        executor: distributed: a process for each device; local: all in this process, the same numbers; auto:
            distributed under torchrun, or where a process group is.
        process_group: The processes that take part, where not all do: a torch.distributed.ProcessGroup, or a
            DeviceMesh with one axis (of several: mesh['name']). Ranks are counted from 0 among them. By default all
            processes.
        backend: What moves tensors between devices, where the process group is started here: nccl, gloo (by way of the
            host's memory), or another of torch.distributed. By default nccl for GPUs, gloo for the rest; in a process
            group that exists, its own.
        timeout: Seconds after which waiting for another rank is an error.

    Attributes:
        pipe: the pipeline.
        settings: the arguments, as one record.

    Raises:
        ConfigurationError: numbers that cannot work, a pipeline without a denoiser, or a process group without this
            process.
        SplitError: a split that does not fit the denoiser.
        ExchangeError: a rank did not join in time.
    """

    def __init__(
        self,
        pipe: Any,
        components: int | None = None,
        stride: int = 1,
        warmup: int = 3,
        *,
        guidance: int | None = None,
        tokens: int | None = None,
        fresh: bool | None = None,
        time_shift: bool = False,
        split: Split | None = None,
        bridge: int | None = None,
        target_speedup: float | None = None,
        max_error: float | None = None,
        cooldown: int | None = None,
        resync_every: int | None = None,
        shard: bool = False,
        place: Places | None = None,
        share_decode: bool = False,
        method: MethodName | Method = "forecast",
        executor: Executor = "auto",
        process_group: Processes | None = None,
        backend: str | None = None,
        timeout: float = 300.0,
    ) -> None:
        settings = self.settings = Settings(
            components,
            stride,
            warmup,
            guidance,
            tokens,
            fresh,
            time_shift,
            split,
            bridge,
            target_speedup,
            max_error,
            cooldown,
            resync_every,
            shard,
            place,
            share_decode,
            method,
            executor,
            process_group,
            backend,
            timeout,
        )
        if (warmup - 1) % stride:
            logger.warning(
                "warmup=%d: with stride=%d the steps before the first round reuse a prediction; "
                "choose a warmup with (warmup - 1) divisible by the stride",
                warmup,
                stride,
            )
        _check_pipeline(pipe)
        denoisers = find_denoisers(pipe)
        if not find_schedulers(pipe):
            raise ConfigurationError(
                f"{type(pipe).__name__} has no scheduler: a part with set_timesteps() and step(); give it one before "
                "AsyncDiff is attached, for instance pipe.scheduler = DDIMScheduler()"
            )
        for name, denoiser in denoisers.items():
            check_callable_in_parts(name, denoiser)
            _check_split(name, denoiser, split)
        self.pipe = pipe
        self._denoisers = denoisers
        self._decoders = find_decoders(pipe, denoisers) if settings.share_decode else {}
        if settings.share_decode and not self._decoders:
            logger.warning(
                "share_decode: %s has no part that decodes, so that nothing is shared out", type(pipe).__name__
            )
        self._begun = self._broken_off = self._stopped = -1  # generations
        self._calls: Counter[str] = Counter()
        self._attachment: Attachment | None = None
        self._last_report: Report | None = None
        self._undo: list[Callable[[], None]] = []
        is_distributed = runs_in_processes(settings)
        self._sharing: Sharing | None = None
        try:
            if settings.shard and is_distributed:
                self._sharing = Sharing(pipe, denoisers, local_device())
            device = device_of(pipe, next(iter(denoisers.values())))
            self._world = _join_world(settings, device, is_distributed)
        except BaseException:
            self._put_back()
            raise
        self._clock, self._branches = Clock(pipe), Branches(denoisers)
        self._advice = Advice(settings)
        try:
            self._layout = Layout(settings, self._world)
            if (mesh := self._layout.told) is not None:
                places = {}
                if self._sharing is not None:  # what cannot be done is said before any rank waits for another
                    places = self._sharing.places(_places(settings.place, self._decoders), mesh.component)
                self._attach(mesh)
                if self._sharing is not None:
                    own = mesh.coordinates(self.rank)[1]
                    group = Group(mesh.component, own, self._exchange_of_parts, self._compare_use, self._break_off_by)
                    self._sharing.place(places, group)
            for name, denoiser in denoisers.items():
                self._undo.append(intercept_call(denoiser, functools.partial(self._denoise, name)))
                self._watch_wrapper(name, denoiser)
            self._generations = Generations(
                pipe,
                denoisers,
                self._clock,
                settings.timeout,
                self._begin_call,
                self._break_off,
                goes_on=bool(self._decoders),
            )
            self._undo.append(self._generations.close)
            for name, part in self._decoders.items():
                self._undo.append(intercept_method(part, "decode", functools.partial(self._decode, name)))
        except BaseException:
            self.disable()
            raise
        self._clock.on_generation.append(self._begin_generation)
        self._clock.on_end.append(self._end_generation)

    def report(self) -> Report:
        """What the last generation really did, on this rank; after `disable()` still."""
        if self._last_report is not None:
            return self._last_report
        attached, settings, world = self._attachment, self.settings, self._world
        mesh = Mesh(1, world.size) if attached is None else attached.mesh
        denoisers = () if attached is None else attached.reports()
        tokens = settings.tokens or max((len(denoiser.bounds) - 1 for denoiser in denoisers), default=1)
        return Report(
            executor="local" if world.rank is None else "distributed",
            ranks=tuple(range(mesh.world_size)) if world.rank is None else (world.rank,),
            world_size=mesh.world_size,
            components=1 if tokens > mesh.tokens else mesh.component - settings.stride + 1,
            tokens=max(tokens, 1),
            stride=settings.stride,
            warmup=settings.warmup,
            bytes_sent=0 if attached is None else attached.bytes_sent,
            seconds_waited=0.0 if attached is None else attached.seconds_waited,
            denoisers=denoisers,
            guidance=mesh.guidance,
        )

    @property
    def rank(self) -> int:
        """This process's rank, counted from 0 in each `process_group`; 0 where one process computes for all.

        Save pictures on rank 0: those of the other ranks of the group are the same. Errors name ranks as torch does.
        """
        return self._world.rank or 0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Calls of the denoiser, and of the pipeline, in this thread are computed in full, as if nothing were attached.

        For calls of the denoiser that are no step of a generation: log-probabilities, an inversion, a loss.
        """
        with self._generations.paused():
            yield

    @contextlib.contextmanager
    def trace(self, path: str | Path) -> Iterator[None]:
        """Write what happens in a block, and when, to a file that ui.perfetto.dev opens: a row for each rank.

        Steps, in them the denoiser's units that the rank ran or put a forecast in place of, what was exchanged and
        waited for, and the pipeline's other parts. All ranks enter and leave the block; rank 0 writes. If a generation
        fails in it, each rank writes its own, to a name with its number. Times on several machines agree as their
        clocks do.

        Raises:
            ConfigurationError: there is no such folder, or a trace is under way.
        """
        with self._until_disabled(tracing(self.pipe, self._denoisers.values(), self._world, Path(path))):
            yield

    @contextlib.contextmanager
    def noted(self) -> Iterator[Sequence[Event]]:
        """What happens in a block on this rank, as data: what `trace` writes of all. It is there when the block is
        left.

        Raises:
            ConfigurationError: a trace is under way.
        """
        with self._until_disabled(noting(self.pipe, self._denoisers.values(), self._world)) as noted:
            yield noted

    def counts(self) -> Mapping[str, Counts]:
        """What each denoiser counts on this rank while a generation runs, and after it; `report()` has a copy."""
        return {} if self._attachment is None else self._attachment.counts()

    def stop(self) -> None:
        """End the generation that is running, on all ranks, at this rank's next call of the denoiser.

        For other threads than the one that generates: that gets a StoppedError. Where none is running, nothing happens.
        """
        if self._clock.is_open:
            self._stopped = self._clock.generation

    def gather(self) -> None:
        """With `shard`: put the denoiser's weights together again, in the memory of every rank's host, and detach.

        All ranks must call it. The whole pipeline is on the CPU afterwards.

        Raises:
            ExchangeError: a rank did not take part in time.
        """
        if self._sharing is not None and self._attachment is not None:
            self._sharing.gather(self._attachment.exchange)
        self.disable()

    def disable(self) -> None:
        """Detach: the pipeline is bit for bit what it was. A process group started here ends with its last user.

        With `shard` the pipeline has a part of its weights alone once it has generated: `gather()` makes it whole.
        """
        self._last_report = self.report()
        if self._clock.is_open and self._begun == self._clock.generation:
            self._break_off("asyncdiff was detached there")
        with contextlib.ExitStack() as stack:  # whatever of it fails, the rest is done
            stack.callback(self._put_back)
            for leave in (self._world.close, self._clock.close, self._branches.close, self._detach, *self._undo):
                stack.callback(leave)
            self._undo = []

    @contextlib.contextmanager
    def _until_disabled(self, context: contextlib.AbstractContextManager[_T]) -> Iterator[_T]:
        """A context that ends with its block, or with `disable()` if that comes before."""
        with contextlib.ExitStack() as stack:
            entered = stack.enter_context(context)
            self._undo.append(stack.close)
            try:
                yield entered
            finally:
                self._undo = [undo for undo in self._undo if undo != stack.close]

    def _put_back(self) -> None:
        """Give the pipeline its weights back, if none of them were let go."""
        sharing, self._sharing = self._sharing, None
        if sharing is not None and not sharing.put_back():
            logger.warning(
                "the pipeline has a part of its denoiser's weights only, and cannot generate by itself; load it again, "
                "or call async_diff.gather() in place of disable() next time"
            )

    def __enter__(self) -> "AsyncDiff":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disable()

    def _attach(self, mesh: Mesh) -> None:
        self._detach()
        shares = {} if self._sharing is None else self._sharing.shares
        self._attachment = Attachment(
            self._denoisers, shares, self._decoders, self.settings, mesh, self._world, self._clock, self._branches
        )

    def _detach(self) -> None:
        attached, self._attachment = self._attachment, None
        if attached is not None:
            attached.detach()

    def _denoise(self, name: str, call: Call) -> Any:
        """Stands in for a call of a denoiser."""
        self._calls[name] += 1
        if self._attachment is not None and self._attachment.is_computing(name):
            return call()
        why_outside = self._generations.why_outside(name, call)
        if why_outside:
            if why_outside != PAUSED:
                self._advice.on_call_outside(name, why_outside)
            return self._in_full(name, call)
        try:
            if self._clock.generation == self._stopped:
                raise StoppedError("the generation was stopped by stop()")
            result = self._attached(name, call).denoise(name, call)
        except BaseException as error:
            self._break_off(told(error))
            raise
        # A generation may begin unannounced; that shows in its first call, which then has been computed already.
        self._begun = self._clock.generation
        return result

    def _decode(self, name: str, call: Call) -> Any:
        """Stands in for a part's `decode`; shared out where all ranks come to it, at the end of one generation."""
        is_complete = self._clock.is_over and self._begun == self._clock.generation != self._broken_off
        if not is_complete or not self._generations.is_pipelines_own(self._decoders[name], call):
            return call()
        try:
            return self._present().decode(name, call)
        except BaseException as error:
            self._break_off(told(error))
            raise

    def _in_full(self, name: str, call: Call) -> Any:
        """The result of a call that is part of no generation."""
        if self._sharing is None:
            return call()
        if wants_gradients(self._denoisers[name], call):
            raise ConfigurationError(
                f"gradients are wanted of the {name!r}, of which this rank has a part only (shard=True), and they do "
                "not pass from rank to rank; call it under torch.no_grad(), or attach without shard"
            )
        try:
            if self._attachment is None:
                self._attach(self._layout.told or self._choose(name, call))
            return self._present().whole(name, call)
        except BaseException as error:
            self._break_off(told(error))
            raise

    def _break_off_by(self, error: BaseException) -> None:
        self._break_off(told(error))

    def _compare_use(self, used: str, call: Call) -> None:
        """Whether all ranks use a part that one of them has, and give it the same."""

        def statements() -> list[Statement]:
            named = {**{str(number): value for number, value in enumerate(call.args)}, **call.kwargs}
            given = {f"{used}: {name}": value for name, value in named.items()}
            return [Statement("what is used", used), *about_arguments(given)]

        self._present().exchange.check_agreement(statements, f"the inputs of the {used!r}")

    def _exchange_of_parts(self) -> Exchange:
        """What the parts of the pipeline that one rank has are shared with."""
        if not self._world.is_open:
            self._begin_call()
        return self._present().exchange

    def _begin_call(self) -> None:
        """Before a pipeline's call, in which parts may be used before the denoiser is: begin anew after a fault.

        Not later: what others have told since then ends this call.
        """
        told = self._layout.told
        if self._sharing is not None and self._world.renew():
            self._detach()
            if told is not None:
                self._attach(told)

    def _attached(self, name: str, call: Call) -> Attachment:
        """What computes a call; at the first one of a generation the ranks agree on it."""
        if self._begun != self._clock.generation:
            if self._world.renew():
                self._detach()
            self._world.share_random_state()
            mesh = self._layout.told or self._choose(name, call)
            if self._attachment is None or self._attachment.mesh != mesh:
                logger.info("guidance=%d, %d devices in each group", mesh.guidance, mesh.in_group)
                self._attach(mesh)
            self._present().begin_generation()
        return self._present()

    def _present(self) -> Attachment:
        if self._attachment is None:
            raise RuntimeError("nothing is attached")
        return self._attachment

    def _watch_wrapper(self, name: str, denoiser: nn.Module) -> None:
        """See to it that calls of what the pipeline has around a denoiser, if anything, reach the denoiser."""
        used = getattr(self.pipe, name)
        if used is not denoiser and not is_intercepted(used):
            self._undo.append(intercept_call(used, functools.partial(self._hand_on, name, used)))

    def _hand_on(self, name: str, wrapper: nn.Module, call: Call) -> Any:
        """Stands in for a call of what is around a denoiser."""
        before = self._calls[name]
        result = call()
        if self._calls[name] == before:
            raise not_reached(name, wrapper)
        return result

    def _choose(self, name: str, call: Call) -> Mesh:
        """Share the devices out among groups and components, by the first call of a generation."""
        main = CallForm(self._denoisers[name]).main(call)
        was_shared = self._attachment is None or self._attachment.is_shared
        return self._layout.choose(main, _has_branches(self.pipe), was_shared)

    def _begin_generation(self) -> None:
        for name, denoiser in self._denoisers.items():
            _check_attached(name, denoiser, getattr(self.pipe, name))
            self._watch_wrapper(name, denoiser)

    def _end_generation(self) -> None:
        """Free what the generation held, and say what is to be said about it."""
        attached, clock = self._attachment, self._clock
        if attached is None or self._broken_off == clock.generation:
            return
        try:
            if clock.is_over:
                attached.compare_again()
                attached.check_numbers()
            attached.end()
        except BaseException as error:
            self._break_off(told(error))
            raise
        if clock.is_over:
            self._advice.on_generation(self.report(), clock.steps_done)

    def _break_off(self, reason: str) -> None:
        """End the generation on all ranks; the next one begins anew."""
        self._broken_off = self._clock.generation
        self._world.fail(reason)
        if self._attachment is not None:
            self._attachment.forget()


def runs_in_processes(settings: Settings) -> bool:
    """Whether there is a process for each device."""
    is_run = settings.process_group is not None or is_launched()
    return settings.executor == "distributed" or (settings.executor == "auto" and is_run)


def _join_world(settings: Settings, device: torch.device, is_distributed: bool) -> World:
    """All ranks of the run; with the local executor as many as are told, or a preview is for."""
    if is_distributed:
        return DistributedWorld(device, settings.timeout, settings.backend, settings.process_group)
    return LocalWorld(DEVICES_OF_PREVIEW + settings.stride - 1, device)


def _places(told: Places | None, decoders: Mapping[str, nn.Module]) -> Places | None:
    """Where the user wants parts; those whose decoding is shared out are needed on every rank.

    Raises:
        ConfigurationError: the user wants one of these on one rank.
    """
    for name in decoders:
        if (told or {}).get(name) is not None:
            raise ConfigurationError(
                f"share_decode=True needs the {name!r} on every rank, and place gives it to one; give one of them, or "
                f"place={{{name!r}: None}}"
            )
    return {**dict.fromkeys(decoders), **(told or {})} if decoders else told


def _check_pipeline(pipe: Any) -> None:
    """Whether it is a pipeline at all: something that is made of parts."""
    if isinstance(pipe, type) or not isinstance(getattr(pipe, "components", None), Mapping):
        what = f"the class {pipe.__name__}" if isinstance(pipe, type) else shown(pipe)
        if isinstance(pipe, nn.Module):
            what = f"a module ({type(pipe).__name__})"
        raise ConfigurationError(
            f"AsyncDiff takes a diffusers pipeline that is loaded, not {what}; "
            "load one first: pipe = DiffusionPipeline.from_pretrained(...)"
        )


def _check_split(name: str, denoiser: nn.Module, split: Split | None) -> None:
    """Whether all that a split names is there."""
    modules = {own for own, _ in denoiser.named_modules() if own}
    for own in (own for names in split or () for own in names):
        if own not in modules:
            raise SplitError(f"{own!r} in the split is no module of the pipeline's {name!r}")


def _check_attached(name: str, denoiser: nn.Module, used: Any) -> None:
    """Refuse to be passed by: `used` is what the pipeline is about to call."""
    if not isinstance(used, nn.Module) or unwrapped(used) is not denoiser or not is_intercepted(denoiser):
        raise ConfigurationError(
            f"the pipeline's {name!r} was replaced, or compiled as a whole, after AsyncDiff was attached, "
            "so that it would run on one device; call disable(), and attach again (compile parts of it, if at all: "
            f"pipe.{name}.compile_repeated_blocks())"
        )
    check_wrappers(name, used)


def _has_branches(pipe: Any) -> bool:
    """Whether the pipeline says of this generation that it guides; pipelines that do not say it may do so yet."""
    return bool(getattr(pipe, "do_classifier_free_guidance", False))
