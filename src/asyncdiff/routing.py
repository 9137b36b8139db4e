"""Which live edges travel from which rank to which, packed into one message each. Pure."""

from dataclasses import dataclass

from asyncdiff.graph import Edge
from asyncdiff.partition import Partition
from asyncdiff.schedule import Schedule


@dataclass(frozen=True)
class Message:
    """The live edges that one rank sends to another in every round, in the order in which they are made."""

    source: int
    reader: int
    edges: tuple[Edge, ...]


def messages(schedule: Schedule, partition: Partition) -> tuple[Message, ...]:
    """One message from every component's rank to every rank that reads from it."""
    found = []
    for source in range(schedule.components):
        for reader in range(schedule.world_size):
            edges = partition.sends(source, schedule.component_of(reader))
            if edges:
                found.append(Message(source, reader, edges))
    return tuple(found)
