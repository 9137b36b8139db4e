"""The exchange between processes: torch.distributed, point to point, every wait with a limit."""

import functools
import logging
import os
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from asyncdiff.denoiser.graph import Edge, Graph
from asyncdiff.errors import ExchangeError, RankMismatchError
from asyncdiff.exchange.local import Traffic, pack, view_of
from asyncdiff.exchange.store import EdgeStore
from asyncdiff.plan.division import Division
from asyncdiff.plan.routing import Message

logger = logging.getLogger(__name__)

_ALIGNMENT = 64
_AGREEMENT_TOLERANCE = 1e-3


def is_launched() -> bool:
    """Whether this process is one of several: a process group exists, or torchrun started it."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size() > 1
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def join(device: torch.device, timeout: float) -> bool:
    """Make sure that the default process group exists; returns whether it was started here.

    Raises:
        ExchangeError: not every rank joined in time.
    """
    if dist.is_initialized():
        return False
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ExchangeError(
            f"executor='distributed' needs a process group or torchrun's environment ({', '.join(missing)} not set); "
            "start the script with: torchrun --nproc-per-node=N script.py"
        )
    backend = _backend(device)
    rank, world_size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    logger.info("rank %s: starting a %s process group of %s ranks", rank, backend, world_size)
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    except RuntimeError as error:
        raise ExchangeError(
            f"rank {rank}: not all of the {world_size} ranks joined within {timeout:g} s: {error}"
        ) from error
    return True


def leave() -> None:
    """Destroy the default process group, which `join` has started."""
    if dist.is_initialized():
        logger.info("rank %d: destroying the process group that this run started", dist.get_rank())
        dist.destroy_process_group()


def place() -> tuple[int, int]:
    """The rank of this process, and the world size."""
    return dist.get_rank(), dist.get_world_size()


def check_same(value: int, device: torch.device, what: str) -> None:
    """Compare a number with the other ranks' before groups are made by it.

    Raises:
        RankMismatchError: it is not the same on all ranks.
        ExchangeError: a rank does not answer in time.
    """
    rank, world_size = place()
    mine = torch.tensor([value], device=device)
    everyone = [torch.empty_like(mine) for _ in range(world_size)]
    try:
        dist.all_gather(everyone, mine)
    except RuntimeError as error:
        raise ExchangeError(f"rank {rank}: comparing {what} with the other ranks failed: {error}") from error
    values = [int(other) for other in everyone]
    if len(set(values)) > 1:
        raise RankMismatchError(
            f"rank {rank}: {what} must be the same on all ranks, but they have {values}; every rank must run the same "
            "call, with the same prompts"
        )


def _backend(device: torch.device) -> str:
    return "nccl" if device.type == "cuda" else "gloo"


class DistributedExchange:
    """One rank of a run on `torch.distributed`, as one of a team.

    Messages to higher and to lower ranks have a group each, so that two directions never block each
    other on one communicator; predictions and small talk have their own.

    Args:
        teams: lists of ranks of the world, every rank in one of them; ranks exchange within their team, where they
            are counted from 0. By default all are one team.

    Attributes:
        rank: the place in the team.
        members: the ranks of the team, as the world counts them.
    """

    is_between_processes = True

    def __init__(
        self,
        device: torch.device,
        timeout: float,
        teams: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.world_rank = dist.get_rank()
        teams = teams or (range(dist.get_world_size()),)
        self.members = next(tuple(team) for team in teams if self.world_rank in team)
        self.rank = self.members.index(self.world_rank)
        self.ranks: Sequence[int] = (self.rank,)
        self.traffic = Traffic()
        self.timeout = timeout
        self._device = device
        self._is_closed = False
        limit = timedelta(seconds=timeout)
        backend = _backend(device)
        try:
            self.upward, self.downward, self._predictions, self._control = (
                self._own_group(teams, kind, limit) for kind in (backend, backend, backend, "gloo")
            )
            self.share_random_state()
        except RuntimeError as error:
            raise ExchangeError(
                f"rank {self.world_rank}: not all {dist.get_world_size()} ranks got ready within {timeout:g} s: {error}"
            ) from error

    def open(self, division: Division) -> "DistributedChannel":
        return DistributedChannel(self, division, self._device)

    def _own_group(self, teams: Sequence[Sequence[int]], backend: str, limit: timedelta) -> dist.ProcessGroup:
        """The process group of the own team; every rank must take part in making those of all."""
        groups = {tuple(team): dist.new_group(list(team), backend=backend, timeout=limit) for team in teams}
        return cast(dist.ProcessGroup, groups[self.members])

    def share(self, predictions: Mapping[int, Sequence[Tensor]], sources: Mapping[int, int]) -> dict[int, list[Tensor]]:
        shared: dict[int, list[Tensor]] = {}
        works = []
        for step, source in sources.items():
            mine = source == self.rank
            shared[step] = []
            for tensor in predictions[step]:
                buffer = (
                    tensor.contiguous() if mine else torch.empty_like(tensor, memory_format=torch.contiguous_format)
                )
                shared[step].append(buffer)
                sender = self.members[source]
                what = f"the noise prediction of step {step} from rank {sender}"
                works.append((self.start(what, dist.broadcast, buffer, sender, self._predictions, True), what))
                if mine:
                    self.traffic.bytes_sent += buffer.nbytes * (len(self.members) - 1)
        for work, what in works:
            self.wait(work, what)
        return shared

    def check_agreement(self, digest: Tensor, scale: Tensor, what: str) -> None:
        mine = torch.cat([digest, scale]).double().cpu()
        counts = self._gather(torch.tensor([mine.numel()]), what)
        if len({int(count) for count in counts}) > 1:
            raise RankMismatchError(f"rank {self.world_rank}: {what} differ in structure between the ranks")
        everyone = self._gather(mine, what)
        for rank, other in enumerate(everyone):
            values, scales = other.chunk(2)
            own, own_scales = everyone[0].chunk(2)
            off = (values - own).abs() > _AGREEMENT_TOLERANCE * torch.maximum(scales, own_scales)
            if bool(off.any()):
                raise RankMismatchError(
                    f"rank {self.world_rank}: {what} of rank {self.members[rank]} are not those of rank "
                    f"{self.members[0]}; every rank must run the same call (same prompt, same size, and a generator "
                    "with the same seed, or none), and a pipeline must "
                    "not read what its denoiser's blocks hold (attention maps, say)"
                )

    def agree(self, mine: bool, what: str) -> bool:
        return all(bool(other) for other in self._gather(torch.tensor([mine], dtype=torch.uint8), what))

    def share_random_state(self) -> None:
        states = [torch.get_rng_state()]
        if self._device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self._device))
        shared = [state.clone() for state in states]
        for state in shared:
            text = f"the random state from rank {self.members[0]}"
            self.wait(self.start(text, dist.broadcast, state, self.members[0], self._control, True), text)
        if all(torch.equal(mine, given) for mine, given in zip(states, shared, strict=True)):
            return
        logger.warning(
            "rank %d: its random state was not that of rank %d, and is so now", self.world_rank, self.members[0]
        )
        torch.set_rng_state(shared[0])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(shared[1], self._device)

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if dist.is_initialized():
            for group in (self.upward, self.downward, self._predictions, self._control):
                dist.destroy_process_group(group)

    def start(self, what: str, operation: object, *arguments: object, **named: object) -> dist.Work:
        """Start an asynchronous operation; `what` names it in the error if it cannot start."""
        try:
            work = operation(*arguments, **named)  # type: ignore[operator]
        except RuntimeError as error:
            raise ExchangeError(f"rank {self.world_rank}: {what} could not be started: {error}") from error
        return work  # type: ignore[no-any-return]

    def wait(self, work: dist.Work, what: str) -> None:
        """Wait for an operation, at most for the time limit."""
        begin = time.perf_counter()
        try:
            # NCCL's own watchdog enforces the group's limit; its wait only orders the streams.
            finished = work.wait(timedelta(seconds=self.timeout)) if self._device.type != "cuda" else work.wait()
        except RuntimeError as error:
            raise ExchangeError(
                f"rank {self.world_rank}: {what} failed after {time.perf_counter() - begin:.1f} s "
                f"(limit {self.timeout:g} s); that rank may have died or be doing other work: {error}"
            ) from error
        if finished is False:
            raise ExchangeError(f"rank {self.world_rank}: {what} did not finish")
        self.traffic.seconds_waited += time.perf_counter() - begin

    def _gather(self, mine: Tensor, what: str) -> list[Tensor]:
        everyone = [torch.empty_like(mine) for _ in self.members]
        text = f"comparing {what} with the other ranks"
        self.wait(self.start(text, dist.all_gather, everyone, mine, self._control, True), text)
        return everyone


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

    def __init__(self, exchange: DistributedExchange, division: Division, device: torch.device) -> None:
        rank, graph, versions = exchange.rank, division.graph, division.schedule.kept_versions
        self._store = EdgeStore(versions)
        self.stores = {rank: self._store}
        self._exchange = exchange
        self._own = division.own_reads_of(rank)
        self._made: dict[Edge, Tensor] = {}
        # One more buffer than versions that are read: the version that arrives meanwhile.
        self._copies = versions + 1
        sent = [message for message in division.messages if message.source == rank]
        awaited = [message for message in division.messages if message.reader == rank]
        self._outgoing = [_Parcel(graph, message, exchange.members, device, 1) for message in sent]
        self._incoming = [_Parcel(graph, message, exchange.members, device, self._copies) for message in awaited]
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
                self._exchange.traffic.bytes_sent += parcel.buffers[0].nbytes

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
        group = self._exchange.upward if message.source < message.reader else self._exchange.downward
        return self._exchange.start(
            parcel.description,
            operation,
            parcel.buffers[copy],
            self._exchange.members[peer],
            group=group,
            tag=self._tags[id(message)],
        )

    def _finish(self, parcel: _Parcel, copy: int) -> None:
        work, parcel.works[copy] = parcel.works[copy], None
        if work is not None:
            self._exchange.wait(work, parcel.description)
