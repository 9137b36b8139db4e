"""What a chained step hands on, from link to link: among processes, and in one."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from asyncdiff.denoiser.graph import Edge
from asyncdiff.denoiser.trace import Leaf
from asyncdiff.exchange.channel import description
from asyncdiff.exchange.line import Pending, Transfer
from asyncdiff.exchange.protocol import Traffic
from asyncdiff.exchange.team import Team
from asyncdiff.plan.chain import Link
from asyncdiff.plan.division import Division
from asyncdiff.plan.routing import Message
from asyncdiff.plan.storage import Storage, lay_out


class DistributedRelay:
    """One process's part in a chained step. All links are begun in order, on every rank, each as one batch."""

    def __init__(self, team: Team, division: Division, links: Sequence[Link], device: torch.device) -> None:
        self._team = team
        self._division = division
        self._links = links
        self._device = device
        self._link_of = {unit: number for number, link in enumerate(links) for unit in link.units}
        self._made: dict[Edge, Tensor] = {}
        self._pending: list[Pending] = []
        self._received: dict[Edge, tuple[Storage, Mapping[torch.dtype, Tensor]]] = {}

    def reach(self, rank: int, unit: int) -> None:
        del rank
        while len(self._pending) < len(self._links) and self._links[len(self._pending)].units[-1] < unit:
            self._begin_next()

    def made(self, rank: int, edge: Edge, tensor: Tensor) -> None:
        del rank
        self._made[edge] = tensor

    def read(self, rank: int, edge: Edge) -> Tensor:
        del rank
        number = self._link_of[edge.unit]
        while len(self._pending) <= number:
            self._begin_next()
        self._pending[number].wait_until_received()
        storage, flat = self._received[edge]
        span = storage.spans[edge]
        return _as_recorded(storage.leaves[edge], storage.view(edge, flat[span.dtype][span.start : span.stop]))

    def finish(self) -> None:
        while len(self._pending) < len(self._links):
            self._begin_next()
        for pending in self._pending:
            pending.wait()

    def _begin_next(self) -> None:
        """Take this rank's part in the exchange after the next link."""
        batch: list[Transfer] = []
        for message in self._links[len(self._pending)].messages:
            if self._team.rank not in (message.source, message.reader):
                continue
            storage = lay_out(self._division.graph, [message.edges])
            flat = {dtype: torch.empty(size, dtype=dtype, device=self._device) for dtype, size in storage.sizes.items()}
            is_sent = message.source == self._team.rank
            for edge in message.edges:
                if is_sent:
                    span = storage.spans[edge]
                    storage.view(edge, flat[span.dtype][span.start : span.stop]).copy_(self._made[edge])
                else:
                    self._received[edge] = storage, flat
            batch += self._transfers(message, flat, is_sent)
        self._pending.append(self._team.start(batch))

    def _transfers(self, message: Message, flat: Mapping[torch.dtype, Tensor], is_sent: bool) -> list[Transfer]:
        peer = self._team.members[message.reader if is_sent else message.source]
        what = description(message, self._division, self._team)
        return [Transfer(is_sent, peer, tensor, what) for tensor in flat.values() if tensor.numel()]


class LocalRelay:
    """All ranks in this process: what one has made is there for those that it is sent to, and for no others."""

    def __init__(self, links: Sequence[Link], traffic: Traffic) -> None:
        self._sent = {
            (message.reader, edge): message.source
            for link in links
            for message in link.messages
            for edge in message.edges
        }
        self._made: dict[tuple[int, Edge], Tensor] = {}
        self._traffic = traffic

    def reach(self, rank: int, unit: int) -> None:
        del rank, unit  # nothing moves

    def made(self, rank: int, edge: Edge, tensor: Tensor) -> None:
        self._made[rank, edge] = tensor

    def read(self, rank: int, edge: Edge) -> Tensor:
        return self._made[self._sent[rank, edge], edge]

    def finish(self) -> None:
        self._traffic.bytes_sent += sum(self._made[source, edge].nbytes for (_, edge), source in self._sent.items())


def _as_recorded(leaf: Leaf, tensor: Tensor) -> Tensor:
    """A tensor in the memory order that its maker gave it: kernels may round otherwise in another one."""
    if tensor.stride() == leaf.stride or 0 in leaf.stride:
        return tensor
    return torch.empty_strided(leaf.shape, leaf.stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
