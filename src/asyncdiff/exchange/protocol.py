"""What every exchange can do: the interface that the runtime speaks to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from asyncdiff.denoiser.graph import Edge
from asyncdiff.exchange.store import EdgeStore
from asyncdiff.plan.division import Division


@dataclass
class Traffic:
    """What a process sent, and how long it waited for the others, since the generation began."""

    bytes_sent: int = 0
    seconds_waited: float = 0.0


class Channel(Protocol):
    """The live edges of one stream of denoiser calls."""

    @property
    def stores(self) -> Mapping[int, EdgeStore]:
        """For each rank of this process, the live edges that it holds."""

    def start_round(self) -> None:
        """Get ready for what the other ranks will make in this round."""

    def made(self, rank: int, edge: Edge, tensor: Tensor) -> None:
        """A rank of this process has made a live edge."""

    def end_round(self, version: int) -> None:
        """From now on the stores hold (or promise) the edges made in this round, as `version`."""

    def close(self) -> None:
        """Wait for what is still on its way and forget it."""


class Exchange(Protocol):
    """Moves live edges and noise predictions between ranks.

    Attributes:
        ranks: those of this process.
        traffic: what this process has sent, and waited for.
        is_between_processes: whether messages may be outstanding when a call ends early.
    """

    ranks: Sequence[int]
    traffic: Traffic
    is_between_processes: bool

    def open(self, division: Division) -> Channel:
        """A channel for one stream."""

    def share(self, predictions: Mapping[int, Sequence[Tensor]], sources: Mapping[int, int]) -> dict[int, list[Tensor]]:
        """Give every rank the noise predictions of `sources` (step to rank).

        `predictions` holds, for every step, tensors of the right shape; those of the steps whose
        source is a rank of this process are the predictions.
        """

    def check_agreement(self, digest: Tensor, scale: Tensor, what: str) -> None:
        """Raise RankMismatchError if `digest` differs between ranks by more than rounding of `scale`."""

    def agree(self, mine: bool, what: str) -> bool:
        """Whether all ranks say so; what it is about is told where a rank does not answer."""

    def share_random_state(self) -> None:
        """Take over rank 0's random state: numbers drawn without a generator must be the same on all ranks."""

    def close(self) -> None:
        """Leave the run."""


def share_results(
    exchange: Exchange, results: Mapping[int, Sequence[Any]], sources: Mapping[int, int]
) -> dict[int, list[Any]]:
    """Share the leaves of results, which `sources` have; leaves that are no tensors are everyone's own."""
    tensors = {key: [leaf for leaf in leaves if isinstance(leaf, Tensor)] for key, leaves in results.items()}
    shared = {key: iter(received) for key, received in exchange.share(tensors, sources).items()}
    return {
        key: [next(shared[key]) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        for key, leaves in results.items()
    }
