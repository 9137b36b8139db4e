"""A walk through a denoiser's call with one rank's tokens alone."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from asyncdiff.call import Call
from asyncdiff.denoiser.attention import AttentionCall, AttentionCalls
from asyncdiff.errors import OtherUnitsError, ShapeChangedError
from asyncdiff.plan.tokens import Extent, Site, TokenLayout, TokenParts
from asyncdiff.report import Counts
from asyncdiff.runtime.units import UnitHooks, UnitRule

Pair = tuple[Tensor, Tensor]
"""Keys and values."""


class WalkEndedError(BaseException):
    """A walk has come to where it was to end; no denoiser's business."""


def walk_whole(
    units: UnitHooks,
    layout: TokenLayout,
    call: Call,
    note: Callable[[int, Pair], None],
    counts: Counts,
    look: Callable[[int, Any], None] | None = None,
    enter: Callable[[Call], None] | None = None,
) -> Any:
    """Make a call with all tokens.

    Args:
        note: is told the keys and values of all tokens at every site, by its number.
        look: is told what every unit gives.
        enter: is told the first unit's call.

    Raises:
        OtherUnitsError: attention is not called as often as it was when the call was recorded.
        ShapeChangedError: there are more keys, or fewer.
    """
    numbers = _Numbers(layout)

    def rule(unit: int, inner: Call) -> Any:
        if unit == layout.first and enter is not None:
            enter(inner)
        result = numbers.inside(unit, inner)
        if unit == layout.last:
            numbers.check()
        if look is not None:
            look(unit, result)
        return result

    def answer(attention: AttentionCall) -> Tensor:
        number = numbers.next()
        site = layout.sites.get(number)
        if site is not None:
            _check_keys(attention, site.total)
            note(number, (attention.key, attention.value))
        return attention()

    with AttentionCalls(answer):
        return units.walk(layout.graph, UnitRule(rule, counts), call)


def walk_divided(
    units: UnitHooks,
    layout: TokenLayout,
    parts: TokenParts,
    rank: int,
    call: Call,
    keys: Callable[[int, Pair], Sequence[Pair]],
    join: Callable[[list[Any]], list[Any]],
    counts: Counts,
    enter: Callable[[Call], None] | None = None,
) -> Any:
    """Make a call with one rank's tokens between the layout's first and last unit.

    Args:
        keys: given the number of a site, and the keys and values of the rank's own tokens there, gives every rank's.
        join: given the leaves of the last unit's output, gives those of all tokens; or raises WalkEndedError.
        enter: is told the first unit's call, before tokens are cut out.

    Raises:
        OtherUnitsError: attention is not called as often as it was when the call was recorded.
        ShapeChangedError: there are more keys, or fewer.
    """
    numbers = _Numbers(layout)

    def rule(unit: int, inner: Call) -> Any:
        counts.units_run += 1
        if not layout.first <= unit <= layout.last:
            return inner()
        if unit == layout.first and enter is not None:
            enter(inner)
        result = numbers.inside(unit, _own_tensors(inner, layout.inputs[unit], parts, rank))
        if unit < layout.last:
            return result
        numbers.check()
        leaves, structure = tree_flatten(result)
        return tree_unflatten(join(leaves), structure)

    def answer(attention: AttentionCall) -> Tensor:
        number = numbers.next()
        site = layout.sites.get(number)
        if site is not None:
            _check_keys(attention, site.total - parts.tokens + parts.size(rank))
            mine = tuple(parts.own(tensor, site.extent, rank) for tensor in (attention.key, attention.value))
            attention = _with_all_keys(attention, site, parts, rank, keys(number, (mine[0], mine[1])))
        start = layout.queries.get(number) if site is None else site.queries
        return _with_own_rows(attention, start, parts, rank)()

    with AttentionCalls(answer):
        own = _own_tensors(call, layout.arguments, parts, rank)
        return units.walk(layout.graph, UnitRule(rule, counts), own)


class _Numbers:
    """Counts the calls of attention in the units of a layout."""

    def __init__(self, layout: TokenLayout) -> None:
        self._layout = layout
        self._count = itertools.count()
        self._is_inside = False

    def inside(self, unit: int, call: Call) -> Any:
        """Make a unit's call."""
        self._is_inside = self._layout.first <= unit <= self._layout.last
        try:
            return call()
        finally:
            self._is_inside = False

    def next(self) -> int:
        """The number of a call of attention; -1 outside of these units."""
        return next(self._count) if self._is_inside else -1

    def check(self) -> None:
        """Whether all calls of attention in these units were seen."""
        seen = next(self._count)
        if seen != self._layout.attentions:
            raise OtherUnitsError(
                f"attention was called {seen} times, and {self._layout.attentions} times when the denoiser was "
                "recorded; with another attention backend, or other processors, its tokens cannot be divided: choose "
                "them before AsyncDiff is attached"
            )


def _check_keys(attention: AttentionCall, expected: int) -> None:
    found = attention.key.shape[-2]
    if found != expected:
        raise ShapeChangedError(
            f"an attention has {found} keys, and {expected} are expected by what was recorded; where tokens are "
            "divided there must be as many in all steps"
        )


def _own_tensors(call: Call, extents: Mapping[int, Extent], parts: TokenParts, rank: int) -> Call:
    """A call with the rank's own tokens of what it is given whole."""
    places = itertools.count()

    def own(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        extent = extents.get(next(places))
        if extent is None or leaf.shape[extent.dim] < extent.start + parts.tokens:
            return leaf
        return parts.cut(leaf, extent, rank)

    return call.giving(tree_map(own, call.given))


def _with_all_keys(
    attention: AttentionCall, site: Site, parts: TokenParts, rank: int, pairs: Sequence[Pair]
) -> AttentionCall:
    """The call with the keys and values of all tokens, and a mask that has a column for each.

    Raises:
        ValueError: it is causal.
    """
    if attention.options["is_causal"]:
        raise ValueError("attention is causal")
    extent, mask = site.extent, attention.mask
    if mask is not None and mask.shape[-1] == attention.key.shape[-2] != site.total:
        # A mask for the rank's own keys: what it says of the picture's tokens, it says of all of them.
        column = Extent(mask.ndim - 1, site.keys)
        own = parts.own(mask, column, rank)
        mask = parts.join(mask, column, rank, [own[..., :1].expand(*own.shape[:-1], parts.tokens)])
    return attention._replace(
        key=parts.join(attention.key, extent, rank, [key for key, _ in pairs]),
        value=parts.join(attention.value, extent, rank, [value for _, value in pairs]),
        mask=mask,
    )


def _with_own_rows(attention: AttentionCall, start: int | None, parts: TokenParts, rank: int) -> AttentionCall:
    """The call with the rows of its mask that belong to its queries."""
    mask = attention.mask
    if mask is None or start is None or mask.ndim < 2 or mask.shape[-2] in (1, attention.query.shape[-2]):
        return attention
    return attention._replace(mask=parts.cut(mask, Extent(mask.ndim - 2, start), rank))
