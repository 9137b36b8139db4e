"""`AsyncDiff`: attach asynchronous denoising to a diffusers pipeline."""

import logging
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal

import torch
from torch import nn

from asyncdiff import distributed
from asyncdiff.clock import Clock, find_schedulers
from asyncdiff.denoiser import device_of, find_denoisers
from asyncdiff.errors import AsyncDiffError, ConfigurationError, SplitError
from asyncdiff.exchange import Exchange, LocalExchange
from asyncdiff.guidance import Guidance
from asyncdiff.mesh import Mesh
from asyncdiff.method import Method, method_of
from asyncdiff.report import Report
from asyncdiff.runtime import DenoiserRuntime
from asyncdiff.schedule import Schedule
from asyncdiff.structure import check_callable_in_parts

logger = logging.getLogger(__name__)

Split = Sequence[Sequence[str]]


class AsyncDiff:
    """Divides a pipeline's denoiser over several devices that all compute at the same time.

    After `warmup` ordinary steps the N components of the denoiser run in parallel, each on what the
    others made one round earlier (AsyncDiff, NeurIPS 2024, section 3.2). The pipeline is used as
    before: `pipe(prompt)`. `disable()` leaves it as it was; as a context manager it does so at the end.

    Args:
        pipe: any diffusers pipeline with a `unet` or `transformer`.
        components: N ≥ 1, how many parts the denoiser is divided into.
        stride: S ≥ 1, how many noise predictions one round yields (section 3.3). N + S − 1 devices.
        warmup: w ≥ 1, how many steps are computed as usual at first. Choose (w − 1) divisible by S.
        time_shift: after the warm-up give every component the timestep before, to match its inputs' age.
        split: N lists of module names of the denoiser, one per component; by default the division is
            found by counting the cost of every unit. Units that no list names run on every device.
        bridge: k ≥ 1: of k steps after the warm-up one is computed, the others are forecast from the steps before.
        cooldown: how many steps are computed as usual at the end, where the last step can be told in advance: by
            default one if `method` forecasts, since that one step takes back most of the error, else none.
        resync_every: after the warm-up, compute every so manieth step in full; None for never.
        method: what stands in for what the other devices are still computing. "paper": what they made last, as in
            the paper; "forecast": what docs/quality.md has found best; or a `Method` of your own.
        guidance: G ≥ 1, how many groups of N + S − 1 devices share out every step, in the warm-up too: each computes
            a part of the batch, or a guidance branch that has a call of its own. Exact. G · (N + S − 1) devices.
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
        components: int = 2,
        stride: int = 1,
        warmup: int = 3,
        *,
        guidance: int = 1,
        time_shift: bool = False,
        split: Split | None = None,
        bridge: int = 1,
        cooldown: int | None = None,
        resync_every: int | None = None,
        method: Literal["paper", "forecast"] | Method = "paper",
        executor: Literal["auto", "local", "distributed"] = "auto",
        timeout: float = 300.0,
    ) -> None:
        self._method = method_of(method)
        if executor not in ("auto", "local", "distributed"):
            raise ConfigurationError(f"executor must be 'auto', 'local' or 'distributed', not {executor!r}")
        if timeout <= 0:
            raise ConfigurationError(f"timeout must be a number of seconds above 0, not {timeout!r}")
        self._schedule = Schedule(
            components,
            stride,
            warmup,
            time_shift,
            bridge,
            int(self._method.versions > 1) if cooldown is None else cooldown,
            resync_every,
        )
        self._mesh = Mesh(guidance, self._schedule.world_size)
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
            _check_split(name, denoiser, components, split)
        launched = executor == "distributed" or (executor == "auto" and distributed.is_launched())
        self._pipe = pipe
        self._warned_of_generation = -1
        self._executor = "distributed" if launched else "local"
        self._runtimes: list[DenoiserRuntime] = []
        self._guidances: list[Guidance] = []
        device = device_of(pipe, next(iter(denoisers.values())))
        self._exchange, self._axis = self._open_exchanges(device, timeout)
        self._clock = Clock(pipe)
        try:
            for name, denoiser in denoisers.items():
                lanes = len(self._axis.ranks)
                runtime = DenoiserRuntime(
                    name,
                    denoiser,
                    self._schedule,
                    split,
                    self._method,
                    self._exchange,
                    self._clock,
                    device,
                    lanes,
                )
                self._runtimes.append(runtime)
                if guidance > 1:
                    self._guidances.append(Guidance(runtime, denoiser, self._axis, guidance, self._clock))
        except AsyncDiffError:
            self.disable()
            raise
        self._clock.on_generation.append(self._begin_generation)

    def report(self) -> Report:
        """What the last generation really did, on this rank; warns where nothing was accelerated."""
        report = Report(
            executor=self._executor,
            ranks=self._ranks,
            world_size=self._mesh.world_size,
            components=self._schedule.components,
            stride=self._schedule.stride,
            warmup=self._schedule.warmup,
            bytes_sent=sum(exchange.traffic.bytes_sent for exchange in self._exchanges),
            seconds_waited=sum(exchange.traffic.seconds_waited for exchange in self._exchanges),
            denoisers=tuple(runtime.report() for runtime in self._runtimes),
            guidance=self._mesh.guidance,
        )
        if self._clock.is_over and not report.accelerated:
            self._warn_not_accelerated()
        self._warn_if_never_in_step(self._clock.generation)
        return report

    def disable(self) -> None:
        """Detach: the pipeline is bit for bit what it was. A process group started here is destroyed."""
        self._warn_if_never_in_step(self._clock.generation)
        for runtime in self._runtimes:
            runtime.detach()
        for guidance in self._guidances:
            guidance.detach()
        self._runtimes, self._guidances = [], []
        self._clock.close()
        for exchange in reversed(self._exchanges):
            exchange.close()

    def __enter__(self) -> "AsyncDiff":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disable()

    @property
    def _exchanges(self) -> tuple[Exchange, Exchange]:
        return self._exchange, self._axis

    def _open_exchanges(self, device: torch.device, timeout: float) -> tuple[Exchange, Exchange]:
        """The exchange inside the groups, and that between them; where there is one group, nothing is done by it."""
        mesh = self._mesh
        self._ranks = tuple(range(mesh.world_size))
        if self._executor == "local":
            return LocalExchange(mesh.component), LocalExchange(mesh.guidance)
        started = distributed.join(device, timeout)
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self._ranks = (rank,)
        try:
            self._check_world_size(rank, world_size)
            inside = distributed.DistributedExchange(device, timeout, started, mesh.groups())
            if mesh.guidance == 1:
                return inside, LocalExchange(1)
            return inside, distributed.DistributedExchange(device, timeout, False, mesh.counterparts())
        except AsyncDiffError:
            if started:
                distributed.leave(rank)
            raise

    def _check_world_size(self, rank: int, world_size: int) -> None:
        components, stride, guidance = self._schedule.components, self._schedule.stride, self._mesh.guidance
        needed, in_group = self._mesh.world_size, self._mesh.component
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

    def _begin_generation(self) -> None:
        for runtime in self._runtimes:
            runtime.check_attached(getattr(self._pipe, runtime.name))
        self._warn_if_never_in_step(self._clock.generation - 1)
        for exchange in self._exchanges:
            exchange.traffic.bytes_sent = 0
            exchange.traffic.seconds_waited = 0.0
        if self._mesh.guidance == 1 and 0 < len(self._clock.course.timesteps) <= self._schedule.warmup + self._schedule.cooldown:
            self._warn_not_accelerated()

    def _warn_not_accelerated(self) -> None:
        self._warn(
            self._clock.generation,
            f"asyncdiff accelerates nothing in this generation of {len(self._clock.course.timesteps)} steps: "
            f"no step is a parallel round (warmup={self._schedule.warmup}); see report()",
        )

    def _warn_if_never_in_step(self, generation: int) -> None:
        """Whether all steps of a generation were computed in full, although the warm-up was over."""
        counts = [runtime.counts for runtime in self._runtimes]
        reasons = {reason for count in counts for reason in count.full}
        if reasons - {"warm-up", "resync or cool-down"} and not any(count.rounds for count in counts):
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
