"""The exchange between processes: torch.distributed, every wait with a limit."""

import logging
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from asyncdiff.errors import RankMismatchError
from asyncdiff.exchange.channel import DistributedChannel
from asyncdiff.exchange.team import Team
from asyncdiff.plan.division import Division

logger = logging.getLogger(__name__)

_AGREEMENT_TOLERANCE = 1e-3


class DistributedExchange:
    """One rank of a run on `torch.distributed`, as one of a team, in which ranks are counted from 0."""

    is_between_processes = True

    def __init__(self, team: Team) -> None:
        self.ranks: Sequence[int] = (team.rank,)
        self.traffic = team.operations.traffic
        self._team = team
        self._is_closed = False
        self.share_random_state()

    def open(self, division: Division) -> DistributedChannel:
        return DistributedChannel(self._team, division)

    def share(self, predictions: Mapping[int, Sequence[Tensor]], sources: Mapping[int, int]) -> dict[int, list[Tensor]]:
        operations, members = self._team.operations, self._team.members
        shared: dict[int, list[Tensor]] = {}
        works = []
        for step, source in sources.items():
            mine = source == self._team.rank
            shared[step] = []
            for tensor in predictions[step]:
                buffer = (
                    tensor.contiguous() if mine else torch.empty_like(tensor, memory_format=torch.contiguous_format)
                )
                shared[step].append(buffer)
                sender = members[source]
                what = f"the noise prediction of step {step} from rank {sender}"
                work = operations.start(what, dist.broadcast, buffer, sender, self._team.predictions, True)
                works.append((work, what))
                if mine:
                    self.traffic.bytes_sent += buffer.nbytes * (len(members) - 1)
        for work, what in works:
            operations.wait(work, what)
        return shared

    def check_agreement(self, digest: Tensor, scale: Tensor, what: str) -> None:
        me, members = self._team.operations.rank, self._team.members
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
                self._team.operations.rank,
                self._team.members[0],
            )

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._team.close()
