"""Which live edges a component makes by adding to something that it is given: `out = in + f(in)`. Pure.

Such an edge can travel as f alone. Whoever reads it adds it to its own `in`, which may be newer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from asyncdiff.denoiser.graph import Edge, Graph, follow
from asyncdiff.denoiser.trace import Form, Leaf, Trace, ValueId


@dataclass(frozen=True)
class Base:
    """What a residual is added to.

    Attributes:
        unit: the unit call that is given it.
        input: its place among the tensors that this unit is given.
        reads: the live edges that it derives from.
    """

    unit: int
    input: int
    reads: frozenset[Edge]


def find_bases(trace: Trace, graph: Graph, owners: Sequence[int | None]) -> dict[Edge, Base]:
    """For every output that a component makes by adding to what it was given: what it adds to.

    Args:
        trace: the recorded call.
        graph: its unit calls.
        owners: for each unit call, the component that owns it; None for all.
    """
    search = _Search(trace, graph, owners)
    bases = {}
    for number, unit in enumerate(graph.units):
        if owners[number] is None:
            continue
        for leaf, output in enumerate(unit.outputs):
            if unit.is_tensor_made_here(leaf) and unit.origins[leaf] == leaf:
                base = search.base_of(number, output)
                if base is not None:
                    bases[Edge(number, leaf)] = base
    return bases


class _Search:
    """Goes back from an output of a component, through additions, to where the component was given what it adds to."""

    def __init__(self, trace: Trace, graph: Graph, owners: Sequence[int | None]) -> None:
        self._graph = graph
        self._owners = owners
        self._sources = follow(trace, [unit.call for unit in graph.units]).sources
        self._carried = _carried(trace)
        self._overwritten = {old for operator in trace.operators for old, _ in operator.overwrites}
        self._maker = _makers(trace, graph)
        self._given: dict[ValueId, list[tuple[int, int, Form]]] = {}
        for number, unit in enumerate(graph.units):
            call = trace.calls[unit.call]
            for place, (value, form) in enumerate(zip(call.inputs, call.input_forms, strict=True)):
                self._given.setdefault(value, []).append((number, place, form))

    def base_of(self, unit: int, output: Leaf) -> Base | None:
        owner = self._owners[unit]
        found: dict[ValueId, Base] = {}
        for root in self._roots(output.value, owner):
            for taker, place, form in self._given.get(root, ()):
                if self._owners[taker] == owner and taker <= unit and form == (output.shape, output.dtype):
                    found.setdefault(root, Base(taker, place, self._sources.get(root, frozenset())))
        # Two tensors of one form that are joined in a block (pictures and words) cannot be told apart here.
        return next(iter(found.values())) if len(found) == 1 else None

    def _roots(self, value: ValueId | None, owner: int | None) -> Iterator[ValueId]:
        """The values from outside of the component that a value is a sum of, with something else."""
        seen = set()
        open_ends = [] if value is None else [value]
        while open_ends:
            found = open_ends.pop()
            if found in seen:
                continue
            seen.add(found)
            if self._is_of(found, owner):
                open_ends += self._carried.get(found, ())
            elif found not in self._overwritten:
                yield found

    def _is_of(self, value: ValueId, owner: int | None) -> bool:
        """Whether a component's work is in a value."""
        maker = self._maker.get(value)
        if maker is not None:
            return self._owners[maker] == owner
        return any(self._owners[edge.unit] == owner for edge in self._sources.get(value, ()))


def _carried(trace: Trace) -> Mapping[ValueId, Sequence[ValueId]]:
    carried: dict[ValueId, list[ValueId]] = {}
    for operator in trace.operators:
        if operator.carries:
            made = {*operator.makes, *(new for _, new in operator.overwrites)} - set(operator.reads)
            for value in made:
                carried.setdefault(value, []).extend(operator.carries)
            for old, new in operator.overwrites:
                carried.setdefault(new, []).append(old)
    return carried


def _makers(trace: Trace, graph: Graph) -> Mapping[ValueId, int]:
    """The unit in which each value was made, of those that were made in one."""
    makers: dict[ValueId, int] = {}
    for number, unit in enumerate(graph.units):
        call = trace.calls[unit.call]
        given = set(call.inputs)
        for operator in trace.operators[call.first_operator : call.end_operator]:
            for value in (*operator.makes, *(new for _, new in operator.overwrites)):
                if value not in given:
                    makers.setdefault(value, number)
    return makers
