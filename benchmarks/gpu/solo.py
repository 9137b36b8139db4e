"""One rank of several, alone in a process: what the others would send is taken from what they made before."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from asyncdiff.denoiser.graph import Edge
from asyncdiff.exchange.groups import Teams
from asyncdiff.exchange.local import LocalExchange
from asyncdiff.exchange.store import EdgeStore
from asyncdiff.exchange.world import LocalWorld
from asyncdiff.hooks import intercept_call
from asyncdiff.plan.division import Division
from asyncdiff.plan.moments import Moment, StepOrder
from asyncdiff.runtime.attachment import Attachment
from asyncdiff.runtime.branches import Branches
from asyncdiff.runtime.clock import Clock
from asyncdiff.settings import Settings
from benchmarks.gpu.loop import Loop


class SoloWorld(LocalWorld):
    """A rank's view of its world; which rank it is may be changed between generations.

    Attributes:
        on_components_done: called when the component of a round has run, before the denoiser's last layers do.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        super().__init__(size, device)
        self.on_components_done: Callable[[], None] = _nothing
        self._exchange = SoloExchange(self)
        self._last: SoloChannel | None = None

    def become(self, rank: int) -> None:
        """From the next generation on this process is another rank."""
        self._exchange.ranks = (rank,)

    @property
    def last(self) -> "SoloChannel":
        """The channel of the last generation that had any rounds.

        Raises:
            RuntimeError: none had.
        """
        if self._last is None:
            raise RuntimeError("no generation has come to a round")
        return self._last

    @last.setter
    def last(self, channel: "SoloChannel") -> None:
        self._last = channel

    def exchange(self, teams: Teams) -> "SoloExchange":
        del teams  # all ranks are one team
        return self._exchange


class SoloExchange(LocalExchange):
    """Nobody is there to exchange with: predictions are taken to be what they were."""

    def __init__(self, world: SoloWorld) -> None:
        super().__init__(world_size=1)
        self._world = world

    def open(self, division: Division, device: torch.device) -> "SoloChannel":  # type: ignore[override]
        self._world.last = SoloChannel(division, device, self.ranks[0], self._world.on_components_done)
        return self._world.last


class SoloChannel:
    """The live edges of one rank: its own as it makes them, the others' as they were when they were made last.

    What the rank sends is copied into standing buffers, as it would be in a run. What it receives lies in the buffer
    already: two versions take turns in it.

    Attributes:
        division: the divided denoiser.
        rank: the rank.
    """

    def __init__(self, division: Division, device: torch.device, rank: int, on_end: Callable[[], None]) -> None:
        self.division = division
        self.rank = rank
        self._on_end = on_end
        self._store = EdgeStore(division.storage_of(rank), division.schedule.kept_versions, device, division.packings)
        self.stores: Mapping[int, EdgeStore] = {rank: self._store}
        self._held = division.reads_of(rank)
        self._own = division.own_reads_of(rank)
        self._order = StepOrder(())
        self._made: dict[Edge, Tensor] = {}
        self._sent: dict[tuple[int, Edge], Tensor] = {}
        self._received: list[Edge] = []
        self._is_first = True

    def keep(self, rank: int, edge: Edge, tensor: Tensor) -> None:
        del rank  # there is one
        if edge in self._held:
            self._store.put(edge, tensor)

    def end_in_full(self, versions: Sequence[int]) -> None:
        self._store.arrive(versions)

    def start_round(self, order: StepOrder) -> None:
        self._order, self._made, self._received = order, {}, []

    def made(self, rank: int, edge: Edge, tensor: Tensor) -> None:
        del rank  # there is one
        self._made[edge] = tensor

    def exchange(self, moment: Moment) -> None:
        for message in moment.messages:
            if message.source == self.rank:
                for edge in message.edges:
                    self._send(message.reader, edge)
            elif message.reader == self.rank:
                self._received += message.edges

    def end_round(self, version: int) -> None:
        if self._order.kept:
            for edge in self._own & self._order.kept:
                self._store.put(edge, self._made[edge])
            if self._is_first:
                for edge in self._received:
                    self._store.put(edge, self._store.newest(edge, version - 1))
            self._is_first = False
            self._store.arrive([version], self._received)
        self._on_end()

    def close(self) -> None:
        self._made = {}

    def _send(self, reader: int, edge: Edge) -> None:
        made = self._made[edge]
        if (reader, edge) not in self._sent:
            self._sent[reader, edge] = torch.empty_like(made)
        self._sent[reader, edge].copy_(made)


@contextmanager
def attached(loop: Loop, settings: Settings, world: SoloWorld) -> Iterator[None]:
    """The loop's denoiser divided, for one rank of the world at a time."""
    part, denoiser = loop.subject.part, loop.denoiser
    clock, branches = Clock(loop), Branches({part: denoiser})
    try:
        mesh = settings.mesh(world.size)
        attachment = Attachment({part: denoiser}, {}, {}, settings, mesh, world, clock, branches)
        undo = intercept_call(denoiser, partial(attachment.denoise, part))
        try:
            yield
        finally:
            undo()
            attachment.detach()
    finally:
        branches.close()
        clock.close()


def _nothing() -> None:
    return None
