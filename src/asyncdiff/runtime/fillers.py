"""What stands for outputs that nothing alive reads: made once for a divided denoiser, and not a number."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from asyncdiff.denoiser.graph import Edge, Graph, UnitCall
from asyncdiff.denoiser.trace import Leaf


class Fillers:
    """Stand-ins for the outputs of a graph's units, so that a mistake would show.

    They are views of one number each, and take no memory.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._leaves: dict[tuple[int, int], Tensor] = {}
        self._answers: dict[tuple[frozenset[int], frozenset[Edge]], Mapping[tuple[str, int], Any]] = {}

    def leaf(self, unit: int, number: int) -> Tensor:
        """For one leaf; a copy of its own where the denoiser writes to it later on."""
        known = self.graph.units[unit]
        if (unit, number) not in self._leaves:
            self._leaves[unit, number] = _filler(known.outputs[number])
        filler = self._leaves[unit, number]
        return filler.clone() if number in known.overwritten else filler

    def answers(
        self, run: frozenset[int], reads: frozenset[Edge], noted: Collection[int]
    ) -> Mapping[tuple[str, int], Any]:
        """Whole outputs, by the units' names and ordinals, of those that are the same in every call.

        Args:
            run: the units that are run.
            reads: the edges that are read of others.
            noted: the units whose inputs are looked at; always the same ones of this graph.
        """
        if (run, reads) not in self._answers:
            but = run.union((edge.unit for edge in reads), noted)
            self._answers[run, reads] = {
                (known.name, known.ordinal): self._made(unit)
                for unit, known in enumerate(self.graph.units)
                if unit not in but and _is_always_the_same(known)
            }
        return self._answers[run, reads]

    def _made(self, unit: int) -> Any:
        known = self.graph.units[unit]
        leaves = [
            leaf.constant if leaf.value is None else self.leaf(unit, known.origins[number])
            for number, leaf in enumerate(known.outputs)
        ]
        return known.form(leaves)


def _is_always_the_same(known: UnitCall) -> bool:
    """Whether an output depends on nothing that it is given, and nobody can write to it."""
    return not known.hands_on and known.is_plain and not known.overwritten


def _filler(leaf: Leaf) -> Tensor:
    floating = leaf.dtype is not None and (leaf.dtype.is_floating_point or leaf.dtype.is_complex)
    return torch.full((), float("nan") if floating else 0, dtype=leaf.dtype, device=leaf.device).expand(leaf.shape)
