"""All that moves between devices: one communicator of all ranks of a run, used by all of them in one order.

A communicator that is made in the middle of a run holds the host until its partner comes to the same place, and two of
them on one device have no guarantee to progress independently (pytorch/pytorch#129140, NVIDIA/nccl#783). So there is
one, made while attaching by operations in which all ranks take part, and what is exchanged at one time is one batch.
"""

import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from asyncdiff.errors import ExchangeError
from asyncdiff.events import Events
from asyncdiff.exchange.fault import Fault
from asyncdiff.exchange.groups import Groups
from asyncdiff.exchange.protocol import Traffic
from asyncdiff.exchange.watch import Watcher, joined
from asyncdiff.happening import Kind

# The groups' own limits come after ours, which say more.
SECONDS_BEHIND = 60.0
_TAGS = 2**20


class Transfer(NamedTuple):
    """One tensor on its way, as one of the two ranks sees it.

    Attributes:
        is_sent: whether this rank sends it.
        peer: the other rank, as the world counts.
        tensor: contiguous; what is sent, or what is received into.
        what: names it in an error.
    """

    is_sent: bool
    peer: int
    tensor: Tensor
    what: str


class Line:
    """The communicator, and the way to start a batch on it.

    Args:
        groups: make it.
        device: where the tensors are that are exchanged.
        backend: torch.distributed's name for what moves them. Gloo cannot read the memory of a GPU: tensors then go
            through the host's.
        timeout: seconds that an operation may take.
        fault: what the others say when they leave before their time.
        events: where it is noted what is waited for.

    Attributes:
        rank: this process's, as the world counts.
        holds_host: whether waiting holds the host; with NCCL it only orders the device's work.

    Raises:
        ExchangeError: a rank does not take part in time.
    """

    def __init__(
        self, groups: Groups, device: torch.device, backend: str, timeout: float, fault: Fault, events: Events
    ) -> None:
        self.rank, self.timeout = groups.rank, timeout
        self._groups = groups
        self.device = device
        self.events = events
        self._fault = fault
        self._is_staged = goes_by_way_of_the_host(device, backend)
        self.holds_host = holds_host(backend)
        self._is_broken = False
        self._started: weakref.WeakSet[Pending] = weakref.WeakSet()
        self._counts: Counter[tuple[bool, int]] = Counter()
        limit = timeout if self.holds_host else timeout + SECONDS_BEHIND
        # Kept for longer than the group: see `talk` for what may hang where a thread of gloo's is the last to hold it.
        self._everyone = torch.ones(1, device="cpu" if self._is_staged else device)
        self._group: dist.ProcessGroup | None = groups.make([groups.members], backend, limit)
        self._watcher = None if self.holds_host else Watcher(self.rank, timeout, fault.sentence, self._abort)
        try:
            self._introduce()
        except BaseException:
            self.close()
            raise

    def start(self, batch: Sequence[Transfer], traffic: Traffic) -> "Pending":
        """Start some transfers at the same time.

        Every rank must start, in the same order as this one, the other ends of what it has to do with.

        Args:
            traffic: where bytes and waits are counted.
        """
        self._check()
        if self._group is None:
            what = joined([transfer.what for transfer in batch])
            raise ExchangeError(f"rank {self.rank}: {what} cannot be had any more: the ranks have been left")
        if not batch:
            return Pending(self, (), (), (), traffic)
        held = tuple(self._staged(each) if self._is_staged else _bytes(each.tensor) for each in batch)
        if self._is_staged and self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()  # what is to be sent must have been copied
        operations = [
            dist.P2POp(
                dist.isend if transfer.is_sent else dist.irecv,
                tensor,
                transfer.peer,
                self._group,
                self._tag(transfer.is_sent, transfer.peer),
            )
            for transfer, tensor in zip(batch, held, strict=True)
        ]
        has_begun = self._mark()
        try:
            works = dist.batch_isend_irecv(operations)
        except (RuntimeError, ValueError) as error:  # the latter where the group was destroyed
            self.give_up()
            self._fault.raise_if_told()
            raise ExchangeError(f"rank {self.rank}: {batch[0].what} could not be started: {error}") from error
        traffic.bytes_sent += sum(transfer.tensor.nbytes for transfer in batch if transfer.is_sent)
        if self._watcher is not None:
            self._watcher.watch(works, tuple(transfer.what for transfer in batch), has_begun)
        pending = Pending(self, tuple(batch), works, held if self._is_staged else (), traffic)
        self._started.add(pending)
        return pending

    def finish(self, work: dist.Work, names: Sequence[str], traffic: Traffic) -> None:
        """Wait for an operation: the host, at most for the time limit, or the device's own stream."""
        begin, mark = time.perf_counter(), self.events.mark()
        try:
            finished = work.wait(timedelta(seconds=self.timeout)) if self.holds_host else work.wait()
        except RuntimeError as error:
            seconds = time.perf_counter() - begin
            self.give_up()
            self._fault.raise_if_told()
            raise ExchangeError(
                f"rank {self.rank}: {joined(names)} failed after {seconds:.1f} s (limit {self.timeout:g} s); "
                f"{self._fault.who_is_missing()} may have died or be doing other work{self._fault.remarks()}: {error}"
            ) from error
        if finished is False:
            self.give_up()
            raise ExchangeError(f"rank {self.rank}: {joined(names)} did not finish")
        self._check()
        traffic.seconds_waited += time.perf_counter() - begin
        if self.events.is_on:
            self.events.note(Kind.WAIT, joined(names), mark)

    def give_up(self) -> None:
        """What is outstanding will never end: closing does not wait for it."""
        self._is_broken = True

    def close(self) -> None:
        """Destroy the communicator, in bounded time: what others still wait for on it fails at once."""
        if self._watcher is not None and not self._watcher.close(0.0 if self._is_broken else self.timeout):
            self.give_up()
        # Who keeps the error of a generation that was broken off, a notebook for instance, keeps what was under way in
        # it: with that gloo's connections would stay open, and the other ranks wait for the time limit.
        for pending in list(self._started):
            pending.let_go()
        group, self._group = self._group, None
        if group is not None:
            self._groups.end(group, self._is_broken)

    def _abort(self) -> bool:
        """Let the device wait no longer; whether torch can do that (not in 2.6)."""
        group = self._group
        if group is None or not hasattr(group, "abort"):
            return False
        group.abort()
        return True

    def _introduce(self) -> None:
        """Make the communicator and the connections of every pair, while nothing depends on them."""
        traffic = Traffic()
        work = dist.all_reduce(self._everyone, group=self._group, async_op=True)
        if work is not None:
            self.finish(work, ("getting ready with all ranks",), traffic)
        others = [rank for rank in self._groups.members if rank != self.rank]
        greetings = [
            Transfer(is_sent, other, torch.zeros(1, device=self.device), f"getting ready with rank {other}")
            for other in others
            for is_sent in (True, False)
        ]
        self.start(greetings, traffic).wait()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _check(self) -> None:
        """Raise ExchangeError if an operation that was started did not finish in time."""
        if self._watcher is not None and self._watcher.has_failed:
            self.give_up()
            self._watcher.check()

    def _mark(self) -> Callable[[], bool]:
        """Tells whether the device has come to where it stands now in what it is to do."""
        if self._watcher is None or self.device.type != "cuda":
            return _always
        mark = torch.cuda.Event()  # type: ignore[no-untyped-call]
        mark.record(torch.cuda.current_stream(self.device))
        return mark.query

    def _tag(self, is_sent: bool, peer: int) -> int:
        """A number that both ends of a transfer come to: gloo tells transfers apart by it, NCCL by their order."""
        self._counts[is_sent, peer] += 1
        return self._counts[is_sent, peer] % _TAGS

    def _staged(self, transfer: Transfer) -> Tensor:
        """A place in the host's memory for a transfer, with what is to be sent."""
        tensor = transfer.tensor
        host = torch.empty(tensor.nbytes, dtype=torch.uint8, pin_memory=tensor.is_cuda)
        return host.copy_(_bytes(tensor), non_blocking=tensor.is_cuda) if transfer.is_sent else host


class Pending:
    """A batch on its way."""

    def __init__(
        self,
        line: Line,
        batch: tuple[Transfer, ...],
        works: Sequence[dist.Work],
        staged: tuple[Tensor, ...],
        traffic: Traffic,
    ) -> None:
        self._line = line
        self._batch = batch
        self._works: tuple[dist.Work | None, ...] = tuple(works)
        self._staged = staged
        self._traffic = traffic
        self._begin = line.events.mark()

    def let_go(self) -> None:
        """Nobody will wait for it any more."""
        self._works = ()

    def wait(self) -> None:
        """Wait until everything is there, and sent."""
        self.wait_until_received()
        self.wait_until_sent()

    def wait_until_sent(self) -> None:
        """Wait until what is sent may be overwritten."""
        self._wait(True)

    def wait_until_received(self) -> None:
        """Wait until what is received may be read."""
        self._wait(False)

    def _wait(self, is_sent: bool) -> None:
        if not any(self._works):
            return
        self._wait_for(is_sent)
        if self._line.events.is_on and not any(self._works):
            sent, received = (
                sum(transfer.tensor.nbytes for transfer in self._batch if transfer.is_sent is way)
                for way in (True, False)
            )
            names = joined([transfer.what for transfer in self._batch])
            self._line.events.note(Kind.EXCHANGE, names, self._begin, sent=f"{sent} B", received=f"{received} B")

    def _wait_for(self, is_sent: bool) -> None:
        if len(self._works) != len(self._batch):  # some backends make one operation of a batch
            works, self._works = self._works, ()
            for work in works:
                if work is not None:
                    self._line.finish(work, [transfer.what for transfer in self._batch], self._traffic)
            return
        for number, transfer in enumerate(self._batch):
            work = self._works[number]
            if transfer.is_sent is not is_sent or work is None:
                continue
            self._works = (*self._works[:number], None, *self._works[number + 1 :])
            self._line.finish(work, (transfer.what,), self._traffic)
            if self._staged and not is_sent:
                _bytes(transfer.tensor).copy_(self._staged[number], non_blocking=transfer.tensor.is_cuda)


def goes_by_way_of_the_host(device: torch.device, backend: str) -> bool:
    """Whether a backend cannot reach the memory of a device."""
    return device.type != "cpu" and backend == "gloo"


def holds_host(backend: str) -> bool:
    """Whether waiting for an operation of a backend holds the host; else it orders the device's own work."""
    return backend == "gloo"


def _bytes(tensor: Tensor) -> Tensor:
    """A contiguous tensor's memory: not every backend knows every number format."""
    return tensor.view(-1).view(torch.uint8)


def _always() -> bool:
    return True
