"""Operations of torch.distributed: started and waited for with a limit, and named in the error if they fail."""

import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from asyncdiff.errors import ExchangeError
from asyncdiff.exchange.protocol import Traffic


class Operations:
    """Starts operations, and waits for them.

    Attributes:
        rank: this process's, as the world counts.
        device: where the tensors that are exchanged are.
        timeout: seconds that waiting may take.
        traffic: where the time spent waiting is counted.
    """

    def __init__(self, device: torch.device, timeout: float, traffic: Traffic) -> None:
        self.rank = dist.get_rank()
        self.device = device
        self.timeout = timeout
        self.traffic = traffic

    def start(self, what: str, operation: object, *arguments: object, **named: object) -> dist.Work:
        """Start an asynchronous operation; `what` names it in the error if it cannot start."""
        try:
            work = operation(*arguments, **named)  # type: ignore[operator]
        except RuntimeError as error:
            raise ExchangeError(f"rank {self.rank}: {what} could not be started: {error}") from error
        return work  # type: ignore[no-any-return]

    def wait(self, work: dist.Work, what: str) -> None:
        """Wait for an operation, at most for the time limit."""
        begin = time.perf_counter()
        try:
            # NCCL's own watchdog enforces the group's limit; its wait only orders the streams.
            finished = work.wait(timedelta(seconds=self.timeout)) if self.device.type != "cuda" else work.wait()
        except RuntimeError as error:
            raise ExchangeError(
                f"rank {self.rank}: {what} failed after {time.perf_counter() - begin:.1f} s "
                f"(limit {self.timeout:g} s); that rank may have died or be doing other work: {error}"
            ) from error
        if finished is False:
            raise ExchangeError(f"rank {self.rank}: {what} did not finish")
        self.traffic.seconds_waited += time.perf_counter() - begin


class Talk:
    """Small talk among some ranks, on a group of its own; tensors are on the host.

    Args:
        group: a gloo group.
        members: its ranks, as the world counts them.
    """

    def __init__(self, group: dist.ProcessGroup, members: tuple[int, ...], operations: Operations) -> None:
        self.group = group
        self._members = members
        self._operations = operations

    def gather(self, mine: Tensor, what: str) -> list[Tensor]:
        """Every member's tensor, all of one shape; `what` is told in the error if one does not answer."""
        everyone = [torch.empty_like(mine) for _ in self._members]
        text = f"comparing {what} with the other ranks"
        work = self._operations.start(text, dist.all_gather, everyone, mine, self.group, True)
        self._operations.wait(work, text)
        return everyone

    def take_over_random_state(self) -> bool:
        """Take over the first member's random state, on the host and on the device; returns whether it was another."""
        device, source = self._operations.device, self._members[0]
        states = [torch.get_rng_state()]
        if device.type == "cuda":
            states.append(torch.cuda.get_rng_state(device))
        shared = [state.clone() for state in states]
        text = f"the random state from rank {source}"
        for state in shared:
            self._operations.wait(self._operations.start(text, dist.broadcast, state, source, self.group, True), text)
        if all(torch.equal(mine, given) for mine, given in zip(states, shared, strict=True)):
            return False
        torch.set_rng_state(shared[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(shared[1], device)
        return True
