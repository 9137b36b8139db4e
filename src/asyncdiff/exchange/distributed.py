"""The exchange among the ranks of a team, each a process of its own."""

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from asyncdiff.errors import RankMismatchError
from asyncdiff.exchange.channel import DistributedChannel
from asyncdiff.exchange.line import Pending, Transfer
from asyncdiff.exchange.team import Team
from asyncdiff.plan.division import Division
from asyncdiff.plan.moments import Moment

logger = logging.getLogger(__name__)

_AGREEMENT_TOLERANCE = 1e-3


class DistributedExchange:
    """One rank of a run on `torch.distributed`, as one of a team, in which ranks are counted from 0."""

    is_between_processes = True

    def __init__(self, team: Team) -> None:
        self.ranks: Sequence[int] = (team.rank,)
        self.traffic = team.traffic
        self._team = team
        self._is_closed = False
        self.share_random_state()

    def open(self, division: Division, device: torch.device) -> DistributedChannel:
        return DistributedChannel(self._team, division, device)

    def share(self, results: Mapping[int, Sequence[Tensor]], moment: Moment) -> "_Sharing":
        team, shared, batch = self._team, dict[int, list[Tensor]](), list[Transfer]()
        for key, source in moment.results:
            what = f"the noise prediction of step {key} from rank {team.members[source]}"
            shared[key] = []
            for tensor in results[key]:
                if source == team.rank:
                    held = tensor.contiguous()
                    peers = [member for member in team.members if member != team.members[source]]
                    batch += [Transfer(True, peer, held, what) for peer in peers]
                else:
                    held = torch.empty_like(tensor, memory_format=torch.contiguous_format)
                    batch.append(Transfer(False, team.members[source], held, what))
                shared[key].append(held)
        return _Sharing(team.start(batch), shared)

    def check_agreement(self, digest: Tensor, scale: Tensor, what: str) -> None:
        me, members = self._team.line.rank, self._team.members
        mine = torch.cat([digest, scale]).double().cpu()
        counts = self._team.talk.gather(torch.tensor([mine.numel()]), what)
        if len({int(count) for count in counts}) > 1:
            raise RankMismatchError(f"rank {me}: {what} differ in structure between the ranks")
        everyone = self._team.talk.gather(mine, what)
        for rank, other in enumerate(everyone):
            values, scales = other.chunk(2)
            own, own_scales = everyone[0].chunk(2)
            off = (values - own).abs() > _AGREEMENT_TOLERANCE * torch.maximum(scales, own_scales)
            if bool(off.any()):
                raise RankMismatchError(
                    f"rank {me}: {what} of rank {members[rank]} are not those of rank {members[0]}; every rank must "
                    "run the same call (same prompt, same size, and a generator with the same seed, or none), and a "
                    "pipeline must not read what its denoiser's blocks hold (attention maps, say)"
                )

    def agree(self, mine: bool, what: str) -> bool:
        return all(bool(other) for other in self._team.talk.gather(torch.tensor([mine], dtype=torch.uint8), what))

    def share_random_state(self) -> None:
        if self._team.talk.take_over_random_state():
            logger.warning(
                "rank %d: its random state was not that of rank %d, and is so now",
                self._team.line.rank,
                self._team.members[0],
            )

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._team.talk.close()


class _Sharing:
    """Results on their way to every rank of the team."""

    def __init__(self, pending: Pending, shared: dict[int, list[Tensor]]) -> None:
        self._pending = pending
        self._shared = shared

    def finish(self) -> dict[int, list[Tensor]]:
        self._pending.wait()
        return self._shared
