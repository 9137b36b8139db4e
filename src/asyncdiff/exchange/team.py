"""The ranks that exchange with each other, and the process groups that they have for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist

from asyncdiff.errors import ExchangeError
from asyncdiff.exchange.operations import Operations, Talk
from asyncdiff.exchange.protocol import Traffic


@dataclass(frozen=True)
class Team:
    """The own team of a process.

    Messages to higher and to lower ranks have a group each, so that two directions never block each
    other on one communicator; predictions and small talk have their own.

    Attributes:
        members: the ranks of the team, as the world counts them.
        rank: the place of this process among them.
        operations: starts operations and waits for them.
    """

    members: tuple[int, ...]
    rank: int
    operations: Operations
    upward: dist.ProcessGroup
    downward: dist.ProcessGroup
    predictions: dist.ProcessGroup
    talk: Talk

    @classmethod
    def among(cls, teams: Sequence[Sequence[int]], device: torch.device, timeout: float) -> "Team":
        """The own one of some teams; every rank of the world must take part in making all of them.

        Args:
            teams: lists of ranks of the world, every rank in one of them.
            device: where the tensors that are exchanged are.
            timeout: seconds that waiting for another rank may take.

        Raises:
            ExchangeError: a rank does not take part in time.
        """
        operations = Operations(device, timeout, Traffic())
        members = next(tuple(team) for team in teams if operations.rank in team)
        limit, backend = timedelta(seconds=timeout), backend_of(device)

        def own_group(kind: str) -> dist.ProcessGroup:
            groups = {tuple(team): dist.new_group(list(team), backend=kind, timeout=limit) for team in teams}
            return cast(dist.ProcessGroup, groups[members])

        try:
            upward, downward, predictions = (own_group(backend) for _ in range(3))
            talk = Talk(own_group("gloo"), members, operations)
        except RuntimeError as error:
            raise ExchangeError(
                f"rank {operations.rank}: not all {dist.get_world_size()} ranks got ready within {timeout:g} s: {error}"
            ) from error
        return cls(members, members.index(operations.rank), operations, upward, downward, predictions, talk)

    def close(self) -> None:
        """Destroy the team's groups."""
        if dist.is_initialized():
            for group in (self.upward, self.downward, self.predictions, self.talk.group):
                dist.destroy_process_group(group)


def backend_of(device: torch.device) -> str:
    """The backend that exchanges tensors of a device."""
    return "nccl" if device.type == "cuda" else "gloo"
