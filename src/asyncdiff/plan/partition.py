"""Divide the unit calls of a graph into components, and say which live edges then cross. Pure."""

import functools
import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from asyncdiff.denoiser.graph import Edge, Graph
from asyncdiff.denoiser.residual import Base
from asyncdiff.errors import SplitError

# Components may be this much heavier than the best possible balance where that saves traffic.
BALANCE_TOLERANCE = 0.03

# Where components' weights are balanced, they may have so much more than an equal share each.
MEMORY_TOLERANCE = 0.03

# The last layers of a denoiser, up to this share of a call, can be run apart from the component they belong to.
END_COST_SHARE = 0.01


@dataclass(frozen=True)
class End:
    """The denoiser's last layers: what turns the components' work into a prediction.

    Attributes:
        units: the indices of their unit calls; the predictor's component has them too.
        reads: the live edges that they need, and the denoiser's own output needs, from all components.
        share: their part of the cost of one pass, with all that every device computes.
    """

    units: frozenset[int]
    reads: frozenset[Edge]
    share: float


@dataclass(frozen=True)
class Partition:
    """N components of a graph's unit calls.

    Attributes:
        components: for each component, the indices of its unit calls in call order.
        reads: for each component, the live edges that it reads from other components.
        predictor: the component whose pass gives the noise prediction.
        shares: for each component, its part of the cost of one pass (glue and replicated units, which
            every device computes, are counted for every component).
        end: the denoiser's last layers.
        bases: for each live edge that travels as a residual, what the residual is added to.
    """

    components: tuple[frozenset[int], ...]
    reads: tuple[frozenset[Edge], ...]
    predictor: int
    shares: tuple[float, ...]
    end: End
    bases: Mapping[Edge, Base] = field(default_factory=dict)

    @functools.cached_property
    def base_inputs(self) -> Mapping[int, frozenset[int]]:
        """For each unit call that is given what a residual is added to, the places among its inputs."""
        found: dict[int, frozenset[int]] = {}
        for base in self.bases.values():
            found[base.unit] = found.get(base.unit, frozenset()) | {base.input}
        return found

    def owner(self, unit: int) -> int | None:
        """The component that owns a unit call; None for a replicated one."""
        return next((number for number, units in enumerate(self.components) if unit in units), None)


def divide(graph: Graph, components: int, by_weight: bool = False) -> Partition:
    """Cut the call order into N balanced components with little traffic.

    The heaviest component is at most `BALANCE_TOLERANCE` heavier than it must be; among those
    divisions the one that moves the fewest bytes is taken. Components are contiguous; one of two may have both ends of
    the call order, like the shallow layers of a U-Net, whose skips then do not travel, and whose way from the latent to
    the prediction is always fresh. (More components than two were measured to be farther off with it: docs/quality.md.)

    Args:
        by_weight: no component may have more of the weights than an equal share and `MEMORY_TOLERANCE`, if contiguous
            parts can be so even; among those divisions the best-balanced is taken.

    Raises:
        SplitError: there are fewer units than components.
    """
    units = graph.divisible
    if len(units) < components:
        raise SplitError(
            f"the denoiser has {len(units)} units that can be given to a device, "
            f"which is too few for components={components}; at most components={max(len(units), 1)} is possible"
        )
    loads = [_Load(graph.units[unit].time, graph.units[unit].weight_bytes) for unit in units]
    most_bytes = math.inf
    if by_weight:
        even = sum(load.bytes for load in loads) / components * (1 + MEMORY_TOLERANCE)
        most_bytes = max(even, _lightest_maximum([_Load(load.bytes, 0) for load in loads], components, math.inf))
    limit = _Load(_lightest_maximum(loads, components, most_bytes) * (1 + BALANCE_TOLERANCE), most_bytes)
    cuts = _cheapest_cuts(graph, units, loads, components, limit)
    candidates: list[list[Sequence[int]]] = [[units[a:b] for a, b in itertools.pairwise([0, *cuts, len(units)])]]
    if components == 2:
        candidates += _nested(units, loads, limit)
    best = min(candidates, key=lambda parts: (_traffic(graph, parts), _unevenness(graph, parts)))
    return wire(graph, _owners(graph, best))


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


class _Load(NamedTuple):
    """What a unit call, or several, put on a device: time, and weights."""

    time: float
    bytes: float

    def plus(self, other: "_Load") -> "_Load":
        return _Load(self.time + other.time, self.bytes + other.bytes)

    def minus(self, other: "_Load") -> "_Load":
        return _Load(self.time - other.time, self.bytes - other.bytes)

    def is_within(self, limit: "_Load") -> bool:
        return self.time <= limit.time and self.bytes <= limit.bytes


_NOTHING = _Load(0.0, 0.0)


def _lightest_maximum(loads: Sequence[_Load], parts: int, most_bytes: float) -> float:
    """The least possible time of the heaviest of `parts` contiguous parts, none above so many bytes (bisection)."""
    times = [load.time for load in loads]
    low, high = max(times), sum(times)
    for _ in range(60):
        middle = (low + high) / 2
        is_enough = _parts_needed(loads, _Load(middle, most_bytes)) <= parts
        low, high = (low, middle) if is_enough else (middle, high)
    return high


def _parts_needed(loads: Sequence[_Load], limit: _Load) -> int:
    parts, filled = 1, _NOTHING
    for load in loads:
        if not filled.plus(load).is_within(limit):
            parts, filled = parts + 1, _NOTHING
        filled = filled.plus(load)
    return parts


def _cheapest_cuts(
    graph: Graph, units: Sequence[int], loads: Sequence[_Load], parts: int, limit: _Load
) -> tuple[int, ...]:
    """Dynamic programme over the cuts: fewest bytes received, then least uneven, no part above the limit."""
    count = len(units)
    position = {unit: number for number, unit in enumerate(units)}
    best: list[dict[int, tuple[int, float, tuple[int, ...]]]] = [{0: (0, 0.0, ())}]
    for part in range(parts):
        reached: dict[int, tuple[int, float, tuple[int, ...]]] = {}
        for start, (traffic, unevenness, cuts) in best[part].items():
            filled, received, seen = _NOTHING, 0, set()
            for end in range(start + 1, count - (parts - part - 1) + 1):
                filled = filled.plus(loads[end - 1])
                if not filled.is_within(limit):
                    break
                for edge in graph.units[units[end - 1]].reads:
                    if position.get(edge.unit, start) < start and edge not in seen:
                        seen.add(edge)
                        received += graph.bytes([edge])
                candidate = (traffic + received, unevenness + filled.time**2, (*cuts, end))
                if end not in reached or candidate < reached[end]:
                    reached[end] = candidate
        best.append(reached)
    return best[parts][count][-1][:-1]


def _nested(units: Sequence[int], loads: Sequence[_Load], limit: _Load) -> Iterator[list[Sequence[int]]]:
    """All divisions into both ends of the call order and what is between them, neither above the limit."""
    before = [_NOTHING, *itertools.accumulate(loads, _Load.plus)]
    for first, stop in itertools.combinations(range(1, len(units)), 2):
        middle = before[stop].minus(before[first])
        if middle.is_within(limit) and before[-1].minus(middle).is_within(limit):
            yield [[*units[:first], *units[stop:]], units[first:stop]]


def _traffic(graph: Graph, parts: Sequence[Collection[int]]) -> int:
    """The bytes that all parts read from each other."""
    elsewhere = {number: {*graph.divisible}.difference(part) for number, part in enumerate(parts)}
    return sum(
        graph.bytes({edge for unit in part for edge in graph.units[unit].reads if edge.unit in elsewhere[number]})
        for number, part in enumerate(parts)
    )


def _unevenness(graph: Graph, parts: Sequence[Collection[int]]) -> float:
    return sum(sum(graph.units[unit].time for unit in part) ** 2 for part in parts)


def _owners(graph: Graph, components: Sequence[Collection[int]]) -> tuple[int | None, ...]:
    owner = {unit: number for number, units in enumerate(components) for unit in units}
    return tuple(owner.get(unit) for unit in range(len(graph.units)))


def wire(graph: Graph, owners: Sequence[int | None], bases: Mapping[Edge, Base] | None = None) -> Partition:
    """The partition in which `owners` says for each unit call who computes it (None: everyone).

    `bases` says which edges are to travel as residuals, and what these are added to.
    """
    bases = bases or {}
    owner = {unit: number for unit, number in enumerate(owners) if number is not None}
    count = max(owner.values(), default=0) + 1
    components = tuple(frozenset(unit for unit in owner if owner[unit] == number) for number in range(count))
    everywhere = [unit for number, unit in enumerate(graph.units) if number not in owner]
    predictor = max(
        ((edge.unit, owner[edge.unit]) for edge in graph.output_reads if edge.unit in owner),
        default=(0, len(components) - 1),
    )[1]
    read_everywhere = {edge for unit in everywhere for edge in unit.reads}
    reads = []
    for number, units in enumerate(components):
        needed = {edge for unit in units for edge in graph.units[unit].reads} | read_everywhere
        if number == predictor:
            needed |= graph.output_reads
        reads.append(_received(needed, [unit for unit in owner if unit not in units], bases))
    common = graph.glue_time + sum(unit.time for unit in everywhere)
    shares = tuple((common + sum(graph.units[unit].time for unit in units)) / graph.time for units in components)
    end_units = _end_units(graph, components[predictor])
    needed = {*graph.output_reads, *read_everywhere}
    needed |= {edge for unit in end_units for edge in graph.units[unit].reads}
    end = End(
        units=end_units,
        reads=_received(needed, [unit for unit in owner if unit not in end_units], bases),
        share=(common + sum(graph.units[unit].time for unit in end_units)) / graph.time,
    )
    return Partition(components, tuple(reads), predictor, shares, end, bases)


def _received(needed: Iterable[Edge], substituted: Collection[int], bases: Mapping[Edge, Base]) -> frozenset[Edge]:
    """The edges that must be received if some units are not run: a residual needs what it is added to, too."""
    received: set[Edge] = set()
    missing, open_ends = set(substituted), list(needed)
    while open_ends:
        edge = open_ends.pop()
        if edge.unit in missing and edge not in received:
            received.add(edge)
            open_ends += bases[edge].reads if edge in bases else ()
    return frozenset(received)


def _end_units(graph: Graph, predictor: Collection[int]) -> frozenset[int]:
    """The predictor's cheap last units, whose outputs only the denoiser's output and each other read."""
    found: set[int] = set()
    spent = 0.0
    readers: dict[int, set[int | None]] = {}
    for number, unit in enumerate(graph.units):
        for edge in unit.reads:
            readers.setdefault(edge.unit, set()).add(number)
    for edge in graph.output_reads:
        readers.setdefault(edge.unit, set()).add(None)
    for number in reversed(range(len(graph.units))):
        cost = graph.units[number].cost / graph.cost
        is_last = number in readers and readers[number] <= found | {None}
        if number in predictor and is_last and spent + cost <= END_COST_SHARE:
            found.add(number)
            spent += cost
    return frozenset(found)
