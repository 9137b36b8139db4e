"""Divide the unit calls of a graph into components, and say which live edges then cross. Pure."""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from asyncdiff.errors import SplitError
from asyncdiff.graph import Edge, Graph

# Components may be this much heavier than the best possible balance where that saves traffic.
BALANCE_TOLERANCE = 0.03


@dataclass(frozen=True)
class Partition:
    """N components of a graph's unit calls.

    Attributes:
        components: for each component, the indices of its unit calls in call order.
        reads: for each component, the live edges that it reads from other components.
        predictor: the component whose pass gives the noise prediction.
        shares: for each component, its part of the cost of one pass (glue and replicated units, which
            every device computes, are counted for every component).
    """

    components: tuple[frozenset[int], ...]
    reads: tuple[frozenset[Edge], ...]
    predictor: int
    shares: tuple[float, ...]

    def owner(self, unit: int) -> int | None:
        """The component that owns a unit call; None for a replicated one."""
        return next((number for number, units in enumerate(self.components) if unit in units), None)

    def sends(self, source: int, reader: int) -> tuple[Edge, ...]:
        """The live edges that `reader` needs from `source`, in the order in which they are made."""
        return tuple(sorted(edge for edge in self.reads[reader] if edge.unit in self.components[source]))


def divide(graph: Graph, components: int) -> Partition:
    """Cut the call order into N contiguous, balanced components with little traffic.

    The heaviest component is at most `BALANCE_TOLERANCE` heavier than it must be; among those
    divisions the one that moves the fewest bytes is taken.

    Raises:
        SplitError: there are fewer units than components.
    """
    units = graph.divisible
    if len(units) < components:
        raise SplitError(
            f"the denoiser has {len(units)} units that can be given to a device, "
            f"which is too few for components={components}; at most components={max(len(units), 1)} is possible"
        )
    costs = [graph.units[unit].cost for unit in units]
    limit = _lightest_maximum(costs, components) * (1 + BALANCE_TOLERANCE)
    cuts = _cheapest_cuts(graph, units, costs, components, limit)
    edges = [0, *cuts, len(units)]
    return wire(graph, _owners(graph, [units[a:b] for a, b in itertools.pairwise(edges)]))


def divide_as_told(graph: Graph, split: Sequence[Sequence[str]]) -> Partition:
    """Divide by module names: a name stands for the module and everything in it.

    Units that no component names run on every device.

    Raises:
        SplitError: a name is no module that was called, lies inside a unit, or is in two components.
    """
    components: list[set[int]] = [set() for _ in split]
    taken: dict[int, str] = {}
    for number, names in enumerate(split):
        for name in names:
            for unit in (index for index, unit in enumerate(graph.units) if _is_within(unit.name, name)):
                if unit in taken:
                    raise SplitError(
                        f"unit {graph.units[unit].name!r} is named twice in the split: by {taken[unit]!r} and {name!r}"
                    )
                taken[unit] = name
                components[number].add(unit)
            _check_not_inside(graph, name)
        # A guidance branch may leave out some of the modules that a component is made of, but not all of them.
        if not components[number]:
            raise SplitError(f"{', '.join(map(repr, names))} in the split: this denoiser calls no unit in any of them")
    return wire(graph, _owners(graph, components))


def _is_within(unit: str, name: str) -> bool:
    return unit == name or unit.startswith(f"{name}.")


def _check_not_inside(graph: Graph, name: str) -> None:
    around = next((unit.name for unit in graph.units if name.startswith(f"{unit.name}.")), None)
    if around is not None:
        raise SplitError(
            f"{name!r} in the split lies inside the unit {around!r}, which can only be given to a device whole"
        )


def _lightest_maximum(costs: Sequence[float], parts: int) -> float:
    """The least possible cost of the heaviest of `parts` contiguous parts (bisection)."""
    low, high = max(costs), sum(costs)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if _parts_needed(costs, middle) <= parts else (middle, high)
    return high


def _parts_needed(costs: Sequence[float], limit: float) -> int:
    parts, filled = 1, 0.0
    for cost in costs:
        if filled + cost > limit:
            parts, filled = parts + 1, 0.0
        filled += cost
    return parts


def _cheapest_cuts(
    graph: Graph, units: Sequence[int], costs: Sequence[float], parts: int, limit: float
) -> tuple[int, ...]:
    """Dynamic programme over the cuts: fewest bytes received, then least uneven, no part above the limit."""
    count = len(units)
    position = {unit: number for number, unit in enumerate(units)}
    best: list[dict[int, tuple[int, float, tuple[int, ...]]]] = [{0: (0, 0.0, ())}]
    for part in range(parts):
        reached: dict[int, tuple[int, float, tuple[int, ...]]] = {}
        for start, (traffic, unevenness, cuts) in best[part].items():
            filled, received, seen = 0.0, 0, set()
            for end in range(start + 1, count - (parts - part - 1) + 1):
                filled += costs[end - 1]
                if filled > limit:
                    break
                for edge in graph.units[units[end - 1]].reads:
                    if position.get(edge.unit, start) < start and edge not in seen:
                        seen.add(edge)
                        received += graph.bytes([edge])
                candidate = (traffic + received, unevenness + filled**2, (*cuts, end))
                if end not in reached or candidate < reached[end]:
                    reached[end] = candidate
        best.append(reached)
    return best[parts][count][-1][:-1]


def _owners(graph: Graph, components: Sequence[Collection[int]]) -> tuple[int | None, ...]:
    owner = {unit: number for number, units in enumerate(components) for unit in units}
    return tuple(owner.get(unit) for unit in range(len(graph.units)))


def wire(graph: Graph, owners: Sequence[int | None]) -> Partition:
    """The partition in which `owners` says for each unit call who computes it (None: everyone)."""
    owner = {unit: number for unit, number in enumerate(owners) if number is not None}
    count = max(owner.values(), default=0) + 1
    components = tuple(frozenset(unit for unit in owner if owner[unit] == number) for number in range(count))
    everywhere = [unit for number, unit in enumerate(graph.units) if number not in owner]
    predictor = max(
        ((edge.unit, owner[edge.unit]) for edge in graph.output_reads if edge.unit in owner),
        default=(0, len(components) - 1),
    )[1]
    reads = []
    for number, units in enumerate(components):
        needed = {edge for unit in units for edge in graph.units[unit].reads}
        needed |= {edge for unit in everywhere for edge in unit.reads}
        if number == predictor:
            needed |= graph.output_reads
        reads.append(frozenset(edge for edge in needed if owner.get(edge.unit, number) != number))
    common = graph.glue_cost + sum(unit.cost for unit in everywhere)
    shares = tuple((common + sum(graph.units[unit].cost for unit in units)) / graph.cost for units in components)
    return Partition(components, tuple(reads), predictor, shares)
