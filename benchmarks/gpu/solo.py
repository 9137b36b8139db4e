"""One rank of several, alone in a process: it does all that it would do in a run, and nobody is there.

What the others would send is taken to be what they have made before, or what this rank makes. With a line, a
communicator of this rank alone, all that it sends and receives is started on it as in a run, by NCCL for instance, and
goes from this device to itself.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from asyncdiff.events import Events
from asyncdiff.exchange.channel import DistributedChannel
from asyncdiff.exchange.distributed import DistributedExchange
from asyncdiff.exchange.fault import Fault
from asyncdiff.exchange.groups import Groups, Teams
from asyncdiff.exchange.line import Line, Pending, Transfer
from asyncdiff.exchange.local import LocalExchange
from asyncdiff.exchange.protocol import Sharing, Traffic
from asyncdiff.exchange.team import Team
from asyncdiff.exchange.world import LocalWorld
from asyncdiff.hooks import intercept_call
from asyncdiff.plan.division import Division
from asyncdiff.plan.moments import Moment
from asyncdiff.runtime.attachment import Attachment
from asyncdiff.runtime.branches import Branches
from asyncdiff.runtime.clock import Clock
from asyncdiff.settings import Settings
from benchmarks.gpu.loop import Loop

TIMEOUT = 15.0
SECONDS_OF_NCCL = 4.0  # until its communicator is there


class SoloWorld(LocalWorld):
    """A rank's view of its world; which rank it is may be changed between generations.

    Attributes:
        line: with it, what moves is started on it.
        on_components_done: called when the component of a round has run, before the denoiser's last layers do.
        on_shared: called whenever results, or keys, have been exchanged that are waited for at once.
    """

    def __init__(self, size: int, device: torch.device, line: Line | None = None) -> None:
        super().__init__(size, device)
        self.line = line
        self.on_components_done: Callable[[], None] = _nothing
        self.on_shared: Callable[[], None] = _nothing
        self._exchange = SoloExchange(self)
        self._last: SoloChannel | None = None

    def become(self, rank: int) -> None:
        """From the next generation on this process is another rank."""
        self._exchange.become(rank)

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
    """The exchange of a distributed run, of one rank that is alone."""

    def __init__(self, world: SoloWorld) -> None:
        super().__init__(world_size=1)
        self._world = world
        self.become(0)

    def become(self, rank: int) -> None:
        """From now on it is another rank's."""
        self.ranks = (rank,)
        self._edges = self._team(rank, is_filled=False)
        self._results = DistributedExchange(self._team(rank, is_filled=True))

    def _team(self, rank: int, is_filled: bool) -> Team:
        line: Any = SoloLine(self._world.line, is_filled)
        nobody: Any = None  # is talked to
        return Team(tuple(range(self._world.size)), rank, line, nobody, self.traffic)

    def open(self, division: Division, device: torch.device) -> "SoloChannel":  # type: ignore[override]
        self._world.last = SoloChannel(self._edges, division, device, self._world.on_components_done)
        return self._world.last

    def share(  # type: ignore[override]
        self, results: Mapping[int, Sequence[Tensor]], moment: Moment, what: str = ""
    ) -> Sharing:
        sharing = self._results.share(results, moment, what)
        self._world.on_shared()
        return sharing

    def deal(  # type: ignore[override]
        self, given: Mapping[int, Sequence[Tensor]], rooms: Mapping[int, Sequence[Tensor]], what: str
    ) -> Sharing:
        sharing = self._results.deal(given, rooms, what)
        self._world.on_shared()
        return sharing


class SoloChannel(DistributedChannel):
    """That of a distributed run, which tells when the rank's component is done.

    What is received lies in its buffers already: the versions of two steps take turns in them.

    Attributes:
        division: the divided denoiser.
        rank: the rank.
    """

    def __init__(self, team: Team, division: Division, device: torch.device, on_end: Callable[[], None]) -> None:
        super().__init__(team, division, device)
        self.division = division
        self.rank = team.rank
        self._on_end = on_end

    @property
    def held_bytes(self) -> int:
        """The memory that versions of live edges take, those of the readers that this rank must know included."""
        return sum(store.bytes for store in (self._store, self._sent) if store is not None)

    def end_round(self, version: int) -> None:
        super().end_round(version)
        self._on_end()


class SoloLine:
    """Where nobody is at the other end: what is sent goes nowhere, and what is received was there before.

    Args:
        line: with it both ends are started on it, one of them in vain: of what is sent that is room for it, and of what
            is received its own place.
        is_filled: whether there is nothing before in what is received, so that something is put there.
    """

    def __init__(self, line: Line | None, is_filled: bool) -> None:
        self._line = line
        self._is_filled = is_filled
        self._nowhere = torch.empty(0, dtype=torch.uint8)

    def start(self, batch: Sequence[Transfer], traffic: Traffic) -> "Pending | _Done":
        """Take the place of `Line.start`."""
        if self._is_filled:
            sent = [transfer.tensor for transfer in batch if transfer.is_sent]
            for number, transfer in enumerate(transfer for transfer in batch if not transfer.is_sent):
                _fill(transfer.tensor, sent[number % len(sent)] if sent else None)
        if self._line is None or not batch:
            traffic.bytes_sent += sum(transfer.tensor.nbytes for transfer in batch if transfer.is_sent)
            return _Done()
        return self._line.start([end for transfer in batch for end in self._both_ends(transfer)], traffic)

    def _both_ends(self, transfer: Transfer) -> tuple[Transfer, Transfer]:
        own = transfer._replace(peer=0)
        place = self._room(transfer.tensor) if transfer.is_sent else transfer.tensor
        return own, Transfer(not transfer.is_sent, 0, place, transfer.what)

    def _room(self, like: Tensor) -> Tensor:
        if self._nowhere.numel() < like.nbytes:
            self._nowhere = torch.empty(like.nbytes, dtype=torch.uint8, device=like.device)
        return self._nowhere[: like.nbytes]


class _Done:
    """A batch on its way that is there already."""

    def wait(self) -> None:
        return None

    def wait_until_sent(self) -> None:
        return None

    def wait_until_received(self) -> None:
        return None


def _fill(room: Tensor, numbers: Tensor | None) -> None:
    """Put numbers into it, which may be fewer or more."""
    if numbers is None or not numbers.numel():
        room.normal_()
        return
    flat = numbers.reshape(-1)
    while flat.numel() < room.numel():
        flat = flat.repeat(2)
    room.copy_(flat[: room.numel()].view_as(room))


@contextmanager
def attached(loop: Loop, settings: Settings, world: LocalWorld) -> Iterator[None]:
    """The loop's denoiser divided, for all ranks of the world, or one at a time."""
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


@contextmanager
def line_of_one(device: torch.device) -> Iterator[Line]:
    """A communicator of NCCL's with this process alone in it."""
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("nccl", store=store, rank=0, world_size=1, device_id=device)
    try:
        fault = Fault(store, "a fault", 0, [0])
        line = Line(Groups(None, TIMEOUT), device, "nccl", TIMEOUT, fault, Events(device))
        try:
            yield line
        finally:
            line.close()
    finally:
        dist.destroy_process_group()


def _nothing() -> None:
    return None
