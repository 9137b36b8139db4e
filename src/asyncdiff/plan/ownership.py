"""Which components have which weights: found in one division, and kept to by all that follow. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from asyncdiff.denoiser.graph import Graph
from asyncdiff.denoiser.trace import paths_to
from asyncdiff.plan.partition import Partition


@dataclass(frozen=True)
class Ownership:
    """Who has a denoiser's weights.

    Attributes:
        units: for each unit call, by name and ordinal, the component that computes it; None for all of them.
        components: how many there are.
    """

    units: Mapping[tuple[str, int], int | None]
    components: int

    def of(self, weight: str) -> frozenset[int] | None:
        """The components that have a weight, given by its name in the denoiser; None where all have it.

        All do where it is in nothing that was called, or in no unit. A part of one unit may be called as another.
        """
        paths = frozenset(paths_to(weight))
        found = {owner for (name, _), owner in self.units.items() if name in paths}
        owners = frozenset(owner for owner in found if owner is not None)
        return owners if owners and None not in found else None

    def owner(self, name: str, ordinal: int) -> int | None:
        """The component that computes a unit call, perhaps of a division whose units are smaller; None for all."""
        for path in reversed([*paths_to(name)]):
            for key in ((path, ordinal), (path, 0)):
                if key in self.units:
                    return self.units[key]
        return None

    @property
    def names(self) -> tuple[str, ...]:
        """All units' names."""
        return tuple(dict.fromkeys(name for name, _ in self.units))


def ownership_of(graph: Graph, partition: Partition) -> Ownership:
    """Who has which weights where a denoiser is divided so."""
    units = {(unit.name, unit.ordinal): partition.owner(number) for number, unit in enumerate(graph.units)}
    return Ownership(units, len(partition.components))


def owners_of(graph: Graph, ownership: Ownership) -> tuple[int | None, ...]:
    """For each unit call of a graph, the component that computes it, as weights were given out."""
    return tuple(ownership.owner(unit.name, unit.ordinal) for unit in graph.units)
