"""What every exchange can do: the interface that the runtime speaks to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from asyncdiff.denoiser.graph import Edge
from asyncdiff.exchange.agreement import Statements
from asyncdiff.exchange.store import EdgeStore
from asyncdiff.plan.chain import Link
from asyncdiff.plan.division import Division
from asyncdiff.plan.moments import Moment, StepOrder


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

    def keep(self, rank: int, edge: Edge, tensor: Tensor) -> None:
        """A rank of this process keeps an edge of a step in full (`Division.kept_by`)."""

    def end_in_full(self, versions: Sequence[int]) -> None:
        """From now on the stores hold the edges that were kept in a step in full, as these versions."""

    def start_round(self, order: StepOrder) -> None:
        """A round begins, in which this is exchanged."""

    def made(self, rank: int, edge: Edge, tensor: Tensor) -> None:
        """A rank of this process has made a live edge."""

    def exchange(self, moment: Moment) -> None:
        """It is time for a moment of the round, unless it has begun already."""

    def end_round(self, version: int) -> None:
        """From now on the stores hold (or promise) the edges made in this round, as `version`."""

    def close(self) -> None:
        """Wait for what is still on its way and forget it."""


class Relay(Protocol):
    """What is handed on in one chained step; every rank walks through the units in call order."""

    def reach(self, rank: int, unit: int) -> None:
        """A rank of this process has done all units before this one."""

    def made(self, rank: int, edge: Edge, tensor: Tensor) -> None:
        """A rank of this process has made an edge that others read."""

    def read(self, rank: int, edge: Edge) -> Tensor:
        """An edge that another component has made, for a rank of this process; waits for it."""

    def finish(self) -> None:
        """All ranks of this process are through: take part in what is left, and wait for it."""


class Sharing(Protocol):
    """Results on their way to every rank."""

    def finish(self) -> dict[int, list[Tensor]]:
        """All of them, once they are there."""


class Exchange(Protocol):
    """Moves live edges and noise predictions between ranks.

    Attributes:
        ranks: those of this process.
        traffic: what this process has sent, and waited for.
    """

    ranks: Sequence[int]
    traffic: Traffic

    def open(self, division: Division, device: torch.device) -> Channel:
        """A channel for one stream, whose live edges are kept on a device."""

    def relay(self, division: Division, links: Sequence[Link], device: torch.device) -> Relay:
        """What hands on, from link to link of one chained step, what is computed on a device."""

    def share(
        self, results: Mapping[int, Sequence[Tensor]], moment: Moment, what: str = "the noise prediction of step"
    ) -> Sharing:
        """Begin to give the results of a moment to the ranks that get them, of which this process has one.

        `results` holds, for each of them, tensors of the right shape; those that a rank of this process has made are
        the results. In an error one is named by `what` and its number.
        """

    def deal(self, given: Mapping[int, Sequence[Tensor]], rooms: Mapping[int, Sequence[Tensor]], what: str) -> Sharing:
        """Begin to give other ranks what is for each of them, and to receive what is from each of them into its room.

        All of them take part at once, and what one gives another has room for: as many tensors, of the same shapes.
        `what` names it in an error, with the rank that it is from.
        """

    def check_agreement(self, statements: Statements, what: str) -> None:
        """Raise RankMismatchError if one of the statements is another on another rank; `what` names them all."""

    def remark(self, text: str) -> None:
        """Note what explains, should the others wait for this rank in vain, why; the last remark counts."""

    def agree(self, mine: bool, what: str) -> bool:
        """Whether all ranks say so; what it is about is told where a rank does not answer."""

    def close(self) -> None:
        """Leave the run."""


class SharedLeaves:
    """The leaves of results on their way; those that are no tensors are everyone's own."""

    def __init__(self, exchange: Exchange, results: Mapping[int, Sequence[Any]], moment: Moment) -> None:
        self._results = results
        tensors = {key: [leaf for leaf in leaves if isinstance(leaf, Tensor)] for key, leaves in results.items()}
        self._sharing = exchange.share(tensors, moment)

    def finish(self) -> dict[int, list[Any]]:
        """All of them, once they are there."""
        shared = {key: iter(received) for key, received in self._sharing.finish().items()}
        return {
            key: [next(shared[key]) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            for key, leaves in self._results.items()
        }
