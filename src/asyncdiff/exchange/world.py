"""All ranks of a run: who takes part, before it is known in which teams they exchange."""

import atexit
import logging
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol, TypeVar, cast

import torch
import torch.distributed as dist

from asyncdiff.errors import ConfigurationError, ExchangeError, RankMismatchError
from asyncdiff.exchange.distributed import DistributedExchange
from asyncdiff.exchange.line import SECONDS_BEHIND, Line
from asyncdiff.exchange.local import LocalExchange
from asyncdiff.exchange.protocol import Exchange, Traffic
from asyncdiff.exchange.talk import TALK, Talk
from asyncdiff.exchange.team import Team

logger = logging.getLogger(__name__)

Present = TypeVar("Present")
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

    Args:
        device: where this process computes.
        timeout: seconds that waiting for another rank may take.
        backend: what is to move tensors between devices; None for that of the default process group or, where that is
            started here, for the device's own.

    Raises:
        ExchangeError: not every rank joined in time.
        ConfigurationError: the default process group has another backend.
    """

    def __init__(self, device: torch.device, timeout: float, backend: str | None = None) -> None:
        self.device = device
        self._timeout = timeout
        self._is_closed = False
        self._has_started = _join(device, timeout, backend)
        # A script may end without disable(): a group whose threads still run then aborts the interpreter.
        atexit.register(self._leave)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._talk: Talk | None = None
        self._line: Line | None = None
        try:
            self._talk = self._talk_among([range(self.size)], Traffic())
            self._talk.take_over_random_state()
            self._line = Line(device, backend_for(device), timeout)
        except (RuntimeError, ExchangeError) as error:
            self.close()
            raise ExchangeError(_not_ready(self.rank, self.size, timeout, error)) from error

    def exchange(self, teams: Teams) -> DistributedExchange:
        traffic = Traffic()
        members = next(tuple(team) for team in teams if self.rank in team)
        try:
            talk = self._talk_among(teams, traffic)
        except RuntimeError as error:
            raise ExchangeError(_not_ready(self.rank, self.size, self._timeout, error)) from error
        return DistributedExchange(Team(members, members.index(self.rank), _present(self._line), talk, traffic))

    def check_same(self, value: int, what: str) -> None:
        values = [int(other) for other in _present(self._talk).gather(torch.tensor([value]), what)]
        if len(set(values)) > 1:
            raise RankMismatchError(
                f"rank {self.rank}: {what} must be the same on all ranks, but they have {values}; every rank must run "
                "the same call, with the same prompts"
            )

    def close(self) -> None:
        for group in (self._line, self._talk):
            if group is not None:
                group.close()
        self._line = self._talk = None
        self._leave()

    def _talk_among(self, teams: Teams, traffic: Traffic) -> Talk:
        """The own team's; every rank of the world takes part in making all of them."""
        limit = timedelta(seconds=self._timeout)
        groups = {
            tuple(team): cast(
                dist.ProcessGroup, dist.new_group(list(team), backend="gloo", timeout=limit, group_desc=TALK)
            )
            for team in teams
        }
        members = next(team for team in groups if self.rank in team)
        return Talk(groups[members], members, self.device, self._timeout, traffic)

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


def local_device() -> torch.device:
    """The device for this process: GPUs are dealt out to the processes of a machine by torchrun's LOCAL_RANK.

    Where each process sees one GPU only, as cluster software arranges it, that one. The CPU where there is none.
    """
    count = torch.cuda.device_count()
    if not count:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % count)


def backend_for(device: torch.device) -> str:
    """What moves tensors of a device in the default process group; gloo, by way of the host, if nothing does."""
    backends = dict(part.split(":", 1) for part in dist.get_backend_config().split(",") if ":" in part)
    return backends.get(device.type, "gloo")


def _join(device: torch.device, timeout: float, backend: str | None) -> bool:
    """Make sure that the default process group exists; returns whether it was started here."""
    if dist.is_initialized():
        found = backend_for(device)
        if backend not in (None, found):
            raise ConfigurationError(
                f"backend={backend!r}, but the process group that exists moves tensors of {device} with {found!r}; "
                "leave backend out, or start the process group with it"
            )
        return False
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ExchangeError(
            f"executor='distributed' needs a process group or torchrun's environment ({', '.join(missing)} not set); "
            "start the script with: torchrun --nproc-per-node=N script.py"
        )
    chosen = backend or ("nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo")
    rank, world_size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    logger.info("rank %s: starting a %s process group of %s ranks", rank, chosen, world_size)
    # With the device, communicators are made at once, and not one by one when they are first used.
    bound = device if chosen == "nccl" and device.index is not None else None
    limit = timeout if chosen == "gloo" else timeout + SECONDS_BEHIND
    try:
        dist.init_process_group(chosen, timeout=timedelta(seconds=limit), device_id=bound)
    except (RuntimeError, ValueError) as error:
        raise ExchangeError(_not_ready(int(rank), int(world_size), timeout, error)) from error
    return True


def _not_ready(rank: int, size: int, timeout: float, error: Exception) -> str:
    if "Duplicate GPU" in str(error):
        return (
            f"rank {rank}: two ranks are on one GPU, which NCCL refuses; give every rank a device of its own "
            f"(pipe.to(asyncdiff.local_device())), or use backend='gloo', which is slower: {error}"
        )
    return f"rank {rank}: not all of the {size} ranks joined within {timeout:g} s: {error}"


def _present(group: Present | None) -> Present:
    """A group of a run that was not left yet."""
    if group is None:
        raise RuntimeError("this run was left")
    return group
