"""The hooks on a denoiser's units: run them, keep or pass on what they make, or substitute it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_unflatten

from asyncdiff.call import tensors_of
from asyncdiff.division import Division, read_anywhere
from asyncdiff.errors import ShapeChangedError
from asyncdiff.exchange import Channel
from asyncdiff.graph import Edge, Graph, UnitCall
from asyncdiff.hooks import Forward, intercept_call, is_intercepted
from asyncdiff.report import Counts
from asyncdiff.schedule import Task
from asyncdiff.trace import Leaf

UnitRule = Callable[[int, Forward, tuple[Any, ...], dict[str, Any]], Any]
"""What to do when a unit is called: given its number in the graph, its forward and its arguments."""


@dataclass
class _Walk:
    graph: Graph
    rule: UnitRule
    calls: dict[str, int] = field(default_factory=dict)
    is_in_unit: bool = False


class UnitHooks:
    """Hooks on the units of one denoiser; without a walk they change nothing."""

    def __init__(self, denoiser: nn.Module) -> None:
        self._denoiser = denoiser
        self._undo: dict[str, Callable[[], None]] = {}
        self._walk: _Walk | None = None

    @property
    def is_walking(self) -> bool:
        """Whether a walk is under way."""
        return self._walk is not None

    def add(self, graph: Graph) -> None:
        """Hook the units of a graph that are not hooked yet."""
        for unit in graph.units:
            module = self._denoiser.get_submodule(unit.name)
            if unit.name not in self._undo or not is_intercepted(module):
                self._undo[unit.name] = intercept_call(module, _named(unit.name, self._on_call))

    def remove(self) -> None:
        """Leave all units as they were."""
        for undo in self._undo.values():
            undo()
        self._undo.clear()

    def walk(
        self, graph: Graph, rule: UnitRule, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call the denoiser's forward with a rule for its units."""
        self._walk = _Walk(graph, rule)
        try:
            return forward(*args, **kwargs)
        finally:
            self._walk = None

    def _on_call(self, name: str, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        walk = self._walk
        if walk is None or walk.is_in_unit:
            return forward(*args, **kwargs)
        ordinal = walk.calls.get(name, 0)
        walk.calls[name] = ordinal + 1
        unit = walk.graph.index.get((name, ordinal))
        if unit is None:
            return forward(*args, **kwargs)
        walk.is_in_unit = True
        try:
            return walk.rule(unit, forward, args, kwargs)
        finally:
            walk.is_in_unit = False


def _named(name: str, on_call: Callable[..., Any]) -> Callable[..., Any]:
    def intercept(forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return on_call(name, forward, args, kwargs)

    return intercept


def keep_what_ranks_read(division: Division, ranks: Iterable[int], channel: Channel, version: int) -> UnitRule:
    """The rule of the last full step: run every unit, and store what the ranks will read.

    It raises ShapeChangedError where the division was made for tensors of other shapes.
    """
    components = {division.schedule.component_of(rank) for rank in ranks}
    wanted: dict[int, list[Edge]] = {}
    for edge in frozenset[Edge]().union(*(division.partition.reads[component] for component in components)):
        wanted.setdefault(edge.unit, []).append(edge)

    def rule(unit: int, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = division.graph.units[unit]
        result = forward(*args, **kwargs)
        leaves = tree_leaves(result)
        for number, leaf in enumerate(leaves):
            _check_shape(call, number, leaf)
        for edge in wanted.get(unit, ()):
            channel.store.put(edge, version, _unshared(call, edge, leaves[edge.leaf]))
        return result

    return rule


def compute_task(division: Division, task: Task, channel: Channel, counts: Counts) -> UnitRule:
    """The rule of a round: run the task's own units and pass on what others read; substitute the rest."""
    graph, partition = division.graph, division.partition
    own, reads = partition.components[task.component], partition.reads[task.component]
    fed = read_anywhere(division) if task.feeds else frozenset()

    def rule(unit: int, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = graph.units[unit]
        if unit in own or partition.owner(unit) is None:
            counts.units_run += 1
            result = forward(*args, **kwargs)
            for number, leaf in enumerate(tree_leaves(result)):
                edge = Edge(unit, number)
                if edge in fed:
                    _check_shape(call, number, leaf)
                    channel.made(task.rank, edge, _unshared(call, edge, leaf))
            return result
        counts.units_skipped += 1
        return _substitute(call, unit, reads, channel, task.reads, tensors_of((args, kwargs)))

    return rule


def _substitute(
    call: UnitCall, unit: int, reads: frozenset[Edge], channel: Channel, version: int, given: list[Tensor]
) -> Any:
    """A unit's output, made of what was received for it."""
    made: list[Any] = []
    for number, leaf in enumerate(call.outputs):
        origin = call.origins[number]
        edge = Edge(unit, origin)
        if leaf.value is None:
            made.append(leaf.constant)
        elif leaf.input_index is not None:
            made.append(given[leaf.input_index])
        elif origin != number:
            made.append(made[origin])
        elif edge in reads:
            made.append(_unshared(call, edge, channel.store.get(edge, version)))
        else:
            made.append(_placeholder(leaf, number in call.overwritten))
    return tree_unflatten(made, call.structure)


def _check_shape(call: UnitCall, number: int, leaf: Any) -> None:
    """Shapes inside of a denoiser may depend on values: it may cut a text where its mask ends."""
    shape = tuple(leaf.shape) if isinstance(leaf, Tensor) else ()
    recorded = call.outputs[number].shape
    if shape != recorded:
        raise ShapeChangedError(
            f"unit {call.name!r} gives a tensor of shape {shape}, and gave one of {recorded} when it was recorded; "
            "what a round reads must have the same shape in all rounds"
        )


def _unshared(call: UnitCall, edge: Edge, tensor: Tensor) -> Tensor:
    """The tensor, or a copy where the denoiser writes to it later on."""
    return tensor.clone() if edge.leaf in call.overwritten else tensor


def _placeholder(leaf: Leaf, is_overwritten: bool) -> Tensor:
    """Stands for a tensor that nothing alive depends on: not a number, so that a mistake would show."""
    floating = leaf.dtype is not None and (leaf.dtype.is_floating_point or leaf.dtype.is_complex)
    filler = torch.full((), float("nan") if floating else 0, dtype=leaf.dtype, device=leaf.device)
    expanded = filler.expand(leaf.shape)
    return expanded.clone() if is_overwritten else expanded
