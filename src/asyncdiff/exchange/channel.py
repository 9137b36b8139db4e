"""The live edges of one stream on their way between processes, point to point, one packed message per pair of ranks."""

import functools
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from asyncdiff.denoiser.graph import Edge, Graph
from asyncdiff.errors import ExchangeError
from asyncdiff.exchange.packing import pack, view_of
from asyncdiff.exchange.store import EdgeStore
from asyncdiff.exchange.team import Team
from asyncdiff.plan.division import Division
from asyncdiff.plan.routing import Message

_ALIGNMENT = 64


class _Parcel:
    """A message's standing buffer and where each edge lies in it."""

    def __init__(
        self, graph: Graph, message: Message, members: Sequence[int], device: torch.device, copies: int
    ) -> None:
        self.message = message
        names = [graph.units[edge.unit].name for edge in message.edges]
        self.description = (
            f"the live edges {', '.join(dict.fromkeys(names))} from rank {members[message.source]} "
            f"to rank {members[message.reader]}"
        )
        self.parts: dict[Edge, slice] = {}
        self.leaves = {edge: graph.units[edge.unit].outputs[edge.leaf] for edge in message.edges}
        end = 0
        for edge, leaf in self.leaves.items():
            self.parts[edge] = slice(end, end + leaf.bytes)
            end += -(-leaf.bytes // _ALIGNMENT) * _ALIGNMENT
        self.buffers = [torch.empty(end, dtype=torch.uint8, device=device) for _ in range(copies)]
        self.works: list[dist.Work | None] = [None] * copies
        self.missing: set[Edge] = set()

    def tensor(self, edge: Edge, copy: int) -> Tensor:
        leaf = self.leaves[edge]
        if leaf.dtype is None:
            raise ExchangeError(f"edge {edge} is no tensor")
        return view_of(self.buffers[copy][self.parts[edge]], leaf.dtype, leaf.shape, leaf.stride)


class DistributedChannel:
    """Sends every message as soon as its last edge exists; waits for one at the first use of its edges."""

    def __init__(self, team: Team, division: Division) -> None:
        rank, device = team.rank, team.operations.device
        graph, versions = division.graph, division.schedule.kept_versions
        self._store = EdgeStore(versions)
        self.stores = {rank: self._store}
        self._team = team
        self._own = division.own_reads_of(rank)
        self._made: dict[Edge, Tensor] = {}
        # One more buffer than versions that are read: the version that arrives meanwhile.
        self._copies = versions + 1
        sent = [message for message in division.messages if message.source == rank]
        awaited = [message for message in division.messages if message.reader == rank]
        self._outgoing = [_Parcel(graph, message, team.members, device, 1) for message in sent]
        self._incoming = [_Parcel(graph, message, team.members, device, self._copies) for message in awaited]
        self._tags = {id(message): tag for tag, message in enumerate(division.messages)}
        self._copy = 0

    def start_round(self) -> None:
        self._copy = (self._copy + 1) % self._copies
        self._made = {}
        for parcel in self._outgoing:
            parcel.missing = set(parcel.parts)
        for parcel in self._incoming:
            self._finish(parcel, self._copy)
            parcel.works[self._copy] = self._start(parcel, dist.irecv, parcel.message.source, self._copy)

    def made(self, rank: int, edge: Edge, tensor: Tensor) -> None:
        if edge in self._own:
            self._made[edge] = tensor
        for parcel in self._outgoing:
            if edge not in parcel.missing:
                continue
            self._finish(parcel, 0)
            pack(tensor, parcel.buffers[0][parcel.parts[edge]])
            parcel.missing.discard(edge)
            if not parcel.missing:
                parcel.works[0] = self._start(parcel, dist.isend, parcel.message.reader, 0)
                self._team.operations.traffic.bytes_sent += parcel.buffers[0].nbytes

    def end_round(self, version: int) -> None:
        for parcel in self._incoming:
            for edge in parcel.parts:
                self._store.put(edge, version, functools.partial(self._receive, parcel, edge, self._copy))
        for edge, tensor in self._made.items():
            self._store.put(edge, version, tensor)

    def close(self) -> None:
        for parcel in (*self._incoming, *self._outgoing):
            for copy in range(len(parcel.works)):
                self._finish(parcel, copy)

    def _receive(self, parcel: _Parcel, edge: Edge, copy: int) -> Tensor:
        """A live edge that may still be on its way."""
        self._finish(parcel, copy)
        return parcel.tensor(edge, copy)

    def _start(self, parcel: _Parcel, operation: object, peer: int, copy: int) -> dist.Work:
        message = parcel.message
        group = self._team.upward if message.source < message.reader else self._team.downward
        return self._team.operations.start(
            parcel.description,
            operation,
            parcel.buffers[copy],
            self._team.members[peer],
            group=group,
            tag=self._tags[id(message)],
        )

    def _finish(self, parcel: _Parcel, copy: int) -> None:
        work, parcel.works[copy] = parcel.works[copy], None
        if work is not None:
            self._team.operations.wait(work, parcel.description)
