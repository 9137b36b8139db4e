"""The units between which tokens are divided, given to components as well: each has some, on its own tokens. Pure.

What lies before and after them every rank runs, as it does where tokens alone are divided.
"""

from dataclasses import replace

from asyncdiff.denoiser.graph import Edge, Graph
from asyncdiff.denoiser.residual import Base, find_bases
from asyncdiff.denoiser.trace import Trace
from asyncdiff.errors import SplitError
from asyncdiff.plan.partition import End, Partition, divide, wire
from asyncdiff.plan.token_layout import TokenLayout, TokenParts

_NO_END = End(frozenset(), frozenset(), 0.0)  # the last layers every rank runs


def undivided_layers(layout: TokenLayout) -> Partition:
    """One component that has all units."""
    return Partition((frozenset(layout.inside),), (frozenset(),), 0, (1.0,), _NO_END)


def divide_layers(layout: TokenLayout, trace: Trace, components: int, residual: bool) -> Partition:
    """Give the units to components.

    Args:
        trace: the recorded call.
        components: how many.
        residual: whether a live edge that is made by adding to what its component was given travels as what was added.

    Returns:
        The partition of the layout's units. A component's share is its part of what all of them take; all have what
        every rank runs.

    Raises:
        SplitError: there are fewer units, or what comes after them reads more than the last one's output.
    """
    if components == 1:
        return undivided_layers(layout)
    check_exit(layout, "components cannot be used where tokens are divided so", "leave components out")
    region = _region(layout)
    divided = divide(region, components)
    owners = [divided.owner(unit) for unit in range(len(region.units))]
    everyone = [*owners, *[None] * (len(layout.graph.units) - len(owners))]
    found = find_bases(trace, layout.graph, everyone) if residual else {}
    partition = wire(region, owners, {edge: base for edge, base in found.items() if _is_cut_alike(layout, edge, base)})
    common = sum(layout.graph.units[unit].time for unit in layout.inside if owners[unit] is None)
    inside = sum(layout.graph.units[unit].time for unit in layout.inside)
    shares = tuple(
        (common + sum(layout.graph.units[unit].time for unit in units)) / inside for units in partition.components
    )
    # What every rank runs, each component's can give.
    return replace(partition, predictor=owners[layout.last] or 0, shares=shares, end=_NO_END)


def check_exit(layout: TokenLayout, what: str, advice: str) -> None:
    """Whether all that is read after the tokens is what the last of the units gives.

    Raises:
        SplitError: it is not; says what it is about, and what to do.
    """
    units = layout.graph.units
    later = [(unit.name, unit.reads) for unit in units[layout.last + 1 :]]
    for name, reads in (*later, ("the prediction", layout.graph.output_reads)):
        for edge in reads:
            if layout.first <= edge.unit < layout.last:
                raise SplitError(
                    f"{what}: {name!r} reads what {units[edge.unit].name!r} makes, in the middle of it; {advice}"
                )


def check_cut(layout: TokenLayout, parts: TokenParts, divided: Trace) -> None:
    """Whether the units give what the layout says, in a recorded call with the tokens of the last part alone.

    Raises:
        SplitError: one does not.
    """
    part = parts.count - 1
    for unit in layout.inside:
        known = layout.graph.units[unit]
        expected = [leaf.shape for leaf in layout.cut(parts, part).units[unit].outputs]
        calls = divided.calls[known.call : known.call + 1]
        if not any(call.name == known.name and [leaf.shape for leaf in call.outputs] == expected for call in calls):
            raise SplitError(
                f"with some of its tokens alone {known.name!r} gives tensors of other shapes than was expected, so "
                "that no component can begin after it; leave components out"
            )


def _region(layout: TokenLayout) -> Graph:
    """The units as far as the last of them. What is before the first every rank runs; attention among tokens does no
    other than a component's."""
    graph, with_sites = layout.graph, {site.unit for site in layout.sites.values()}
    units = tuple(
        replace(known, replicated=unit not in layout.inside or (known.replicated and unit not in with_sites))
        for unit, known in enumerate(graph.units[: layout.last + 1])
    )
    return Graph(units, frozenset(), graph.glue_cost, graph.glue_time)


def _is_cut_alike(layout: TokenLayout, edge: Edge, base: Base) -> bool:
    """Whether an output, and what it adds to, have their tokens in the same place."""
    if base.unit not in layout.inside:
        return False
    return layout.made[edge.unit].get(edge.leaf) == layout.inputs[base.unit].get(base.input)
