"""The denoiser as a graph of unit calls: which of their outputs each reads, and what each costs. Pure."""

import functools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, NamedTuple

from torch.utils._pytree import TreeSpec, tree_structure, tree_unflatten

from asyncdiff.denoiser.rates import DeviceRates
from asyncdiff.denoiser.trace import Leaf, ModuleCall, Operator, Trace, ValueId, paths_to
from asyncdiff.errors import TraceError

# A unit that depends on nothing but the denoiser's inputs and costs no more than this share of a
# call runs on every device with the current values: sending its output would cost more.
REPLICATED_COST_SHARE = 0.003

# One that gives a vector for each picture (the time embedding, say) may cost more: all that follows depends on it,
# and computed anew it is exact, where sent it would be of the round before.
REPLICATED_COST_SHARE_OF_VECTORS = 0.006

# So does a heavier one whose output most units read and which is computed faster than sent: the modulation of every
# token by its own time, say. All that runs everywhere for this reason may cost this share of a call.
REPLICATED_BUDGET = 0.02

# An exponential takes as long as so many operations of a matrix product: about 100 on a CPU that was looked at;
# graphics processors too have some hundred times fewer units for them (FlashAttention-3, arXiv 2407.08608).
_OPERATIONS_PER_EXPONENTIAL = 100

# A link between devices moves a byte in the time in which a device's own memory moves so many, roughly.
LINK_BYTE = 50

# Costs are counted for a batch of so many: one picture, guided.
_BATCH = 2

# A module whose own arithmetic, outside the modules it calls, is more than this share of its work
# is a unit even if it owns a list of modules: an attention product is no glue.
GLUE_FLOPS_SHARE = 0.003


class Edge(NamedTuple):
    """A tensor that a unit call makes: the index of the unit call and of the leaf in its output."""

    unit: int
    leaf: int


@dataclass(frozen=True)
class UnitCall:
    """One call of a unit in one pass of the denoiser.

    Attributes:
        call: its number among the module calls of the trace.
        name: dotted module name below the denoiser.
        ordinal: how many calls of the same module came before it in the pass, those inside of other units
            left out: a device that does not run those units does not see them.
        cost: of the device: operations, with exponentials and bytes moved counted as operations (see `build_graph`).
        time: what it takes, counted so: the cost, and what the host does, where the host takes longer.
        flops: floating-point operations of matrix products, convolutions and attention.
        reads: the outputs of other unit calls that it needs, through any amount of glue.
        outputs: the leaves of its output; `origins` gives, for each, the first leaf that is the same tensor.
        overwritten: the leaves that are written to after the unit returned them.
        replicated: cheap, and a function of the denoiser's inputs alone.
        weight_bytes: the size of its parameters; nothing in a module's second call, and in those that follow.
    """

    call: int
    name: str
    ordinal: int
    cost: float
    time: float
    flops: int
    reads: frozenset[Edge]
    outputs: tuple[Leaf, ...]
    origins: tuple[int, ...]
    structure: TreeSpec
    overwritten: frozenset[int]
    replicated: bool
    weight_bytes: int = 0

    @functools.cached_property
    def form(self) -> Callable[[list[Any]], Any]:
        """Makes an output of its leaves; most are a tensor or a tuple, which torch is slow to put together."""
        if self.structure == tree_structure(0):
            return itemgetter(0)
        return tuple if self.is_plain else functools.partial(tree_unflatten, treespec=self.structure)

    @functools.cached_property
    def is_plain(self) -> bool:
        """Whether the output is one leaf, or a tuple of leaves."""
        return self.structure in (tree_structure(0), tree_structure((0,) * len(self.outputs)))

    @functools.cached_property
    def hands_on(self) -> bool:
        """Whether the output holds what the unit is given."""
        return any(leaf.input_index is not None for leaf in self.outputs)

    def is_tensor_made_here(self, leaf: int) -> bool:
        """Whether the leaf is a tensor that the unit made, not one it was given or no tensor at all."""
        output = self.outputs[leaf]
        return output.value is not None and output.input_index is None


@dataclass(frozen=True)
class Graph:
    """All unit calls of one pass, in call order, and what the denoiser's own output reads.

    Attributes:
        idle: modules outside of all units of which nothing was called, as far as they have parameters.
        index: the number of each unit call, by name and ordinal.
        calls: how often each unit was called.
    """

    units: tuple[UnitCall, ...]
    output_reads: frozenset[Edge]
    glue_cost: float
    glue_time: float
    idle: frozenset[str] = frozenset()
    index: dict[tuple[str, int], int] = field(default_factory=dict, compare=False, repr=False)
    calls: dict[str, int] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        self.index.update({(unit.name, unit.ordinal): number for number, unit in enumerate(self.units)})
        self.calls.update(Counter(unit.name for unit in self.units))

    @property
    def divisible(self) -> tuple[int, ...]:
        """Indices of the unit calls that are worth giving to one device."""
        return tuple(number for number, unit in enumerate(self.units) if not unit.replicated)

    @property
    def cost(self) -> float:
        """Cost of one pass."""
        return self.glue_cost + sum(unit.cost for unit in self.units)

    @property
    def time(self) -> float:
        """Time of one pass, counted as operations."""
        return self.glue_time + sum(unit.time for unit in self.units)

    def bytes(self, edges: Iterable[Edge]) -> int:
        """Size of some live edges together, in bytes."""
        return sum(self.units[edge.unit].outputs[edge.leaf].bytes for edge in edges)


def build_graph(trace: Trace, rates: DeviceRates, inside: Iterable[str] = ()) -> Graph:
    """Find the units of a traced call and follow the data between them.

    Costs are those of a batch of two, where it is known how large the recorded batch is: a denoiser is to be divided in
    one way, and so to draw one picture, whatever is drawn beside it, and whether or not several groups of devices share
    a batch out. (With a batch of one, torch leaves out some copies; that may still make a difference.)

    Args:
        trace: the recorded call.
        rates: weigh memory-bound units against compute-bound ones, and both against the host's work.
        inside: module names that a unit may not enclose (those that a split names).
    """
    times_larger = _BATCH / trace.batch if trace.batch else 1.0
    numbers = tuple(_find_units(trace, tuple(inside)))
    reads, output_reads, overwritten, _ = follow(trace, numbers)
    costs = [_cost(trace, trace.calls[number], rates.per_byte, times_larger) for number in numbers]
    total = _cost(trace, trace.calls[0], rates.per_byte, times_larger)
    hosts = [rates.per_operator * _operators(trace, trace.calls[number]) for number in numbers]
    total_of_host = rates.per_operator * _operators(trace, trace.calls[0])
    # Host and device work at the same time: what the host does counts where it takes longer.
    is_host_bound = total_of_host > total
    times = [cost + host if is_host_bound else cost for cost, host in zip(costs, hosts, strict=True)]
    total_time = total + total_of_host if is_host_bound else total
    sent = [LINK_BYTE * rates.per_byte * times_larger * _bytes(trace.calls[number]) for number in numbers]
    limits = [_most_replicated(trace.calls[number]) for number in numbers]
    replicated = _replicated(reads, [cost / total for cost in costs], [cost / total for cost in sent], limits)
    ordinals = _ordinals(trace, numbers)
    units = tuple(
        _unit_call(trace, number, unit, ordinals[number], spent, reads[unit], overwritten, unit in replicated)
        for unit, (number, spent) in enumerate(zip(numbers, zip(costs, times, strict=True), strict=True))
    )
    glue = max(0.0, total - sum(costs)), max(0.0, total_time - sum(times))
    return Graph(units, output_reads, *glue, _idle_outside(trace, numbers))


def operations(trace: Trace, rates: DeviceRates, times_larger: float = 1.0) -> float:
    """The time of a traced call, counted as operations: of the device, and of the host where it takes longer.

    Args:
        times_larger: how large the batch is, relative to that of the trace.
    """
    on_device = _cost(trace, trace.calls[0], rates.per_byte, times_larger)
    on_host = rates.per_operator * _operators(trace, trace.calls[0])
    return max(on_device, on_host)


def _most_replicated(call: ModuleCall) -> float:
    """The share of a call up to which a unit runs on every device whoever reads it."""
    is_vector = all(len(leaf.shape) < 3 for leaf in call.outputs)
    return REPLICATED_COST_SHARE_OF_VECTORS if is_vector else REPLICATED_COST_SHARE


def _replicated(
    reads: Sequence[frozenset[Edge]], costs: Sequence[float], sent: Sequence[float], limits: Sequence[float]
) -> set[int]:
    """The units that run on every device, given what computing and what sending them costs as shares of a call.

    What costs at most its limit does.
    """
    readers = Counter(unit for needed in reads for unit in {edge.unit for edge in needed})
    replicated: set[int] = set()
    spent = 0.0
    for unit, needed in enumerate(reads):
        if not all(edge.unit in replicated for edge in needed):
            continue
        if costs[unit] <= limits[unit]:
            replicated.add(unit)
        elif costs[unit] <= min(sent[unit], REPLICATED_BUDGET - spent) and readers[unit] > (len(reads) - unit) / 2:
            replicated.add(unit)
            spent += costs[unit]
    return replicated


def _bytes(call: ModuleCall) -> int:
    return sum(leaf.bytes for leaf in call.outputs if leaf.input_index is None)


def coarsen(trace: Trace, graph: Graph, owners: Sequence[int | None]) -> tuple[Graph, tuple[int | None, ...]]:
    """Join the units of a module that one component owns whole into one unit.

    What crosses between components is then the module's own output (the sum of a residual, say),
    and a device that does not own it skips the glue in it too.

    Args:
        trace: the recorded call.
        graph: its graph.
        owners: for each unit call of the graph, the component that owns it; None for all.

    Returns:
        The graph of the joined units, and their owners.
    """
    owner_of_call = {unit.call: owner for unit, owner in zip(graph.units, owners, strict=True)}
    unit_of_call = {unit.call: unit for unit in graph.units}

    def units_below(number: int) -> Iterator[int]:
        if number in unit_of_call:
            yield number
        else:
            for child in trace.calls[number].children:
                yield from units_below(child)

    def joined(parent: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        for number in trace.calls[parent].children:
            members = tuple(units_below(number))
            found = {owner_of_call[member] for member in members}
            if number in unit_of_call or (len(found) == 1 and None not in found):
                yield number, members
            elif members:
                yield from joined(number)

    groups = tuple(joined(0))
    numbers = tuple(number for number, _ in groups)
    reads, output_reads, overwritten, _ = follow(trace, numbers)
    ordinals = _ordinals(trace, numbers)
    units = []
    for unit, (number, members) in enumerate(groups):
        cost = sum(unit_of_call[member].cost for member in members)
        time = sum(unit_of_call[member].time for member in members)
        replicated = all(unit_of_call[member].replicated for member in members)
        units.append(
            _unit_call(trace, number, unit, ordinals[number], (cost, time), reads[unit], overwritten, replicated)
        )
    new_owners = tuple(owner_of_call[members[0]] for _, members in groups)
    idle = _idle_outside(trace, numbers)
    return Graph(tuple(units), output_reads, graph.glue_cost, graph.glue_time, idle), new_owners


def _idle_outside(trace: Trace, numbers: Iterable[int]) -> frozenset[str]:
    """The idle modules that are in none of the units, given by their numbers among the module calls."""
    units = {trace.calls[number].name for number in numbers}
    return frozenset(name for name in trace.idle if units.isdisjoint(paths_to(name)))


def _unit_call(
    trace: Trace,
    number: int,
    unit: int,
    ordinal: int,
    spent: tuple[float, float],
    reads: frozenset[Edge],
    overwritten: set[Edge],
    replicated: bool,
) -> UnitCall:
    call = trace.calls[number]
    if call.structure is None:
        raise TraceError(f"unit {call.name!r} did not return")
    return UnitCall(
        call=number,
        name=call.name,
        ordinal=ordinal,
        cost=spent[0],
        time=spent[1],
        flops=_flops(trace, call),
        reads=reads,
        outputs=call.outputs,
        origins=_origins(call),
        structure=call.structure,
        overwritten=frozenset(edge.leaf for edge in overwritten if edge.unit == unit),
        replicated=replicated,
        weight_bytes=0 if ordinal else call.weight_bytes,
    )


def _ordinals(trace: Trace, numbers: Collection[int]) -> dict[int, int]:
    """For each unit call, how many calls of the same module came before it that are not inside of a unit."""
    units = set(numbers)
    counts: dict[str, int] = {}
    ordinals = {}

    def below(parent: int) -> None:
        for number in trace.calls[parent].children:
            name = trace.calls[number].name
            ordinals[number] = counts.get(name, 0)
            counts[name] = ordinals[number] + 1
            if number not in units:
                below(number)

    below(0)
    return ordinals


def _find_units(trace: Trace, inside: Sequence[str]) -> Iterator[int]:
    """Descend from the denoiser to the smallest modules whose output may be reused."""

    def below(parent: int) -> Iterator[int]:
        for number in trace.calls[parent].children:
            call = trace.calls[number]
            if not call.has_parameters:
                continue
            is_cut_inside = any(name.startswith(f"{call.name}.") for name in inside)
            is_glue = _own_flops(trace, number) <= GLUE_FLOPS_SHARE * _flops(trace, call)
            if is_glue and not call.is_compiled and (call.owns_called_list or is_cut_inside):
                yield from below(number)
            else:
                yield number

    return below(0)


def _flops(trace: Trace, call: ModuleCall) -> int:
    return sum(operator.flops for operator in trace.operators[call.first_operator : call.end_operator])


def _own_flops(trace: Trace, number: int) -> int:
    call = trace.calls[number]
    operators = trace.operators[call.first_operator : call.end_operator]
    return sum(operator.flops for operator in operators if operator.call == number)


def _operators(trace: Trace, call: ModuleCall) -> int:
    """How many of a call's operators do anything."""
    return sum(map(is_work, trace.operators[call.first_operator : call.end_operator]))


def is_work(operator: Operator) -> bool:
    """Whether an operator does anything; others make views."""
    return operator.flops > 0 or operator.bytes > 0


def _cost(trace: Trace, call: ModuleCall, operations_per_byte: float, times_larger: float) -> float:
    operators = trace.operators[call.first_operator : call.end_operator]
    return sum(cost_of(operator, operations_per_byte, times_larger) for operator in operators)


def cost_of(operator: Operator, operations_per_byte: float, times_larger: float = 1.0) -> float:
    """What an operator costs the device, in operations.

    Args:
        times_larger: how large the batch is, relative to that of the trace.
    """
    computed = operator.flops + _OPERATIONS_PER_EXPONENTIAL * operator.exponentials
    moved = times_larger * (operator.bytes - operator.weight_bytes) + operator.weight_bytes
    return times_larger * computed + operations_per_byte * moved


def _origins(call: ModuleCall) -> tuple[int, ...]:
    first: dict[ValueId, int] = {}
    return tuple(
        number if leaf.value is None else first.setdefault(leaf.value, number)
        for number, leaf in enumerate(call.outputs)
    )


class _Following:
    """Which unit outputs every tensor value derives from, as the call goes on."""

    def __init__(self) -> None:
        self.sources: dict[ValueId, frozenset[Edge]] = {}
        self.leaves: dict[ValueId, Edge] = {}
        self.overwritten: set[Edge] = set()
        self.side_effects: dict[ValueId, str] = {}

    def read(self, values: Iterable[ValueId]) -> frozenset[Edge]:
        edges: frozenset[Edge] = frozenset()
        for value in values:
            if value in self.side_effects:
                raise TraceError(
                    f"unit {self.side_effects[value]!r} changes a tensor that it was given in place; "
                    "its output cannot be replaced by a stored one"
                )
            edges |= self.sources.get(value, frozenset())
        return edges

    def overwrite(self, pairs: Iterable[tuple[ValueId, ValueId]], added: frozenset[Edge]) -> None:
        for old, new in pairs:
            self.sources[new] = self.sources.get(old, frozenset()) | added
            if old in self.leaves:
                self.overwritten.add(self.leaves[old])


class Flow(NamedTuple):
    """How data flows between units.

    Attributes:
        reads: the outputs of other units that each unit needs.
        output_reads: those that the denoiser's own output needs.
        overwritten: the outputs that are written to after their unit has returned them.
        sources: the outputs that every value outside of units derives from.
    """

    reads: list[frozenset[Edge]]
    output_reads: frozenset[Edge]
    overwritten: set[Edge]
    sources: Mapping[ValueId, frozenset[Edge]]


def follow(trace: Trace, numbers: Sequence[int]) -> Flow:
    """Follow the data of a recorded call between the units, given by their numbers among the module calls."""
    flow = _Following()
    reads: list[frozenset[Edge]] = []
    position = 0
    for number, call in enumerate(trace.calls[number] for number in numbers):
        _follow_glue(trace, flow, position, call.first_operator)
        reads.append(_follow_unit(trace, flow, call))
        for leaf, output in enumerate(call.outputs):
            value = output.value
            if value is None or output.input_index is not None or value in flow.leaves:
                continue
            flow.leaves[value] = Edge(number, leaf)
            flow.sources[value] = frozenset({Edge(number, leaf)})
            flow.side_effects.pop(value, None)
        position = call.end_operator
    _follow_glue(trace, flow, position, len(trace.operators))
    outputs = [leaf.value for leaf in trace.calls[0].outputs if leaf.value is not None]
    return Flow(reads, flow.read(outputs), flow.overwritten, flow.sources)


def _follow_glue(trace: Trace, flow: _Following, first: int, end: int) -> None:
    for operator in trace.operators[first:end]:
        edges = flow.read(operator.reads)
        flow.overwrite(operator.overwrites, edges)
        for value in operator.makes:
            flow.sources[value] = edges | flow.sources.get(value, frozenset())


def _follow_unit(trace: Trace, flow: _Following, call: ModuleCall) -> frozenset[Edge]:
    """What the unit reads from outside; marks what it writes to outside."""
    edges: frozenset[Edge] = frozenset()
    inside: set[ValueId] = set()
    for operator in trace.operators[call.first_operator : call.end_operator]:
        edges |= flow.read(value for value in operator.reads if value not in inside)
        inside.update(value for value in operator.makes if value not in operator.reads)
        for old, new in operator.overwrites:
            if old in inside:
                inside.add(new)
            else:
                if old in flow.leaves:
                    flow.overwritten.add(flow.leaves[old])
                inside.add(new)
                flow.side_effects[new] = call.name
    return edges
