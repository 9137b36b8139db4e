"""A denoiser divided: its graph, its components, the schedule and the messages that follow. Pure."""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from asyncdiff.denoiser.graph import Edge, Graph, build_graph, coarsen
from asyncdiff.denoiser.rates import DeviceRates
from asyncdiff.denoiser.residual import find_bases
from asyncdiff.denoiser.trace import Trace
from asyncdiff.plan.cost import cost, fast_enough, speedup
from asyncdiff.plan.method import PAPER, Method
from asyncdiff.plan.ownership import Ownership, owners_of
from asyncdiff.plan.packing import Packing, packing_for
from asyncdiff.plan.partition import Partition, divide, divide_as_told, wire
from asyncdiff.plan.routing import Message, messages, parts_of_round, reads_of
from asyncdiff.plan.schedule import Schedule, Step
from asyncdiff.plan.storage import Storage, lay_out


class Goal(NamedTuple):
    """A modelled speed-up that is wanted of a denoising loop of so many steps."""

    steps: int
    speedup: float


@dataclass(frozen=True)
class Division:
    """All that the executors, the time model and the reports need to know of a divided denoiser.

    Attributes:
        messages: the live edges that travel in every round.
        part_of: in which part of a round each of them is made (`parts_of_round`).
    """

    graph: Graph
    partition: Partition
    schedule: Schedule
    messages: tuple[Message, ...]
    part_of: Mapping[Edge, int]
    method: Method

    @property
    def walked(self) -> Graph:
        """The units that a walk through a call of the denoiser comes to."""
        return self.graph

    @property
    def bounds(self) -> tuple[int, ...]:
        """Where each component's tokens begin, and where the last one's end; none where tokens are not divided."""
        return ()

    def described(self) -> str:
        """What has to be the same on all ranks."""
        return str([self.partition.owner(unit) for unit in range(len(self.graph.units))])

    def results(self, step: Step) -> tuple[tuple[int, int], ...]:
        """What a round gives, as (key, rank that makes it): predictions, by the step that they are for."""
        return tuple((task.predicts, task.rank) for task in step.tasks if task.predicts is not None)

    def result_bytes(self, prediction: float, part: float) -> float:
        """What a rank gives each of the others of its result.

        Args:
            prediction: bytes of the prediction, of a part of the batch.
            part: how much of it that is.
        """
        return prediction

    @property
    def made_everywhere(self) -> frozenset[Edge]:
        """Live edges that every rank makes for itself, and holds."""
        return frozenset()

    @property
    def divided_share(self) -> float:
        """A rank's part of a step in full, where that is divided by tokens."""
        return 1.0

    @property
    def exchanged_within(self) -> tuple[tuple[int, int, int], ...]:
        """What is exchanged while a step in full is computed, where that is divided: source, reader and bytes."""
        return ()

    @property
    def moments_within(self) -> int:
        """How often it is waited for."""
        return 0

    @property
    def passes_within(self) -> float:
        """Bytes that a rank goes through to pack and unpack it."""
        return 0.0

    @functools.cached_property
    def replicated(self) -> frozenset[int]:
        """The units that every device runs."""
        return frozenset(range(len(self.graph.units))).difference(*self.partition.components)

    @functools.cached_property
    def independent(self) -> frozenset[int]:
        """Those of them that depend on the denoiser's inputs alone; a split may leave others to all devices."""
        found: set[int] = set()
        for number in sorted(self.replicated):
            if all(edge.unit in found for edge in self.graph.units[number].reads):
                found.add(number)
        return frozenset(found)

    @property
    def bytes_per_round(self) -> int:
        """What all ranks together send in one round, predictions left out."""
        return sum(self.bytes_of(message.edges) for message in self.messages)

    def bytes_of(self, edges: Iterable[Edge]) -> int:
        """What live edges take on their way in a round."""
        return sum(self._bytes_of_edge(edge) for edge in edges)

    def _bytes_of_edge(self, edge: Edge) -> int:
        leaf = self.graph.units[edge.unit].outputs[edge.leaf]
        packing = None if leaf.dtype is None else self.packings.get(leaf.dtype)
        return leaf.bytes if packing is None else packing.nbytes(math.prod(leaf.shape))

    @functools.cached_property
    def packings(self) -> Mapping[torch.dtype, Packing]:
        """How differences are packed, for each number format that is; the same on all ranks."""
        blocks: dict[torch.dtype, set[int]] = {}
        for rank in range(self.schedule.world_size) if self.method.bits is not None else ():
            for storage in (self.storage_of(rank), self.storage_of_sent(rank)):
                for dtype in (dtype for dtype, size in storage.sizes.items() if size and dtype.is_floating_point):
                    blocks.setdefault(dtype, set()).add(storage.block(dtype))
        return {dtype: packing_for(self.method.bits or 8, found) for dtype, found in blocks.items()}

    def reads_of(self, rank: int) -> frozenset[Edge]:
        """The live edges that a rank holds."""
        return reads_of(self.schedule, self.partition, rank) | self.made_everywhere

    def own_reads_of(self, rank: int) -> frozenset[Edge]:
        """Those of them that the rank makes itself."""
        return self._own_reads[rank]

    @functools.cached_property
    def _own_reads(self) -> tuple[frozenset[Edge], ...]:
        own = [self.partition.components[self.schedule.component_of(rank)] for rank in range(self.schedule.world_size)]
        return tuple(
            frozenset(edge for edge in self.reads_of(rank) if edge.unit in units) for rank, units in enumerate(own)
        )

    @functools.cached_property
    def run_by(self) -> tuple[frozenset[int], ...]:
        """The units that a component's device runs in a round: the component's, and those that every device runs."""
        return tuple(own | self.replicated for own in self.partition.components)

    @functools.cached_property
    def run_at_the_end(self) -> frozenset[int]:
        """The units that are run where a prediction is completed."""
        return self.partition.end.units | self.replicated

    def kept_by(self, rank: int) -> frozenset[Edge]:
        """What a rank keeps of a step in full: what it holds, and what it must know that others hold."""
        return self._kept[rank]

    @functools.cached_property
    def _kept(self) -> tuple[frozenset[Edge], ...]:
        """Rank by rank; it is asked for at every attention where tokens are divided."""
        return tuple(
            self.reads_of(rank) | (self.sent_by(rank) if self.packings else frozenset())
            for rank in range(self.schedule.world_size)
        )

    def sent_by(self, rank: int) -> frozenset[Edge]:
        """The live edges that a rank sends in a round."""
        return frozenset(edge for message in self.messages if message.source == rank for edge in message.edges)

    def storage_of(self, rank: int) -> Storage:
        """How a rank lays out the live edges that it holds: those of a source and a part of a round together."""
        groups: dict[tuple[int, int], list[Edge]] = {}
        at_the_end = self.partition.end.reads
        for message in self.messages:
            if message.reader == rank:
                for edge in message.edges:
                    groups.setdefault((message.source, 2 * self.part_of[edge] + (edge in at_the_end)), []).append(edge)
        own = self.own_reads_of(rank)
        ordered = [groups[key] for key in sorted(groups)]
        return lay_out(self.graph, [*ordered, own - at_the_end, own & at_the_end, self.made_everywhere])

    def storage_of_sent(self, rank: int) -> Storage:
        """How a rank lays out what the others hold of its own."""
        return lay_out(self.graph, [self.sent_by(rank)])

    def modelled_speedup(self, steps: int) -> float:
        """The modelled speed-up of a denoising loop of so many steps, without communication."""
        return speedup(self.schedule, steps, max(self.partition.shares), self.partition.end.share, self.divided_share)

    def cost(self, step: Step) -> float:
        """The modelled time of a step, in denoiser calls, without communication."""
        return cost(step, max(self.partition.shares), self.partition.end.share, self.divided_share)


def divide_denoiser(
    trace: Trace,
    schedule: Schedule,
    split: Sequence[Sequence[str]] | None,
    rates: DeviceRates,
    method: Method = PAPER,
    goal: Goal | None = None,
    ownership: Ownership | None = None,
) -> Division:
    """Divide a traced denoiser into the schedule's components, as told by `split` or by balance.

    With a goal, as many steps are bridged as it takes. Where a rank has its component's weights alone, these are
    balanced first; with an ownership, units go to those that have their weights.

    Raises:
        SplitError: the denoiser cannot be divided so.
    """
    named = [name for names in split or () for name in names] if ownership is None else ownership.names
    fine = build_graph(trace, rates, named)
    if ownership is not None:
        partition = wire(fine, owners_of(fine, ownership))
    elif split is not None:
        partition = divide_as_told(fine, split)
    else:
        partition = divide(fine, schedule.components, schedule.chained)
    graph, owners = coarsen(trace, fine, [partition.owner(unit) for unit in range(len(fine.units))])
    partition = wire(graph, owners, find_bases(trace, graph, owners) if method.residual else None)
    # Where the predictor alone makes what the last layers read, there is nothing to sum.
    is_sum = any(partition.owner(edge.unit) != partition.predictor for edge in partition.end.reads)
    schedule = replace(
        schedule,
        predictor=partition.predictor,
        versions=method.versions,
        fresh_sum=method.fresh_sum and is_sum,
    )
    if goal is not None:
        schedule = fast_enough(schedule, goal.steps, goal.speedup, max(partition.shares), partition.end.share)
    sent = messages(schedule, partition)
    part_of = parts_of_round(graph, partition, sent, rates)
    return Division(graph, partition, schedule, sent, part_of, method)
