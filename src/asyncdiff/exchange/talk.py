"""Small talk among ranks, on the host: what is compared, agreed upon and taken over.

It goes from rank to rank, not by operations of the whole group: those are done by threads of gloo's. When one of them
is the last to hold a tensor that Python knew it needs the interpreter, which up to torch 2.7 is held by who ends the
group and waits for that thread, for ever (pytorch/pytorch#154976).
"""

import time
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from asyncdiff.errors import ExchangeError
from asyncdiff.events import Events
from asyncdiff.exchange.fault import Fault
from asyncdiff.exchange.groups import Groups
from asyncdiff.exchange.protocol import Traffic
from asyncdiff.happening import Kind

# By this name a record of what was started can tell this group from the one that moves the devices' tensors.
TALK = "asyncdiff talk"

Messages = Sequence[tuple[int, Tensor]]  # with the other rank, as the world counts

_LEAST_SECONDS = 0.001  # what has arrived may still be taken when the time is over


class Talk:
    """Small talk among some ranks, on a gloo group of its own.

    Args:
        groups: which have made it.
        members: the ranks, as the world counts them.
        device: of this process; its random state is taken over too.
        timeout: seconds that waiting may take.
        traffic: where the time spent waiting is counted.
        fault: what the others say when they leave before their time.
        events: where it is noted what is waited for.
    """

    def __init__(
        self,
        groups: Groups,
        group: dist.ProcessGroup,
        members: tuple[int, ...],
        device: torch.device,
        timeout: float,
        traffic: Traffic,
        fault: Fault,
        events: Events,
    ) -> None:
        self._group: dist.ProcessGroup | None = group
        self._fault = fault
        self._events = events
        self._groups = groups
        self.members = members
        self._device = device
        self._timeout = timeout
        self._traffic = traffic
        self._rank = dist.get_rank()

    def gather(self, mine: Tensor, what: str) -> list[Tensor]:
        """Every member's tensor, all of one shape; `what` is told in the error if one does not answer."""
        everyone = [mine if rank == self._rank else torch.empty_like(mine) for rank in self.members]
        others = [(rank, theirs) for rank, theirs in zip(self.members, everyone, strict=True) if rank != self._rank]
        to_all = [(rank, mine) for rank, _ in others]
        self._pass(f"comparing {what} with the other ranks", to_all, others)
        return everyone

    def gather_texts(self, mine: str, what: str) -> list[str]:
        """Every member's text, however long; `what` is told in the error if one does not answer."""
        own = mine.encode()
        sizes = [int(size) for size in self.gather(torch.tensor([len(own)]), what)]
        padded = torch.zeros(max(1, *sizes), dtype=torch.uint8)
        padded[: len(own)] = torch.frombuffer(bytearray(own), dtype=torch.uint8)
        everyone = zip(self.gather(padded, what), sizes, strict=True)
        return [bytes(text[:size].tolist()).decode() for text, size in everyone]

    def remark(self, text: str) -> None:
        """See `Fault.remark`."""
        self._fault.remark(text)

    def take_over_random_state(self) -> bool:
        """Take over the first member's random state, on the host and on the device; returns whether it was another."""
        device, source = self._device, self.members[0]
        states = [torch.get_rng_state()]
        if device.type == "cuda":
            states.append(torch.cuda.get_rng_state(device))
        shared = [state.clone() for state in states]
        for state in shared:
            to_all = [(rank, state) for rank in self.members[1:]] if self._rank == source else []
            self._pass(
                f"the random state from rank {source}", to_all, [] if self._rank == source else [(source, state)]
            )
        if all(torch.equal(mine, given) for mine, given in zip(states, shared, strict=True)):
            return False
        torch.set_rng_state(shared[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(shared[1], device)
        return True

    def close(self) -> None:
        """Destroy the group: what others still wait for on it fails at once."""
        group, self._group = self._group, None
        if group is not None:
            self._groups.end(group)

    def _pass(self, what: str, sent: Messages, received: Messages) -> None:
        """Send and receive, and wait until all is done, at most for the time limit; `what` names it in the error."""
        begin, mark = time.perf_counter(), self._events.mark()
        if self._group is None:
            raise ExchangeError(f"rank {self._rank}: {what} cannot be had any more: the ranks have been left")
        works: list[dist.Work | None] = []
        try:
            works += [dist.isend(tensor, rank, group=self._group) for rank, tensor in sent]
            works += [dist.irecv(tensor, rank, group=self._group) for rank, tensor in received]
            for work in filter(None, works):
                left = self._timeout - (time.perf_counter() - begin)
                work.wait(timedelta(seconds=max(left, _LEAST_SECONDS)))
        except (RuntimeError, ValueError) as error:  # the latter where the group was destroyed
            seconds = time.perf_counter() - begin
            self._fault.raise_if_told()
            who = self._fault.who_is_missing()
            raise ExchangeError(
                f"rank {self._rank}: {what} failed after {seconds:.1f} s (limit {self._timeout:g} s); {who} may have "
                f"died or be doing other work{self._fault.remarks()}: {error}"
            ) from error
        finally:
            works.clear()  # who keeps the error would keep gloo's connections open
        self._traffic.seconds_waited += time.perf_counter() - begin
        self._events.note(Kind.WAIT, what, mark)
