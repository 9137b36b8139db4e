"""Whether a call can be divided by tokens as it seems: some of them are tried, and compared with the ordinary call."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from asyncdiff.call import Call
from asyncdiff.denoiser.trace import Trace, record
from asyncdiff.errors import SplitError
from asyncdiff.plan.token_layout import TokenLayout, TokenParts
from asyncdiff.report import Counts
from asyncdiff.runtime.token_walk import KeysOnly, Others, Pair, walk_divided, walk_whole
from asyncdiff.runtime.units import UnitHooks

# How far what becomes of some tokens may be off, relative to the size of all: rounding, and no more.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
_TOLERANCE_OF_HALF = 0.03


class Trial:
    """Compares parts of a call, divided by tokens, with the ordinary call.

    Args:
        layout: says which attentions and units are looked at in the ordinary call.
    """

    def __init__(self, denoiser: nn.Module, units: UnitHooks, layout: TokenLayout, call: Call) -> None:
        self._denoiser = denoiser
        self._units = units
        self._call = call
        self._keys: dict[int, Pair] = {}
        self._outputs: dict[int, list[Any]] = {}

        def run(unit: int, inner: Call) -> Any:
            result = inner()
            if unit >= layout.last_site:
                leaves = tree_leaves(result)
                self._outputs[unit] = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            return result

        self._result = tree_leaves(walk_whole(units, layout, call, self._keys.__setitem__, run))

    def divided(
        self,
        layout: TokenLayout,
        parts: TokenParts,
        part: int,
        made: list[Any],
        others: Others | None = None,
    ) -> Call:
        """The call with a part's tokens alone.

        Args:
            made: gets the leaves of the last unit's output.
            others: gives what the part needs of the others at an attention; by default from the ordinary call.
        """

        def ordinary(number: int, mine: Pair) -> list[Pair]:
            extent = layout.sites[number].keys
            key, value = self._keys[number]
            pairs = [(parts.of(key, extent, other), parts.of(value, extent, other)) for other in range(parts.count)]
            pairs[part] = mine
            return pairs

        def join(leaves: list[Any]) -> list[Any]:
            made[:] = leaves
            return self._outputs[layout.last]

        def walk(*args: Any, **kwargs: Any) -> Any:
            inner = self._call.giving((args, kwargs))
            return walk_divided(self._units, layout, parts, part, inner, others or KeysOnly(ordinary), join, Counts())

        return Call(walk, *self._call.given)

    def run(self, layout: TokenLayout, parts: TokenParts, part: int) -> Trace:
        """Whether a part's tokens become what they are in the ordinary call; records how.

        Raises:
            SplitError: they do not.
        """
        made: list[Any] = []
        try:
            result, trace = record(self._denoiser, self.divided(layout, parts, part, made))
        except (RuntimeError, ValueError, IndexError, TypeError) as error:  # shapes that do not fit
            raise SplitError(f"with some of its tokens alone it fails ({str(error).splitlines()[0]})") from error
        self._check_result(layout, tree_leaves(result))
        for leaf, whole in enumerate(self._outputs[layout.last]):
            if not isinstance(whole, Tensor):
                continue
            extent = layout.outputs.get(leaf)
            ordinary = whole if extent is None else parts.cut(whole, extent, part)
            if made[leaf].shape != ordinary.shape:
                name = layout.graph.units[layout.last].name
                raise SplitError(f"{name!r} gives {tuple(made[leaf].shape)}, not {tuple(ordinary.shape)}")
            off = _off(made[leaf], ordinary)
            if not off <= _TOLERANCE.get(ordinary.dtype, _TOLERANCE_OF_HALF):
                raise SplitError(f"tokens depend on each other in other ways than by attention (off by {off:.2g})")
        return trace

    def _check_result(self, layout: TokenLayout, found: list[Any]) -> None:
        """With the ordinary output of the last unit the rest of the call must make what it always does."""
        name = layout.graph.units[layout.last].name
        for ordinary, leaf in zip(self._result, found, strict=True):
            if not isinstance(ordinary, Tensor):
                continue
            if leaf.shape != ordinary.shape:
                raise SplitError(f"after {name!r} it counts the tokens that it had before, a part of the picture's")
            if not _off(leaf, ordinary) <= _TOLERANCE.get(ordinary.dtype, _TOLERANCE_OF_HALF):
                raise SplitError(f"what comes after {name!r} reads tokens from before it, a part of the picture's")


def _off(made: Tensor, ordinary: Tensor) -> float:
    difference = (made.double() - ordinary.double()).norm()
    return float(difference / ordinary.double().norm().clamp(min=1e-30))
