"""The exchange among the ranks of a team, each a process of its own."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from asyncdiff.exchange.agreement import Statements, compare
from asyncdiff.exchange.channel import DistributedChannel
from asyncdiff.exchange.line import Pending, Transfer
from asyncdiff.exchange.relay import DistributedRelay
from asyncdiff.exchange.team import Team
from asyncdiff.plan.chain import Link
from asyncdiff.plan.division import Division
from asyncdiff.plan.moments import Moment


class DistributedExchange:
    """One rank of a run on `torch.distributed`, as one of a team, in which ranks are counted from 0."""

    def __init__(self, team: Team) -> None:
        self.ranks: Sequence[int] = (team.rank,)
        self.traffic = team.traffic
        self._team = team

    def open(self, division: Division, device: torch.device) -> DistributedChannel:
        return DistributedChannel(self._team, division, device)

    def relay(self, division: Division, links: Sequence[Link], device: torch.device) -> DistributedRelay:
        return DistributedRelay(self._team, division, links, device)

    def share(
        self, results: Mapping[int, Sequence[Tensor]], moment: Moment, what: str = "the noise prediction of step"
    ) -> "_Sharing":
        team, shared, batch = self._team, dict[int, list[Tensor]](), list[Transfer]()
        readers = range(len(team.members)) if moment.readers is None else moment.readers
        for key, source in moment.results:
            name = f"{what} {key} from rank {team.members[source]}"
            shared[key] = []
            for tensor in results[key]:
                if source == team.rank:
                    held = tensor.contiguous()
                    peers = [team.members[reader] for reader in readers if reader != source]
                    batch += [Transfer(True, peer, held, name) for peer in peers]
                else:
                    held = torch.empty_like(tensor, memory_format=torch.contiguous_format)
                    batch.append(Transfer(False, team.members[source], held, name))
                shared[key].append(held)
        return _Sharing(team.start(batch), shared)

    def deal(
        self, given: Mapping[int, Sequence[Tensor]], rooms: Mapping[int, Sequence[Tensor]], what: str
    ) -> "_Sharing":
        members, own = self._team.members, self._team.rank
        batch = [
            Transfer(True, members[reader], tensor.contiguous(), f"{what} {own} from rank {members[own]}")
            for reader, tensors in given.items()
            for tensor in tensors
        ]
        batch += [
            Transfer(False, members[source], room, f"{what} {source} from rank {members[source]}")
            for source, tensors in rooms.items()
            for room in tensors
        ]
        return _Sharing(self._team.start(batch), {source: list(tensors) for source, tensors in rooms.items()})

    def check_agreement(self, statements: Statements, what: str) -> None:
        compare(statements, self._team.talk, self._team.line.rank, self._team.members, what)

    def remark(self, text: str) -> None:
        self._team.talk.remark(text)

    def agree(self, mine: bool, what: str) -> bool:
        return all(bool(other) for other in self._team.talk.gather(torch.tensor([mine], dtype=torch.uint8), what))

    def close(self) -> None:
        self._team.talk.close()


class _Sharing:
    """Results on their way to every rank of the team."""

    def __init__(self, pending: Pending, shared: dict[int, list[Tensor]]) -> None:
        self._pending = pending
        self._shared = shared

    def finish(self) -> dict[int, list[Tensor]]:
        self._pending.wait()
        return self._shared
