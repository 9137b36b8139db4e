"""Which live edges travel from which rank to which, packed into one message each. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from asyncdiff.denoiser.graph import LINK_BYTE, Edge, Graph
from asyncdiff.denoiser.rates import DeviceRates
from asyncdiff.plan.partition import Partition
from asyncdiff.plan.schedule import Schedule

# A round has one moment for its edges, at its end, unless a rank sends or receives more than this (bytes) ...
_MOST_AT_THE_END = 64 * 2**20
# ... and then so many that the last takes about this share of the round's modelled time, but never more than four.
_SHARE_AT_THE_END = 0.05
_MOST_PARTS = 4


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


def parts_of_round(
    graph: Graph, partition: Partition, messages: Sequence[Message], rates: DeviceRates
) -> Mapping[Edge, int]:
    """In which part of a round each live edge is made that travels; one part, where edges are light.

    `rates` are those of `build_graph`.
    """
    heaviest = _heaviest_traffic(graph, messages)
    edges = [edge for message in messages for edge in message.edges]
    count = 1
    if heaviest > _MOST_AT_THE_END:
        share = heaviest * LINK_BYTE * rates.per_byte / (max(partition.shares) * graph.time)
        count = min(_MOST_PARTS, max(1, round(share / _SHARE_AT_THE_END)))
    return {edge: min(count - 1, int(count * _progress(graph, partition, edge))) for edge in edges}


def _heaviest_traffic(graph: Graph, messages: Sequence[Message]) -> int:
    """The most bytes that one rank sends, or receives, in a round."""
    moved: Counter[tuple[str, int]] = Counter()
    for message in messages:
        size = graph.bytes(message.edges)
        moved["sent", message.source] += size
        moved["received", message.reader] += size
    return max(moved.values(), default=0)


def _progress(graph: Graph, partition: Partition, edge: Edge) -> float:
    """How much of its component's work is done when an edge is made."""
    own = partition.components[partition.owner(edge.unit) or 0]
    done = sum(graph.units[unit].time for unit in own if unit <= edge.unit)
    return done / max(sum(graph.units[unit].time for unit in own), 1e-30)
