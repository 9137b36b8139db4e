"""A division whose units take as long as was measured, where they were. Pure."""

from collections.abc import Mapping
from dataclasses import replace

from asyncdiff.denoiser.graph import build_graph
from asyncdiff.denoiser.rates import DeviceRates
from asyncdiff.denoiser.trace import ModuleCall, Trace
from asyncdiff.plan.division import Division
from asyncdiff.plan.partition import wire

Seconds = Mapping[tuple[str, int], float]
"""What a unit takes, by its name and how many calls of it came before in the same pass."""


def retimed(division: Division, trace: Trace, rates: DeviceRates, seconds: Seconds, call: float) -> Division:
    """The same components, with other times: who computes what is decided by counting, whatever is measured.

    Args:
        trace: the recorded call that was divided.
        rates: by which it was divided.
        seconds: of every unit of it, before units were joined.
        call: seconds of the whole call; what is not the units' is glue, which every device runs.
    """
    found = [(trace.calls[unit.call], unit) for unit in build_graph(trace, rates).units]
    units = tuple(
        replace(
            joined,
            time=sum(
                seconds[unit.name, unit.ordinal] for inner, unit in found if _is_within(inner, trace.calls[joined.call])
            ),
        )
        for joined in division.graph.units
    )
    graph = replace(division.graph, units=units, glue_time=max(0.0, call - sum(unit.time for unit in units)))
    owners = [division.partition.owner(unit) for unit in range(len(units))]
    return replace(division, graph=graph, partition=wire(graph, owners, division.partition.bases))


def _is_within(inner: ModuleCall, outer: ModuleCall) -> bool:
    return outer.first_operator <= inner.first_operator and inner.end_operator <= outer.end_operator
