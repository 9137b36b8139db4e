"""What a device needs memory for. Pure."""

from dataclasses import dataclass

import torch

from asyncdiff.denoiser.footprint import peak_bytes
from asyncdiff.plan.division import Division
from asyncdiff.plan.ownership import ownership_of
from asyncdiff.plan.places import places_of
from asyncdiff.planning.subject import Share, Subject

# Beside the versions that are kept: one is on its way, and one is forecast.
_MORE_VERSIONS = 2


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        own_weights: the denoiser's weights that other devices of the group do not have.
        shared_weights: those that every device has.
        history: versions of live edges, the one that is on its way, and what is forecast of them.
        buffers: the denoiser's own, and those from which live edges are sent.
        activations: the most that a call's tensors take at once, as counted.
        others: the other parts of the pipeline, or those of them that this device has.
    """

    own_weights: int
    shared_weights: int
    history: int
    buffers: int
    activations: int
    others: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.own_weights + self.shared_weights + self.history + self.buffers + self.activations + self.others


def heaviest(subject: Subject, division: Division, share: Share) -> Memory:
    """What the device of a group needs that needs most; the schedule says whether the weights are divided."""
    ranks = range(division.schedule.world_size)
    return max((_of_rank(subject, division, share, rank) for rank in ranks), key=lambda memory: memory.total)


def _of_rank(subject: Subject, division: Division, share: Share, rank: int) -> Memory:
    schedule = division.schedule
    component = schedule.component_of(rank)
    own, everywhere = _weights(subject, division, component) if schedule.chained else (0, sum(subject.weights.values()))
    streams = share.part * share.calls
    history = sum(_held(division, dtype, size) for dtype, size in division.storage_of(rank).sizes.items())
    sent = sum(division.bytes_of(message.edges) for message in division.messages if message.source == rank)
    if division.packings:  # what the others have of its own, to which differences are taken
        sent += sum(size * dtype.itemsize for dtype, size in division.storage_of_sent(rank).sizes.items())
    peak = peak_bytes(subject.trace, _of_others(division, component)) if schedule.chained else subject.peak
    return Memory(
        own_weights=own * subject.twins,
        shared_weights=everywhere * subject.twins,
        history=round(streams * history) if division.reads_of(rank) else 0,
        buffers=subject.buffers + round(streams * sent),
        activations=round(share.part * peak),
        others=subject.common + _others(subject, division, rank),
    )


def _held(division: Division, dtype: torch.dtype, numbers: int) -> int:
    """What versions of so many numbers take, with the one that is on its way."""
    versions, packing = division.schedule.kept_versions, division.packings.get(dtype)
    if packing is not None:
        return numbers * dtype.itemsize + versions * packing.nbytes(numbers)
    return numbers * dtype.itemsize * (versions + _MORE_VERSIONS if dtype.is_floating_point else _MORE_VERSIONS)


def _others(subject: Subject, division: Division, rank: int) -> int:
    """Bytes of the other parts that a rank has: all, or where weights are divided those that were dealt to it."""
    if not division.schedule.chained:
        return sum(subject.others.values())
    places = places_of(subject.others, division.schedule.world_size)
    return sum(size for name, size in subject.others.items() if places[name] == rank)


def _weights(subject: Subject, division: Division, component: int) -> tuple[int, int]:
    """Bytes of the weights that a component has for itself, and of those that every device has."""
    ownership = ownership_of(division.graph, division.partition)
    own = everywhere = 0
    for name, size in subject.weights.items():
        owners = ownership.of(name)
        own += size if owners is not None and component in owners else 0
        everywhere += size if owners is None else 0
    return own, everywhere


def _of_others(division: Division, component: int) -> list[int]:
    """The calls, by their numbers in the trace, that devices of other components make."""
    owned = ((unit.call, division.partition.owner(number)) for number, unit in enumerate(division.graph.units))
    return [call for call, owner in owned if owner not in (component, None)]
