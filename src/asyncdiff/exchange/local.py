"""The exchange in one process: all ranks are here, nothing moves, the numbers are those of the distributed run."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from asyncdiff.denoiser.graph import Edge
from asyncdiff.exchange.agreement import Statements
from asyncdiff.exchange.protocol import Traffic
from asyncdiff.exchange.relay import LocalRelay
from asyncdiff.exchange.store import EdgeStore
from asyncdiff.plan.chain import Link
from asyncdiff.plan.division import Division
from asyncdiff.plan.moments import Moment, StepOrder


class LocalExchange:
    """All ranks in this process: nothing moves, the numbers are those of the distributed run."""

    def __init__(self, world_size: int) -> None:
        self.ranks: Sequence[int] = range(world_size)
        self.traffic = Traffic()

    def open(self, division: Division, device: torch.device) -> "LocalChannel":
        return LocalChannel(division, device, self.traffic)

    def relay(self, division: Division, links: Sequence[Link], device: torch.device) -> LocalRelay:
        del division, device
        return LocalRelay(links, self.traffic)

    def share(self, results: Mapping[int, Sequence[Tensor]], moment: Moment, what: str = "") -> "Shared":
        del what  # nothing can fail
        return Shared({key: list(results[key]) for key, _ in moment.results})

    def deal(self, given: Mapping[int, Sequence[Tensor]], rooms: Mapping[int, Sequence[Tensor]], what: str) -> "Shared":
        del given, rooms, what  # all ranks are here, and what they make lies together
        return Shared({})

    def check_agreement(self, statements: Statements, what: str) -> None:
        del statements, what  # one process agrees with itself

    def remark(self, text: str) -> None:
        del text  # nobody else waits

    def agree(self, mine: bool, what: str) -> bool:
        del what
        return mine

    def close(self) -> None:
        return None


class Shared:
    """Results that are there already."""

    def __init__(self, results: dict[int, list[Tensor]]) -> None:
        self._results = results

    def finish(self) -> dict[int, list[Tensor]]:
        return self._results


class LocalChannel:
    """Keeps what a round makes until the round is over, so that every rank reads the rounds before.

    Args:
        traffic: where it is counted what would be sent.
    """

    def __init__(self, division: Division, device: torch.device, traffic: Traffic) -> None:
        ranks = range(division.schedule.world_size)
        depth = division.schedule.kept_versions
        self.stores = {rank: EdgeStore(division.storage_of(rank), depth, device, division.packings) for rank in ranks}
        self._division = division
        self._held = {rank: division.reads_of(rank) for rank in ranks}
        self._own = {rank: division.own_reads_of(rank) for rank in ranks}
        self._made: dict[tuple[int, Edge], Tensor] = {}
        self._order = StepOrder(())
        self._traffic = traffic

    def keep(self, rank: int, edge: Edge, tensor: Tensor) -> None:
        if edge in self._held[rank]:
            self.stores[rank].put(edge, tensor)

    def end_in_full(self, versions: Sequence[int]) -> None:
        for store in self.stores.values():
            store.arrive(versions)

    def start_round(self, order: StepOrder) -> None:
        self._made, self._order = {}, order

    def made(self, rank: int, edge: Edge, tensor: Tensor) -> None:
        self._made[rank, edge] = tensor

    def exchange(self, moment: Moment) -> None:
        for message in moment.messages:
            for edge in message.edges:
                self.stores[message.reader].put(edge, self._made[message.source, edge])
            self._traffic.bytes_sent += self._division.bytes_of(message.edges)

    def end_round(self, version: int) -> None:
        if not self._order.kept:
            return
        for rank, store in self.stores.items():
            for edge in self._own[rank] & self._order.kept:
                store.put(edge, self._made[rank, edge])
            store.arrive([version])

    def close(self) -> None:
        self._made = {}
