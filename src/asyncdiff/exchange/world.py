"""All ranks of a run: who takes part, before it is known in which teams they exchange."""

import atexit
import logging
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol, cast

import torch
import torch.distributed as dist

from asyncdiff.errors import ExchangeError, RankMismatchError
from asyncdiff.exchange.distributed import DistributedExchange
from asyncdiff.exchange.local import LocalExchange
from asyncdiff.exchange.operations import Operations, Talk
from asyncdiff.exchange.protocol import Exchange, Traffic
from asyncdiff.exchange.team import Team, backend_of

logger = logging.getLogger(__name__)

Teams = Sequence[Sequence[int]]
"""Lists of ranks of the world, every rank in one of them."""


class World(Protocol):
    """The ranks of a run."""

    @property
    def device(self) -> torch.device:
        """Where this process computes."""

    @property
    def size(self) -> int:
        """How many ranks there are."""

    @property
    def rank(self) -> int | None:
        """This process's; None where it computes for all of them."""

    def exchange(self, teams: Teams) -> Exchange:
        """The exchange among the ranks of the own team, where they are counted from 0; every rank must ask for it."""

    def check_same(self, value: int, what: str) -> None:
        """Raise RankMismatchError if a number is not the same on all ranks."""

    def close(self) -> None:
        """Leave the run."""


class LocalWorld:
    """All ranks in this process."""

    rank = None

    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        self.device = device

    def exchange(self, teams: Teams) -> LocalExchange:
        return LocalExchange(len(teams[0]))

    def check_same(self, value: int, what: str) -> None:
        del value, what  # one process agrees with itself

    def close(self) -> None:
        return None


class DistributedWorld:
    """A process for every rank, on the default process group, which is started if there is none.

    All ranks take over the random state of rank 0: what a pipeline draws without a generator, its first latents for
    instance, must be the same on all of them.

    Raises:
        ExchangeError: not every rank joined in time.
    """

    def __init__(self, device: torch.device, timeout: float) -> None:
        self.device = device
        self._timeout = timeout
        self._is_closed = False
        self._has_started = _join(device, timeout)
        # A script may end without disable(): a group whose threads still run then aborts the interpreter.
        atexit.register(self._leave)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        group: dist.ProcessGroup | None = None
        try:
            group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout)))
            self._talk = Talk(group, tuple(range(self.size)), Operations(device, timeout, Traffic()))
            self._talk.take_over_random_state()
        except (RuntimeError, ExchangeError) as error:
            if group is not None:
                dist.destroy_process_group(group)
            self._leave()
            raise ExchangeError(
                f"rank {self.rank}: not all {self.size} ranks got ready within {timeout:g} s: {error}"
            ) from error

    def exchange(self, teams: Teams) -> DistributedExchange:
        return DistributedExchange(Team.among(teams, self.device, self._timeout))

    def check_same(self, value: int, what: str) -> None:
        values = [int(other) for other in self._talk.gather(torch.tensor([value]), what)]
        if len(set(values)) > 1:
            raise RankMismatchError(
                f"rank {self.rank}: {what} must be the same on all ranks, but they have {values}; every rank must run "
                "the same call, with the same prompts"
            )

    def close(self) -> None:
        if not self._is_closed and dist.is_initialized():
            dist.destroy_process_group(self._talk.group)
        self._is_closed = True
        self._leave()

    def _leave(self) -> None:
        if self._has_started and dist.is_initialized():
            logger.info("rank %d: destroying the process group that this run started", self.rank)
            dist.destroy_process_group()
        self._has_started = False
        atexit.unregister(self._leave)


def is_launched() -> bool:
    """Whether this process is one of several: a process group exists, or torchrun started it."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size() > 1
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def _join(device: torch.device, timeout: float) -> bool:
    """Make sure that the default process group exists; returns whether it was started here."""
    if dist.is_initialized():
        return False
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ExchangeError(
            f"executor='distributed' needs a process group or torchrun's environment ({', '.join(missing)} not set); "
            "start the script with: torchrun --nproc-per-node=N script.py"
        )
    backend = backend_of(device)
    rank, world_size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    logger.info("rank %s: starting a %s process group of %s ranks", rank, backend, world_size)
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    except RuntimeError as error:
        raise ExchangeError(
            f"rank {rank}: not all of the {world_size} ranks joined within {timeout:g} s: {error}"
        ) from error
    return True
