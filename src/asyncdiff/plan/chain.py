"""A call in full by ranks that have a part of the weights each: component after component. Pure, plain data.

Whoever is not asked for a unit gets what its owner made of it in this same call, in its own numbers, so that the result
is the ordinary one bit for bit. It takes the time of one device, and the transfers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from asyncdiff.denoiser.graph import Edge
from asyncdiff.plan.division import Division
from asyncdiff.plan.routing import Message


@dataclass(frozen=True)
class Link:
    """Unit calls in a row that one component owns.

    Attributes:
        component: who owns them.
        units: their indices; what every device runs lies between them.
        messages: what the ranks of other components read of it, once it is done.
    """

    component: int
    units: tuple[int, ...]
    messages: tuple[Message, ...]


def chain(division: Division, keeps: bool) -> tuple[Link, ...]:
    """The links of a call in full, in order.

    Args:
        keeps: whether the ranks store what later steps read.
    """
    ranks = range(division.schedule.world_size)
    reads = [_reads(division, rank, keeps) for rank in ranks]
    links = []
    for component, units in _runs(division):
        found = []
        for reader in ranks:
            edges = sorted(edge for edge in reads[reader] if edge.unit in units)
            if edges and division.schedule.component_of(reader) != component:
                found.append(Message(component, reader, tuple(edges)))
        links.append(Link(component, units, tuple(found)))
    return tuple(links)


def _runs(division: Division) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The owned units in call order, those in a row together that have the same owner."""
    owner, run = None, list[int]()
    for unit in range(len(division.graph.units)):
        found = division.partition.owner(unit)
        if found is None:
            continue
        if found != owner and owner is not None:
            yield owner, tuple(run)
            run = []
        owner = found
        run.append(unit)
    if owner is not None:
        yield owner, tuple(run)


def _reads(division: Division, rank: int, keeps: bool) -> frozenset[Edge]:
    """What a rank reads of other components, as it was made."""
    graph, partition = division.graph, division.partition
    component = division.schedule.component_of(rank)
    own = partition.components[component]
    needed = {edge for unit in own | division.replicated for edge in graph.units[unit].reads}
    if component == partition.predictor:
        needed |= graph.output_reads
    if keeps:
        needed |= division.reads_of(rank)
    return frozenset(edge for edge in needed if edge.unit not in own and edge.unit not in division.replicated)
