"""All that is attached to a pipeline's denoisers for one mesh of ranks."""

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from asyncdiff.call import Call
from asyncdiff.denoiser.form import CallForm
from asyncdiff.exchange.local import LocalExchange
from asyncdiff.exchange.protocol import Exchange
from asyncdiff.exchange.world import World
from asyncdiff.plan.mesh import Mesh
from asyncdiff.report import Counts, DenoiserReport
from asyncdiff.runtime.branches import Branches
from asyncdiff.runtime.clock import Clock
from asyncdiff.runtime.context import Context
from asyncdiff.runtime.decoding import Decoding
from asyncdiff.runtime.denoiser import DenoiserRuntime
from asyncdiff.runtime.guidance import Guidance
from asyncdiff.runtime.units import UnitHooks
from asyncdiff.settings import Settings
from asyncdiff.weights.share import Share


class Attachment:
    """Runtimes for all denoisers of a pipeline, and the exchanges that they use.

    Attributes:
        mesh: of the ranks.
        exchange: among the ranks of a group.
    """

    def __init__(
        self,
        denoisers: Mapping[str, nn.Module],
        shares: Mapping[str, Share],
        decoders: Mapping[str, nn.Module],
        settings: Settings,
        mesh: Mesh,
        world: World,
        clock: Clock,
        branches: Branches,
    ) -> None:
        self.mesh = mesh
        self.exchange: Exchange = world.exchange(mesh.groups())
        self._axis: Exchange = LocalExchange(1)
        self._everyone: Exchange = LocalExchange(1)
        self._runtimes: dict[str, DenoiserRuntime] = {}
        self._guidances: list[Guidance] = []
        self._decodings: dict[str, Decoding] = {}
        if settings.target_speedup is not None:
            settings = replace(settings, target_speedup=settings.target_speedup / mesh.guidance)
        schedule = settings.schedule(mesh.component - settings.stride + 1)
        try:
            if mesh.guidance > 1:
                self._axis = world.exchange(mesh.counterparts())
            for name, denoiser in denoisers.items():
                form, units = CallForm(denoiser), UnitHooks(denoiser, world.events)
                context = Context(
                    name=name,
                    denoiser=denoiser,
                    form=form,
                    units=units,
                    settings=settings,
                    schedule=schedule,
                    exchange=self.exchange,
                    check=world.check_agreement,
                    gather=world.gather_texts,
                    clock=clock,
                    branch=functools.partial(branches.of, name),
                    device=world.device,
                    events=world.events,
                    share=shares.get(name),
                )
                runtime = DenoiserRuntime(context, lanes=len(self._axis.ranks))
                self._runtimes[name] = runtime
                if mesh.guidance > 1:
                    self._guidances.append(Guidance(runtime, self._axis, mesh.guidance))
            if decoders and world.rank is not None and world.size > 1:
                self._everyone = world.exchange([range(world.size)])
                for name, part in decoders.items():
                    self._decodings[name] = Decoding(name, part, self._everyone, world.size)
        except BaseException:
            self.detach()
            raise

    @property
    def _exchanges(self) -> tuple[Exchange, ...]:
        return self.exchange, self._axis, self._everyone

    @property
    def bytes_sent(self) -> int:
        """By this process in this generation."""
        return sum(exchange.traffic.bytes_sent for exchange in self._exchanges)

    @property
    def seconds_waited(self) -> float:
        """For other ranks in this generation."""
        return sum(exchange.traffic.seconds_waited for exchange in self._exchanges)

    @property
    def is_shared(self) -> bool:
        """Whether groups have computed at the same time in this generation, or have not computed at all yet."""
        counts = [guidance.counts for guidance in self._guidances]
        return any(count.is_shared for count in counts) or not any(count.whole for count in counts)

    def denoise(self, name: str, call: Call) -> Any:
        """The result of a call of a denoiser."""
        return self._runtimes[name].denoise(call)

    def whole(self, name: str, call: Call) -> Any:
        """The ordinary result of a denoiser's call that belongs to no generation."""
        return self._runtimes[name].whole(call)

    def decode(self, name: str, call: Call) -> Any:
        """The result of a part's `decode`; in one process there is nobody to share it with."""
        decoding = self._decodings.get(name)
        return call() if decoding is None else decoding.decode(call)

    def begin_generation(self) -> None:
        """Count anew."""
        for exchange in self._exchanges:
            exchange.traffic.bytes_sent = 0
            exchange.traffic.seconds_waited = 0.0

    def is_computing(self, name: str) -> bool:
        """Whether a call of a denoiser is under way in this thread."""
        return self._runtimes[name].context.units.is_walking

    def end(self) -> None:
        """The generation is over: free what it held."""
        for runtime in self._runtimes.values():
            runtime.end()

    def forget(self) -> None:
        """The generation is broken off: free what it held, without waiting for anything."""
        for runtime in self._runtimes.values():
            runtime.forget()

    def compare_again(self) -> None:
        """At the end of a generation, before it is ended.

        Raises:
            RankMismatchError: the denoisers are not the same on all ranks any more.
        """
        for runtime in self._runtimes.values():
            runtime.compare_again()

    def check_numbers(self) -> None:
        """Look at what the generation has come to, before it is ended.

        Raises:
            NotANumberError: rounds have made what is no number.
        """
        for runtime in self._runtimes.values():
            runtime.check_numbers()

    def reports(self) -> tuple[DenoiserReport, ...]:
        """What the denoisers did in this generation so far."""
        return tuple(runtime.report() for runtime in self._runtimes.values())

    def counts(self) -> dict[str, Counts]:
        """What each denoiser counts while this generation runs; other records in the next."""
        return {name: runtime.counts for name, runtime in self._runtimes.items()}

    def detach(self) -> None:
        """Leave the denoisers as they were."""
        with contextlib.ExitStack() as stack:  # whatever of it fails, the rest is done
            for exchange in self._exchanges:
                stack.callback(exchange.close)
            for guidance in self._guidances:
                stack.callback(guidance.detach)
            for runtime in self._runtimes.values():
                stack.callback(runtime.detach)
