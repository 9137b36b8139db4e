"""Which live edges travel from which rank to which, packed into one message each. Pure."""

from dataclasses import dataclass

from asyncdiff.denoiser.graph import Edge
from asyncdiff.plan.partition import Partition
from asyncdiff.plan.schedule import Schedule


@dataclass(frozen=True)
class Message:
    """The live edges that one rank sends to another in every round, in the order in which they are made."""

    source: int
    reader: int
    edges: tuple[Edge, ...]


def reads_of(schedule: Schedule, partition: Partition, rank: int) -> frozenset[Edge]:
    """The live edges that a rank holds: what it reads from others, and what it may need again of its own."""
    component = schedule.component_of(rank)
    is_completing = schedule.completes and component == partition.predictor
    return partition.reads[component] | (partition.end.reads if is_completing else frozenset())


def messages(schedule: Schedule, partition: Partition) -> tuple[Message, ...]:
    """One message from every component's rank to every rank that reads from it."""
    found = []
    for reader in range(schedule.world_size):
        component = schedule.component_of(reader)
        reads = reads_of(schedule, partition, reader)
        for source in range(schedule.components):
            edges = sorted(edge for edge in reads if edge.unit in partition.components[source])
            if edges and source != component:
                found.append(Message(source, reader, tuple(edges)))
    return tuple(sorted(found, key=lambda message: (message.source, message.reader)))
