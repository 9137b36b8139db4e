"""A denoiser divided: its graph, its components, the schedule and the messages that follow. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from asyncdiff.graph import Edge, Graph, build_graph, coarsen
from asyncdiff.partition import Partition, divide, divide_as_told, wire
from asyncdiff.routing import Message, messages
from asyncdiff.schedule import Schedule
from asyncdiff.trace import Trace


@dataclass(frozen=True)
class Division:
    """All that the executors, the time model and the reports need to know of a divided denoiser."""

    graph: Graph
    partition: Partition
    schedule: Schedule
    messages: tuple[Message, ...]

    @property
    def bytes_per_round(self) -> int:
        """What all ranks together send in one round, predictions left out."""
        return sum(self.graph.bytes(message.edges) for message in self.messages)


def plan(
    trace: Trace, schedule: Schedule, split: Sequence[Sequence[str]] | None, operations_per_byte: float
) -> Division:
    """Divide a traced denoiser into the schedule's components, as told by `split` or by balance.

    Raises:
        SplitError: the denoiser cannot be divided so.
    """
    fine = build_graph(trace, operations_per_byte, inside=[name for names in split or () for name in names])
    partition = divide(fine, schedule.components) if split is None else divide_as_told(fine, split)
    graph, owners = coarsen(trace, fine, [partition.owner(unit) for unit in range(len(fine.units))])
    partition = wire(graph, owners)
    schedule = replace(schedule, predictor=partition.predictor)
    return Division(graph, partition, schedule, messages(schedule, partition))


def read_anywhere(division: Division) -> frozenset[Edge]:
    """The live edges that any component reads."""
    return frozenset[Edge]().union(*division.partition.reads)
