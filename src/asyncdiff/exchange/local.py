"""The exchange in one process: all ranks are here, nothing moves, the numbers are those of the distributed run."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from asyncdiff.denoiser.graph import Edge
from asyncdiff.exchange.protocol import Traffic
from asyncdiff.exchange.store import EdgeStore
from asyncdiff.plan.division import Division


class LocalExchange:
    """All ranks in this process: nothing moves, the numbers are those of the distributed run."""

    is_between_processes = False

    def __init__(self, world_size: int) -> None:
        self.ranks: Sequence[int] = range(world_size)
        self.traffic = Traffic()

    def open(self, division: Division) -> "LocalChannel":
        return LocalChannel(division)

    def share(self, predictions: Mapping[int, Sequence[Tensor]], sources: Mapping[int, int]) -> dict[int, list[Tensor]]:
        return {step: list(tensors) for step, tensors in predictions.items()}

    def check_agreement(self, digest: Tensor, scale: Tensor, what: str) -> None:
        del digest, scale, what  # one process agrees with itself

    def agree(self, mine: bool, what: str) -> bool:
        del what
        return mine

    def share_random_state(self) -> None:
        return None

    def close(self) -> None:
        return None


class LocalChannel:
    """Keeps what a round makes until the round is over, so that every rank reads the rounds before."""

    def __init__(self, division: Division) -> None:
        ranks = range(division.schedule.world_size)
        self.stores = {rank: EdgeStore(division.schedule.kept_versions) for rank in ranks}
        self._readers: dict[tuple[int, Edge], list[int]] = {}
        for message in division.messages:
            for edge in message.edges:
                self._readers.setdefault((message.source, edge), []).append(message.reader)
        for rank in ranks:
            for edge in division.own_reads_of(rank):
                self._readers.setdefault((rank, edge), []).append(rank)
        self._pending: dict[tuple[int, Edge], Tensor] = {}

    def start_round(self) -> None:
        self._pending = {}

    def made(self, rank: int, edge: Edge, tensor: Tensor) -> None:
        self._pending[rank, edge] = tensor

    def end_round(self, version: int) -> None:
        for (rank, edge), tensor in self._pending.items():
            for reader in self._readers.get((rank, edge), ()):
                self.stores[reader].put(edge, version, tensor)

    def close(self) -> None:
        self._pending = {}
