"""The live edges of one stream on their way between processes, moment by moment."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from asyncdiff.denoiser.graph import Edge
from asyncdiff.exchange.line import Pending, Transfer
from asyncdiff.exchange.store import EdgeStore
from asyncdiff.exchange.team import Team
from asyncdiff.plan.division import Division
from asyncdiff.plan.moments import Moment, StepOrder
from asyncdiff.plan.routing import Message
from asyncdiff.plan.storage import Span


class DistributedChannel:
    """Takes this rank's part in every moment of a round, in order; waits for what came when it is read."""

    def __init__(self, team: Team, division: Division, device: torch.device) -> None:
        self._team = team
        self._division = division
        self._device = device
        self._storage = division.storage_of(team.rank)
        self._store = EdgeStore(self._storage, division.schedule.kept_versions, device)
        self.stores = {team.rank: self._store}
        self._own = division.own_reads_of(team.rank)
        # By the message's identity: an order gives the same ones every time.
        self._outgoing: dict[int, _Parcel] = {}
        self._incoming: dict[int, tuple[tuple[Span, ...], int, str]] = {}
        self._made: dict[Edge, Tensor] = {}
        self._order = StepOrder(())
        self._waiting: list[Moment] = []
        self._receiving: list[Pending] = []
        self._received: list[Edge] = []

    def start_round(self, order: StepOrder) -> None:
        self._order = order
        self._made, self._receiving, self._received = {}, [], []
        self._waiting = [moment for moment in order.moments if moment.messages]

    def made(self, rank: int, edge: Edge, tensor: Tensor) -> None:
        self._made[edge] = tensor
        while self._waiting and self._waiting[0] in self._order.early and self._is_made(self._waiting[0]):
            self._begin(self._waiting.pop(0))

    def exchange(self, moment: Moment) -> None:
        if moment in self._waiting:
            self._waiting.remove(moment)
            self._begin(moment)

    def end_round(self, version: int) -> None:
        received, receiving = self._received, self._receiving
        if not self._order.kept:
            return
        for edge in self._own & self._order.kept:
            self._store.put(edge, self._made[edge])
        self._store.arrive([version], received, functools.partial(_wait_for_all, receiving))

    def close(self) -> None:
        self._store.settle()
        for parcel in self._outgoing.values():
            parcel.finish()
        self._made, self._receiving = {}, []

    def _is_made(self, moment: Moment) -> bool:
        """Whether all is there that this rank sends in a moment."""
        return all(
            edge in self._made
            for message in moment.messages
            if message.source == self._team.rank
            for edge in message.edges
        )

    def _begin(self, moment: Moment) -> None:
        """Take this rank's part in a moment."""
        batch: list[Transfer] = []
        sent = []
        for message in moment.messages:
            if message.source == self._team.rank:
                parcel = self._sent(message)
                parcel.pack(self._made)
                sent.append(parcel)
                batch += parcel.transfers
            elif message.reader == self._team.rank:
                spans, peer, what = self._awaited(message)
                batch += [Transfer(False, peer, self._store.arriving(span), what) for span in spans]
                self._received += message.edges
        pending = self._team.start(batch)
        self._receiving.append(pending)
        for parcel in sent:
            parcel.sending = pending

    def _sent(self, message: Message) -> "_Parcel":
        if id(message) not in self._outgoing:
            self._outgoing[id(message)] = _Parcel(message, self._division, self._team, self._device)
        return self._outgoing[id(message)]

    def _awaited(self, message: Message) -> tuple[tuple[Span, ...], int, str]:
        """Where a message is received, from which rank of the world, and what it is called."""
        if id(message) not in self._incoming:
            spans = self._storage.joined(message.edges)
            self._incoming[id(message)] = (
                spans,
                self._team.members[message.source],
                description(message, self._division, self._team),
            )
        return self._incoming[id(message)]


class _Parcel:
    """The standing buffers of a message that is sent, laid out as its reader lays it out."""

    def __init__(self, message: Message, division: Division, team: Team, device: torch.device) -> None:
        self.sending: Pending | None = None
        storage = division.storage_of(message.reader)
        what, peer = description(message, division, team), team.members[message.reader]
        self.transfers = []
        self._views: dict[Edge, Tensor] = {}
        for span in storage.joined(message.edges):
            part = torch.empty(span.stop - span.start, dtype=span.dtype, device=device)
            self.transfers.append(Transfer(True, peer, part, what))
            for edge in message.edges:
                own = storage.spans[edge]
                if own.dtype == span.dtype and span.start <= own.start and own.stop <= span.stop:
                    flat = part[own.start - span.start : own.stop - span.start]
                    self._views[edge] = storage.view(edge, flat)

    def pack(self, made: dict[Edge, Tensor]) -> None:
        """Copy the edges in, once what was sent last is gone."""
        self.finish()
        for edge, view in self._views.items():
            view.copy_(made[edge])

    def finish(self) -> None:
        """Wait until what was sent last is gone."""
        sending, self.sending = self.sending, None
        if sending is not None:
            sending.wait_until_sent()


def _wait_for_all(receiving: Sequence[Pending]) -> None:
    for pending in receiving:
        pending.wait_until_received()


def description(message: Message, division: Division, team: Team) -> str:
    """Names a message in an error."""
    names = dict.fromkeys(division.graph.units[edge.unit].name for edge in message.edges)
    source, reader = team.members[message.source], team.members[message.reader]
    return f"the live edges {', '.join(names)} from rank {source} to rank {reader}"
