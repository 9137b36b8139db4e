"""All ranks of a run: who takes part, before it is known in which teams they exchange."""

import contextlib
import logging
import os
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist

from asyncdiff.errors import ExchangeError
from asyncdiff.events import Events
from asyncdiff.exchange.agreement import Statements, compare
from asyncdiff.exchange.distributed import DistributedExchange
from asyncdiff.exchange.fault import Fault
from asyncdiff.exchange.groups import Groups, Teams, backend_for, default_store, group_of
from asyncdiff.exchange.line import Line
from asyncdiff.exchange.local import LocalExchange
from asyncdiff.exchange.membership import Membership, not_ready, number_told
from asyncdiff.exchange.protocol import Exchange, Traffic
from asyncdiff.exchange.talk import TALK, Talk
from asyncdiff.exchange.team import Team

logger = logging.getLogger(__name__)


class World(Protocol):
    """The ranks of a run."""

    @property
    def device(self) -> torch.device:
        """Where this process computes."""

    @property
    def events(self) -> Events:
        """What happens in this process."""

    @property
    def size(self) -> int:
        """How many ranks there are."""

    @property
    def rank(self) -> int | None:
        """This process's, counted from 0 among the ranks of the run; None where it computes for all of them."""

    @property
    def global_rank(self) -> int | None:
        """The same as torch counts it, which is what errors say."""

    def exchange(self, teams: Teams) -> Exchange:
        """The exchange among the ranks of the own team, where they are counted from 0; every rank must ask for it."""

    def check_agreement(self, statements: Statements, what: str) -> None:
        """Raise RankMismatchError if one of the statements is another on another rank; `what` names them all."""

    def gather_texts(self, mine: str, what: str) -> list[str]:
        """Every rank's text, or of a process that computes for all its own; every rank must call it."""

    def share_random_state(self) -> None:
        """Take over rank 0's random state: numbers drawn without a generator must be the same on all ranks."""

    def fail(self, reason: str) -> None:
        """A generation is broken off here: end it on all ranks, and tell them why. All exchanges are closed."""

    @property
    def is_open(self) -> bool:
        """Whether nothing was broken off in this process since the ranks have begun anew."""

    def renew(self) -> bool:
        """Begin anew if the generation before was broken off on any rank; every rank must call it before it generates.

        Returns whether it did: then all exchanges must be asked for again.
        """

    def close(self) -> None:
        """Leave the run."""


class _Closing(Protocol):
    def close(self) -> None: ...


@dataclass(frozen=True)
class _Run:
    """What all ranks exchange with, until a generation is broken off."""

    talk: Talk
    line: Line
    fault: Fault


class LocalWorld:
    """All ranks in this process."""

    rank = global_rank = None
    is_open = True

    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        self.device = device
        self.events = Events(device)

    def exchange(self, teams: Teams) -> LocalExchange:
        return LocalExchange(len(teams[0]))

    def check_agreement(self, statements: Statements, what: str) -> None:
        del statements, what  # one process agrees with itself

    def gather_texts(self, mine: str, what: str) -> list[str]:
        del what
        return [mine]

    def share_random_state(self) -> None:
        return None

    def fail(self, reason: str) -> None:
        del reason  # nobody else has to be told

    def renew(self) -> bool:
        return False

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
        process_group: a group, or a mesh with one axis: the only ranks that take part. By default all do.

    Raises:
        ExchangeError: not every rank joined in time.
        ConfigurationError: the process group has another backend, or there is none for this process.
    """

    def __init__(
        self, device: torch.device, timeout: float, backend: str | None = None, process_group: Any = None
    ) -> None:
        given = group_of(process_group)
        self.device = device
        self.events = Events(device)
        self._timeout = timeout
        self._membership = Membership(device, timeout, backend, given)
        self._groups = Groups(given, timeout)
        self._backend = backend_for(device, given)
        self.global_rank, self.size = self._groups.rank, len(self._groups.members)
        self.rank = self._groups.members.index(self.global_rank)
        self._opened: list[_Closing] = []
        self._run: _Run | None = None
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def exchange(self, teams: Teams) -> DistributedExchange:
        run, traffic = self._present(), Traffic()
        try:
            talk = self._talk_among(teams, traffic, run.fault)
        except RuntimeError as error:
            raise ExchangeError(not_ready(self.global_rank, self.size, self._timeout, error)) from error
        return DistributedExchange(Team(talk.members, talk.members.index(self.global_rank), run.line, talk, traffic))

    def check_agreement(self, statements: Statements, what: str) -> None:
        compare(statements, self._present().talk, self.global_rank, self._groups.members, what)

    def gather_texts(self, mine: str, what: str) -> list[str]:
        return self._present().talk.gather_texts(mine, what)

    def share_random_state(self) -> None:
        if self._present().talk.take_over_random_state():
            first = self._groups.members[0]
            logger.warning("rank %d: its random state was not that of rank %d, and is so now", self.global_rank, first)

    @property
    def is_open(self) -> bool:
        return self._run is not None

    def fail(self, reason: str) -> None:
        if self._run is not None:
            logger.info("rank %d: this generation is broken off: %s", self.global_rank, reason)
            self._run.fault.tell(reason)
            self._close_run(is_broken=True)

    def renew(self) -> bool:
        if self._run is not None and not self._run.fault.told():
            return False
        self._close_run(is_broken=True)
        self._open()
        return True

    def close(self) -> None:
        try:
            self._close_run()
        finally:
            self._membership.leave()

    def _open(self) -> None:
        """Make what the ranks exchange with; all of them take part."""
        try:
            fault = Fault(default_store(), f"{self._groups.meet()}, fault", self.global_rank, self._groups.members)
            talk = self._talk_among([range(self.size)], Traffic(), fault)
            talk.take_over_random_state()
            line = Line(self._groups, self.device, self._backend, self._timeout, fault, self.events)
            self._opened.append(line)
        except (RuntimeError, ExchangeError) as error:
            raise ExchangeError(not_ready(self.global_rank, self.size, self._timeout, error)) from error
        self._run = _Run(talk, line, fault)

    def _close_run(self, is_broken: bool = False) -> None:
        if self._run is not None and is_broken:
            self._run.line.give_up()
        self._run = None
        opened, self._opened = self._opened, []
        with contextlib.ExitStack() as stack:  # whatever of it fails, the rest is done
            for each in opened:
                stack.callback(each.close)

    def _present(self) -> "_Run":
        if self._run is None:
            raise ExchangeError(f"rank {self.global_rank}: the generation was broken off; the next one begins anew")
        return self._run

    def _talk_among(self, teams: Teams, traffic: Traffic, fault: Fault) -> Talk:
        """Small talk in the own team; every rank of the run must ask for it."""
        everyone = self._groups.members
        known = [tuple(everyone[rank] for rank in team) for team in teams]
        group = self._groups.make(known, "gloo", self._timeout, TALK)
        own = next(team for team in known if self.global_rank in team)
        talk = Talk(self._groups, group, own, self.device, self._timeout, traffic, fault, self.events)
        self._opened.append(talk)
        return talk


def is_launched() -> bool:
    """Whether this process is one of several: a process group exists, or torchrun started it."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size() > 1
    return number_told("WORLD_SIZE", 1) > 1 and "RANK" in os.environ


def local_device() -> torch.device:
    """The device for this process: GPUs are dealt out to the processes of a machine by torchrun's LOCAL_RANK.

    Where each process sees one GPU only, as cluster software arranges it, that one. The CPU where there is none.
    """
    count = torch.cuda.device_count()
    if not count:
        return torch.device("cpu")
    return torch.device("cuda", number_told("LOCAL_RANK", 0) % count)
