"""The live edges of one stream on their way between processes, moment by moment."""

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from asyncdiff.denoiser.graph import Edge
from asyncdiff.exchange.line import Pending, Transfer
from asyncdiff.exchange.store import EdgeStore
from asyncdiff.exchange.team import Team
from asyncdiff.plan.division import Division
from asyncdiff.plan.moments import Moment, StepOrder
from asyncdiff.plan.packing import Packed
from asyncdiff.plan.routing import Message
from asyncdiff.plan.storage import Span, Storage


class DistributedChannel:
    """Takes this rank's part in every moment of a round, in order; waits for what came when it is read."""

    def __init__(self, team: Team, division: Division, device: torch.device) -> None:
        self._team = team
        self._division = division
        self._device = device
        self._storage = division.storage_of(team.rank)
        packings = division.packings
        self._store = EdgeStore(self._storage, division.schedule.kept_versions, device, packings)
        self.stores = {team.rank: self._store}
        self._held = division.reads_of(team.rank)
        # Differences are taken to what the readers have, which this rank must know then.
        self._known = division.sent_by(team.rank) if packings else frozenset[Edge]()
        self._sent = EdgeStore(division.storage_of_sent(team.rank), 1, device, packings) if packings else None
        self._own = division.own_reads_of(team.rank)
        # By the message's identity: an order gives the same ones every time.
        self._outgoing: dict[int, _Parcel] = {}
        self._incoming: dict[int, tuple[tuple[Span, ...], int, str]] = {}
        self._made: dict[Edge, Tensor] = {}
        self._order = StepOrder(())
        self._waiting: list[Moment] = []
        self._receiving: list[Pending] = []
        self._received: list[Edge] = []

    def keep(self, rank: int, edge: Edge, tensor: Tensor) -> None:
        if edge in self._held:
            self._store.put(edge, tensor)
        self._note(edge, tensor)

    def end_in_full(self, versions: Sequence[int]) -> None:
        for store in (self._store, self._sent):
            if store is not None:
                store.arrive(versions)

    def start_round(self, order: StepOrder) -> None:
        self._order = order
        self._made, self._receiving, self._received = {}, [], []
        self._waiting = [moment for moment in order.moments if moment.messages]

    def made(self, rank: int, edge: Edge, tensor: Tensor) -> None:
        self._made[edge] = tensor
        self._note(edge, tensor)
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
        if self._sent is not None:
            self._sent.arrive([version])
        self._store.arrive([version], received, functools.partial(_wait_for_all, receiving))

    def close(self) -> None:
        self._store.settle()
        for parcel in self._outgoing.values():
            parcel.finish()
        self._made, self._receiving = {}, []

    def _note(self, edge: Edge, tensor: Tensor) -> None:
        """Note what others will have of an edge, where that must be known."""
        if self._sent is not None and edge in self._known:
            self._sent.put(edge, tensor)

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
                parcel = self._parcel(message)
                parcel.pack(self._made, self._sent)
                sent.append(parcel)
                batch += parcel.transfers
            elif message.reader == self._team.rank:
                spans, peer, what = self._awaited(message)
                batch += [Transfer(False, peer, part, what) for span in spans for part in self._store.arriving(span)]
                self._received += message.edges
        pending = self._team.start(batch)
        self._receiving.append(pending)
        for parcel in sent:
            parcel.sending = pending

    def _parcel(self, message: Message) -> "_Parcel":
        if id(message) not in self._outgoing:
            known = self._division.storage_of_sent(self._team.rank) if self._sent is not None else None
            self._outgoing[id(message)] = _Parcel(message, self._division, self._team, self._device, known)
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

    def __init__(
        self, message: Message, division: Division, team: Team, device: torch.device, known: Storage | None
    ) -> None:
        self.sending: Pending | None = None
        storage = division.storage_of(message.reader)
        what, peer = description(message, division, team), team.members[message.reader]
        self.transfers: list[Transfer] = []
        self._views: dict[Edge, Tensor] = {}
        self._packed: list[tuple[Span, Packed]] = []
        for span in storage.joined(message.edges):
            packing, size = division.packings.get(span.dtype), span.stop - span.start
            inside = {
                edge: (own.start - span.start, own.stop - span.start)
                for edge, own in ((edge, storage.spans[edge]) for edge in message.edges)
                if own.dtype == span.dtype and span.start <= own.start and own.stop <= span.stop
            }
            if packing is None:
                part = torch.empty(size, dtype=span.dtype, device=device)
                self._views |= {edge: storage.view(edge, part[slice(*place)]) for edge, place in inside.items()}
                self.transfers.append(Transfer(True, peer, part, what))
            else:
                room = packing.room(size, device)
                for start, stop, at in _alike(inside, {} if known is None else known.spans):
                    self._packed.append((Span(span.dtype, at, at + stop - start), packing.part(room, start, stop)))
                self.transfers += [Transfer(True, peer, part, what) for part in room]

    def pack(self, made: Mapping[Edge, Tensor], known: EdgeStore | None) -> None:
        """Copy the edges in, once what was sent last is gone.

        Args:
            made: the edges.
            known: how they differ from what their readers have, where that is what is sent.
        """
        self.finish()
        for edge, view in self._views.items():
            view.copy_(made[edge])
        for span, packed in self._packed:
            for part, source in zip(packed, () if known is None else known.arriving(span), strict=True):
                part.copy_(source)

    def finish(self) -> None:
        """Wait until what was sent last is gone."""
        sending, self.sending = self.sending, None
        if sending is not None:
            sending.wait_until_sent()


def _alike(inside: Mapping[Edge, tuple[int, int]], known: Mapping[Edge, Span]) -> list[tuple[int, int, int]]:
    """Parts of a parcel that lie there as they lie in what is known, as long as can be: begin, end, begin there."""
    found: list[tuple[int, int, int]] = []
    for edge, (start, stop) in sorted(inside.items(), key=lambda item: item[1]):
        at = known[edge].start
        if found and found[-1][1] == start and at - found[-1][2] == start - found[-1][0]:
            start, at = found.pop()[::2]
        found.append((start, stop, at))
    return found


def _wait_for_all(receiving: Sequence[Pending]) -> None:
    for pending in receiving:
        pending.wait_until_received()


def description(message: Message, division: Division, team: Team) -> str:
    """Names a message in an error."""
    names = dict.fromkeys(division.graph.units[edge.unit].name for edge in message.edges)
    source, reader = team.members[message.source], team.members[message.reader]
    return f"the live edges {', '.join(names)} from rank {source} to rank {reader}"
