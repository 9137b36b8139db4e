"""All that is attached to a pipeline's denoisers for one mesh of ranks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from asyncdiff.errors import AsyncDiffError
from asyncdiff.exchange.distributed import DistributedExchange
from asyncdiff.exchange.local import Exchange, LocalExchange
from asyncdiff.hooks import Forward
from asyncdiff.plan.mesh import Mesh
from asyncdiff.plan.method import Method
from asyncdiff.plan.schedule import Schedule
from asyncdiff.report import Counts, DenoiserReport
from asyncdiff.runtime.clock import Clock
from asyncdiff.runtime.denoiser import DenoiserRuntime
from asyncdiff.runtime.guidance import Guidance


@dataclass(frozen=True)
class Settings:
    """What does not depend on the mesh.

    Attributes:
        split: module names of every component, if the user has given them.
        method: what stands in for what is not there yet.
        max_error: how far forecasts may be off.
        target_speedup: how fast all groups together are to be.
        device: where this process computes.
        timeout: seconds that waiting for another rank may take.
        is_distributed: whether every rank is a process.
    """

    split: Sequence[Sequence[str]] | None
    method: Method
    max_error: float | None
    target_speedup: float | None
    device: torch.device
    timeout: float
    is_distributed: bool


class Attachment:
    """Runtimes for all denoisers of a pipeline, and the exchanges that they use."""

    def __init__(
        self, denoisers: Mapping[str, nn.Module], settings: Settings, schedule: Schedule, mesh: Mesh, clock: Clock
    ) -> None:
        self.mesh = mesh
        self._exchange, self._axis = _open_exchanges(settings, mesh)
        self._runtimes: dict[str, DenoiserRuntime] = {}
        self._guidances: list[Guidance] = []
        target = None if settings.target_speedup is None else settings.target_speedup / mesh.guidance
        try:
            for name, denoiser in denoisers.items():
                runtime = DenoiserRuntime(
                    name,
                    denoiser,
                    schedule,
                    settings.split,
                    settings.method,
                    self._exchange,
                    clock,
                    settings.device,
                    lanes=len(self._axis.ranks),
                    max_error=settings.max_error,
                    target_speedup=target,
                )
                self._runtimes[name] = runtime
                if mesh.guidance > 1:
                    self._guidances.append(Guidance(runtime, denoiser, self._axis, mesh.guidance, clock))
        except AsyncDiffError:
            self.detach()
            raise

    @property
    def bytes_sent(self) -> int:
        """By this process in this generation."""
        return self._exchange.traffic.bytes_sent + self._axis.traffic.bytes_sent

    @property
    def seconds_waited(self) -> float:
        """For other ranks in this generation."""
        return self._exchange.traffic.seconds_waited + self._axis.traffic.seconds_waited

    @property
    def is_shared(self) -> bool:
        """Whether groups have computed at the same time in this generation, or have not computed at all yet."""
        counts = [guidance.counts for guidance in self._guidances]
        return any(count.is_shared for count in counts) or not any(count.whole for count in counts)

    def denoise(self, name: str, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a call of a denoiser."""
        return self._runtimes[name].denoise(forward, args, kwargs)

    @property
    def counts(self) -> list[Counts]:
        """What each denoiser's group of ranks did in this generation so far."""
        return [runtime.counts for runtime in self._runtimes.values()]

    def begin_generation(self) -> None:
        """Count anew."""
        for exchange in (self._exchange, self._axis):
            exchange.traffic.bytes_sent = 0
            exchange.traffic.seconds_waited = 0.0

    def reports(self) -> tuple[DenoiserReport, ...]:
        """What the denoisers did in this generation so far."""
        return tuple(runtime.report() for runtime in self._runtimes.values())

    def detach(self) -> None:
        """Leave the denoisers as they were."""
        for runtime in self._runtimes.values():
            runtime.detach()
        for guidance in self._guidances:
            guidance.detach()
        for exchange in (self._axis, self._exchange):
            exchange.close()


def _open_exchanges(settings: Settings, mesh: Mesh) -> tuple[Exchange, Exchange]:
    """The exchange inside the groups, and that between them; where there is one group, nothing is done by it."""
    if not settings.is_distributed:
        return LocalExchange(mesh.component), LocalExchange(mesh.guidance)
    inside = DistributedExchange(settings.device, settings.timeout, mesh.groups())
    if mesh.guidance == 1:
        return inside, LocalExchange(1)
    return inside, DistributedExchange(settings.device, settings.timeout, mesh.counterparts())
