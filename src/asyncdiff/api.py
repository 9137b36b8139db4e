"""`AsyncDiff`: attach asynchronous denoising to a diffusers pipeline."""

import functools
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal

from torch import nn

from asyncdiff.denoiser.call import CallForm
from asyncdiff.denoiser.find import device_of, find_denoisers
from asyncdiff.denoiser.structure import check_callable_in_parts
from asyncdiff.errors import AsyncDiffError, ConfigurationError, SplitError
from asyncdiff.exchange import distributed
from asyncdiff.hooks import Forward, intercept_call, is_intercepted
from asyncdiff.plan.choice import choose_groups
from asyncdiff.plan.mesh import Mesh
from asyncdiff.plan.method import Method, method_of
from asyncdiff.plan.schedule import Schedule
from asyncdiff.report import GUARD, RESYNC, WARM_UP, Report
from asyncdiff.runtime.attachment import Attachment, Settings
from asyncdiff.runtime.batch import batch_size
from asyncdiff.runtime.clock import Clock, find_schedulers

logger = logging.getLogger(__name__)

Split = Sequence[Sequence[str]]

_DEVICES_OF_PREVIEW = 2  # that one process computes for, where nothing is said


class AsyncDiff:
    """Divides a pipeline's denoiser over several devices that all compute at the same time.

    After `warmup` ordinary steps the N components of the denoiser run in parallel, each on what the
    others made one round earlier (AsyncDiff, NeurIPS 2024, section 3.2). The pipeline is used as
    before: `pipe(prompt)`. `disable()` leaves it as it was; as a context manager it does so at the end.

    With neither `components` nor `guidance`, the devices are shared out at the first call of a generation: among
    as many groups as the batch, or the guidance, can be shared out among exactly, and inside a group by components.

    Args:
        pipe: any diffusers pipeline with a `unet` or `transformer`.
        components: N ≥ 1, how many parts the denoiser is divided into; by default as many as there are devices for.
        stride: S ≥ 1, how many noise predictions one round yields (section 3.3). N + S − 1 devices.
        warmup: w ≥ 1, how many steps are computed as usual at first. Choose (w − 1) divisible by S.
        guidance: G ≥ 1, how many groups of N + S − 1 devices share out every step, in the warm-up too: each computes
            a part of the batch, or a guidance branch that has a call of its own. Exact. G · (N + S − 1) devices.
            By default 1 if `components` is given.
        time_shift: after the warm-up give every component the timestep before, to match its inputs' age.
        split: N lists of module names of the denoiser, one per component; by default the division is
            found by counting the cost of every unit. Units that no list names run on every device.
        bridge: k ≥ 1: of k steps after the warm-up one is computed, the others are forecast from the steps before.
            By default 1, or what `target_speedup` takes.
        cooldown: how many steps are computed as usual at the end, where the last step can be told in advance: by
            default two if `method` forecasts, since they take back most of the error, else none.
        resync_every: after the warm-up, compute every so manieth step in full; None for never.
        target_speedup: a modelled speed-up, without communication: as many steps are bridged as it takes, at most
            seven of eight.
        max_error: when what arrives is further than this from what was forecast of it, relative to its size, the next
            step is computed in full; if it would have been bridged, it is a round instead, and so are all that would
            have been after it (docs/quality.md says what comes of which bound). The warm-up goes on until forecasts
            are good enough. One comparison between the ranks in every round.
        method: what stands in for what the other devices are still computing. "forecast": what docs/quality.md has
            found best; "paper": what they made last, as in the paper; or a `Method` of your own.
        executor: "distributed": one process per device, on `torch.distributed`; "local": all ranks
            in this process, the same numbers; "auto": distributed where torchrun or a process group is.
        timeout: seconds after which waiting for another rank is an error.

    Raises:
        ConfigurationError: numbers that cannot work, or a pipeline without a denoiser.
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
        time_shift: bool = False,
        split: Split | None = None,
        bridge: int | None = None,
        cooldown: int | None = None,
        resync_every: int | None = None,
        target_speedup: float | None = None,
        max_error: float | None = None,
        method: Literal["paper", "forecast"] | Method = "forecast",
        executor: Literal["auto", "local", "distributed"] = "auto",
        timeout: float = 300.0,
    ) -> None:
        chosen = method_of(method)
        if executor not in ("auto", "local", "distributed"):
            raise ConfigurationError(f"executor must be 'auto', 'local' or 'distributed', not {executor!r}")
        for name, bound in (("timeout", timeout), ("max_error", max_error), ("target_speedup", target_speedup)):
            if bound is not None and not bound > 0:
                raise ConfigurationError(f"{name} must be a number above 0, not {bound!r}")
        if bridge is not None and target_speedup is not None:
            raise ConfigurationError("bridge and target_speedup both say how many steps are bridged; give one of them")
        if components is None and split is not None:
            components = len(split)
        self._schedule = Schedule(
            1 if components is None else components,
            stride,
            warmup,
            time_shift,
            1 if bridge is None else bridge,
            chosen.cooldown if cooldown is None else cooldown,
            resync_every,
            guarded=max_error is not None,
        )
        if guidance is not None:
            Mesh(guidance, self._schedule.world_size)  # refuses what is no number of groups
        if (warmup - 1) % stride:
            logger.warning(
                "warmup=%d: with stride=%d the steps before the first round reuse a prediction; "
                "choose a warmup with (warmup - 1) divisible by the stride",
                warmup,
                stride,
            )
        denoisers = find_denoisers(pipe)
        if not find_schedulers(pipe):
            raise ConfigurationError(f"{type(pipe).__name__} has no scheduler")
        for name, denoiser in denoisers.items():
            check_callable_in_parts(name, denoiser)
            _check_split(name, denoiser, self._schedule.components, split)
        launched = executor == "distributed" or (executor == "auto" and distributed.is_launched())
        device = device_of(pipe, next(iter(denoisers.values())))
        self._settings = Settings(split, chosen, max_error, target_speedup, device, timeout, launched)
        self._pipe = pipe
        self._denoisers = denoisers
        self._warned_of_generation = -1
        self._chosen_in_generation = -1
        self._not_shared: set[tuple[int, bool]] = set()
        self._kind: tuple[int, bool] | None = None
        self._attachment: Attachment | None = None
        self._undo: list[Callable[[], None]] = []
        self._started = launched and distributed.join(device, timeout)
        self._clock = Clock(pipe)
        try:
            mesh = self._told_mesh(components, guidance)
            self._is_free = mesh is None
            if mesh is not None:
                self._attach(mesh)
            for name, denoiser in denoisers.items():
                self._undo.append(intercept_call(denoiser, functools.partial(self._denoise, name)))
        except AsyncDiffError:
            self.disable()
            raise
        self._clock.on_generation.append(self._begin_generation)

    def report(self) -> Report:
        """What the last generation really did, on this rank; warns where nothing was accelerated."""
        attached = self._attachment
        mesh = Mesh(1, self._world_size) if attached is None else attached.mesh
        report = Report(
            executor="distributed" if self._settings.is_distributed else "local",
            ranks=(distributed.place()[0],) if self._settings.is_distributed else tuple(range(mesh.world_size)),
            world_size=mesh.world_size,
            components=mesh.component - self._schedule.stride + 1,
            stride=self._schedule.stride,
            warmup=self._schedule.warmup,
            bytes_sent=0 if attached is None else attached.bytes_sent,
            seconds_waited=0.0 if attached is None else attached.seconds_waited,
            denoisers=() if attached is None else attached.reports(),
            guidance=mesh.guidance,
        )
        if self._clock.is_over and not report.accelerated:
            self._warn_not_accelerated()
        self._warn_if_never_in_step(self._clock.generation)
        return report

    def disable(self) -> None:
        """Detach: the pipeline is bit for bit what it was. A process group started here is destroyed."""
        self._warn_if_never_in_step(self._clock.generation)
        for undo in self._undo:
            undo()
        self._undo = []
        self._detach()
        self._clock.close()
        if self._started:
            self._started = False
            distributed.leave()

    def __enter__(self) -> "AsyncDiff":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disable()

    @property
    def _world_size(self) -> int:
        if self._settings.is_distributed:
            return distributed.place()[1]
        return _DEVICES_OF_PREVIEW + self._schedule.stride - 1

    def _told_mesh(self, components: int | None, guidance: int | None) -> Mesh | None:
        """The mesh that the user asked for; None where the first call of a generation decides."""
        stride, world_size = self._schedule.stride, self._world_size
        is_distributed = self._settings.is_distributed
        if components is not None:
            mesh = Mesh(guidance or 1, components + stride - 1)
        elif guidance is None:
            return Mesh(1, world_size) if world_size <= stride else None
        elif is_distributed:
            mesh = Mesh(guidance, max(world_size // guidance, stride))
        else:
            mesh = Mesh(guidance, _DEVICES_OF_PREVIEW + stride - 1)
        if is_distributed:
            _check_world_size(mesh, stride, distributed.place()[0], world_size)
        return mesh

    def _attach(self, mesh: Mesh) -> None:
        self._detach()
        schedule = replace(self._schedule, components=mesh.component - self._schedule.stride + 1)
        self._attachment = Attachment(self._denoisers, self._settings, schedule, mesh, self._clock)

    def _detach(self) -> None:
        if self._attachment is not None:
            self._attachment.detach()
            self._attachment = None

    def _denoise(self, name: str, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Stands in for a denoiser's forward."""
        if self._is_free:
            self._clock.check_schedulers()
            if self._chosen_in_generation != self._clock.generation:
                self._choose(name, args, kwargs)
        attached = self._attachment
        if attached is None:
            raise RuntimeError("nothing is attached")
        result = attached.denoise(name, forward, args, kwargs)
        # A generation may begin unannounced; that shows in its first call, which then has been computed already.
        self._chosen_in_generation = self._clock.generation
        return result

    def _choose(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Share the devices out among groups and components, by the first call of a generation."""
        if self._kind is not None and self._attachment is not None and not self._attachment.is_shared:
            self._not_shared.add(self._kind)
        main = CallForm(self._denoisers[name]).main(args, kwargs)
        self._kind = batch_size(main), _has_branches(self._pipe)
        groups = 1
        if self._kind not in self._not_shared:
            groups = choose_groups(self._world_size, self._schedule.stride, *self._kind)
        if self._settings.is_distributed:
            distributed.check_same(groups, self._settings.device, "the number of groups that share out every step")
        mesh = Mesh(groups, self._world_size // groups)
        if self._attachment is None or self._attachment.mesh != mesh:
            logger.info("guidance=%d, %d devices in each group", mesh.guidance, mesh.component)
            self._attach(mesh)

    def _begin_generation(self) -> None:
        for name, denoiser in self._denoisers.items():
            _check_attached(name, denoiser, getattr(self._pipe, name))
        self._warn_if_never_in_step(self._clock.generation - 1)
        if self._attachment is None:
            return
        self._attachment.begin_generation()
        if (
            self._attachment.mesh.guidance == 1
            and 0 < len(self._clock.course.timesteps) <= self._schedule.warmup + self._schedule.cooldown
        ):
            self._warn_not_accelerated()

    def _warn_not_accelerated(self) -> None:
        self._warn(
            self._clock.generation,
            f"asyncdiff accelerates nothing in this generation of {len(self._clock.course.timesteps)} steps: "
            f"no step is a parallel round (warmup={self._schedule.warmup}, cooldown={self._schedule.cooldown}); "
            "see report()",
        )

    def _warn_if_never_in_step(self, generation: int) -> None:
        """Whether all steps of a generation were computed in full, although the warm-up was over."""
        attached = self._attachment
        if attached is None or (attached.mesh.guidance > 1 and attached.is_shared):
            return
        counts = attached.counts
        reasons = {reason for count in counts for reason in count.full}
        if reasons - {WARM_UP, RESYNC, GUARD} and not any(count.rounds for count in counts):
            self._warn(
                generation,
                "asyncdiff accelerated nothing in this generation: no step was a parallel round, because the calls of "
                f"the denoiser do not go on from step to step ({', '.join(sorted(reasons))}); see report()",
            )

    def _warn(self, generation: int, message: str) -> None:
        """Once for a generation."""
        if self._warned_of_generation < generation:
            self._warned_of_generation = generation
            warnings.warn(message, stacklevel=4)


def _check_split(name: str, denoiser: nn.Module, components: int, split: Split | None) -> None:
    """What can be said of a split before the first call."""
    if split is None:
        return
    if len(split) != components:
        raise SplitError(f"the split has {len(split)} lists of module names, but components={components}")
    modules = {own for own, _ in denoiser.named_modules() if own}
    for names in split:
        if isinstance(names, str) or not names:
            raise SplitError("every component of a split is a list of at least one module name")
        for own in names:
            if own not in modules:
                raise SplitError(f"{own!r} in the split is no module of the pipeline's {name!r}")


def _check_world_size(mesh: Mesh, stride: int, rank: int, world_size: int) -> None:
    """Whether there are as many ranks as the mesh has places."""
    components, guidance = mesh.component - stride + 1, mesh.guidance
    needed, in_group = mesh.world_size, mesh.component
    if world_size == needed:
        return
    if guidance == 1:
        raise ConfigurationError(
            f"rank {rank}: components={components} and stride={stride} need components + stride - 1 = {needed} "
            f"ranks, but there are {world_size}; start {needed} processes, or use "
            f"components={max(world_size - stride + 1, 1)}"
        )
    fitting = world_size // guidance - stride + 1
    ways = [f"start {needed} processes"]
    if fitting >= 1 and world_size % guidance == 0:
        ways.append(f"use components={fitting}")
    if world_size % in_group == 0:
        ways.append(f"use guidance={world_size // in_group}")
    raise ConfigurationError(
        f"rank {rank}: guidance={guidance}, components={components} and stride={stride} need guidance × "
        f"(components + stride - 1) = {needed} ranks, but there are {world_size}; {', or '.join(ways)}"
    )


def _check_attached(name: str, denoiser: nn.Module, used: Any) -> None:
    """Refuse to be passed by: `used` is what the pipeline is about to call."""
    if used is not denoiser or not is_intercepted(denoiser):
        raise ConfigurationError(
            f"the pipeline's {name!r} was replaced, or compiled as a whole, after AsyncDiff was attached, "
            "so that it would run on one device; call disable(), and attach again (compile parts of it, if at all: "
            f"pipe.{name}.compile_repeated_blocks())"
        )


def _has_branches(pipe: Any) -> bool:
    """Whether the pipeline says of this generation that it guides; pipelines that do not say it may do so yet."""
    return bool(getattr(pipe, "do_classifier_free_guidance", False))
