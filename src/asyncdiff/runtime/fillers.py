"""What stands for outputs that nothing alive reads: made once for a divided denoiser, and not a number."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_structure, tree_unflatten

from asyncdiff.denoiser.graph import Graph, UnitCall
from asyncdiff.denoiser.trace import Leaf


class Fillers:
    """Stand-ins for the outputs of a graph's units, so that a mistake would show.

    They are views of one number each, and take no memory.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._leaves: dict[tuple[int, int], Tensor] = {}
        self._answers: dict[frozenset[int], Mapping[tuple[str, int], Any]] = {}

    def leaf(self, unit: int, number: int) -> Tensor:
        """For one leaf; a copy of its own where the denoiser writes to it later on."""
        known = self.graph.units[unit]
        if (unit, number) not in self._leaves:
            self._leaves[unit, number] = _filler(known.outputs[number])
        filler = self._leaves[unit, number]
        return filler.clone() if number in known.overwritten else filler

    def answers(self, but: frozenset[int]) -> Mapping[tuple[str, int], Any]:
        """Whole outputs, by the units' names and ordinals, of those that are the same in every call; some left out."""
        if but not in self._answers:
            self._answers[but] = {
                (known.name, known.ordinal): self._made(unit)
                for unit, known in enumerate(self.graph.units)
                if unit not in but and _is_always_the_same(known)
            }
        return self._answers[but]

    def _made(self, unit: int) -> Any:
        known = self.graph.units[unit]
        leaves = [
            leaf.constant if leaf.value is None else self.leaf(unit, known.origins[number])
            for number, leaf in enumerate(known.outputs)
        ]
        return tree_unflatten(leaves, known.structure)


def _is_always_the_same(known: UnitCall) -> bool:
    """Whether an output depends on nothing that it is given, and nobody can write to it."""
    is_fixed = all(leaf.value is None or leaf.input_index is None for leaf in known.outputs)
    is_plain = known.structure in (tree_structure(0), tree_structure((0,) * len(known.outputs)))
    return is_fixed and is_plain and not known.overwritten


def _filler(leaf: Leaf) -> Tensor:
    floating = leaf.dtype is not None and (leaf.dtype.is_floating_point or leaf.dtype.is_complex)
    return torch.full((), float("nan") if floating else 0, dtype=leaf.dtype, device=leaf.device).expand(leaf.shape)
