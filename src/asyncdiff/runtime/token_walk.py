"""A walk through a denoiser's call with one part's tokens alone."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from asyncdiff.call import Call
from asyncdiff.denoiser.attention import AttentionCall, AttentionCalls
from asyncdiff.errors import OtherUnitsError, ShapeChangedError
from asyncdiff.plan.token_layout import Extent, Site, TokenLayout, TokenParts
from asyncdiff.report import Counts
from asyncdiff.runtime.units import UnitHooks, UnitRule

Pair = tuple[Tensor, Tensor]
"""Keys and values."""


class Others(Protocol):
    """Gives a part what it needs of the others at every attention."""

    def keys(self, number: int, mine: Pair) -> Sequence[Pair]:
        """Every part's keys and values, given the number of a site and those of the part's own tokens."""

    def attend(self, number: int, attention: AttentionCall) -> Tensor | None:
        """What an attention gives for the part's own tokens, where it is found otherwise; given its number and call."""


@dataclass(frozen=True)
class KeysOnly:
    """Keys and values are all that is needed of the others."""

    keys: Callable[[int, Pair], Sequence[Pair]]

    def attend(self, number: int, attention: AttentionCall) -> Tensor | None:
        del number, attention
        return None


class WalkEndedError(BaseException):
    """A walk has come to where it was to end; no denoiser's business."""


def walk_whole(
    units: UnitHooks,
    layout: TokenLayout,
    call: Call,
    note: Callable[[int, Pair], None],
    run: Callable[[int, Call], Any],
    enter: Callable[[Call], None] | None = None,
    attend: Callable[[int, AttentionCall], Tensor] | None = None,
) -> Any:
    """Make a call with all tokens.

    Args:
        note: is told the keys and values of all tokens at every site, by its number.
        run: gives the output of each unit, given its number and its call.
        enter: is told the first unit's call.
        attend: gives what attention gives at a site, given its number and call; by default what the call gives.

    Raises:
        OtherUnitsError: attention is not called as often as it was when the call was recorded.
        ShapeChangedError: there are more keys, or fewer.
    """
    numbers = _Numbers(layout)

    def rule(unit: int, inner: Call) -> Any:
        if unit == layout.first and enter is not None:
            enter(inner)
        return run(unit, numbers.counted(unit, inner))

    def answer(attention: AttentionCall) -> Tensor:
        number = numbers.next()
        site = layout.sites.get(number)
        if site is not None:
            _check_keys(attention, site.total)
            note(number, (attention.key, attention.value))
            if attend is not None:
                return attend(number, attention)
        return attention()

    with AttentionCalls(answer):
        return units.walk(layout.graph, UnitRule(rule, Counts()), call)


def walk_divided(
    units: UnitHooks,
    layout: TokenLayout,
    parts: TokenParts,
    part: int,
    call: Call,
    others: Others,
    join: Callable[[list[Any]], list[Any]],
    counts: Counts,
    enter: Callable[[Call], None] | None = None,
    run: Callable[[int, Call], Any] | None = None,
) -> Any:
    """Make a call with one part's tokens between the layout's first and last unit.

    Args:
        others: gives what the part needs of the others.
        join: given the leaves of the last unit's output, gives those of all tokens; or raises WalkEndedError.
        counts: of the units outside, and without `run` of all.
        enter: is told the first unit's call, before tokens are cut out.
        run: gives the output of each unit between them, given its number and its call, with the part's own tokens. By
            default it is what the call gives.

    Raises:
        OtherUnitsError: attention is not called as often as it was when the call was recorded.
        ShapeChangedError: there are more keys, or fewer.
    """
    numbers, owned = _Numbers(layout), _OwnTensors(parts, part)

    def rule(unit: int, inner: Call) -> Any:
        if unit not in layout.inside:
            counts.units_run += 1
            return inner()
        if unit == layout.first and enter is not None:
            enter(inner)
        own = numbers.counted(unit, owned.of(inner, layout.inputs[unit]))
        if run is None:
            counts.units_run += 1
        result = own() if run is None else run(unit, own)
        if unit < layout.last:
            return result
        leaves, structure = tree_flatten(result)
        return tree_unflatten(join(leaves), structure)

    def answer(attention: AttentionCall) -> Tensor:
        number = numbers.next()
        site = layout.sites.get(number)
        if site is not None:
            _check_keys(attention, site.total - parts.total(site.keys) + parts.length(site.keys, part))
            if (made := others.attend(number, attention)) is not None:
                return made
            mine = tuple(parts.own(tensor, site.keys, part) for tensor in (attention.key, attention.value))
            attention = _with_all_keys(attention, site, parts, part, others.keys(number, (mine[0], mine[1])))
        queries = layout.queries.get(number) if site is None else site.queries
        return _with_own_rows(attention, queries, parts, part)()

    with AttentionCalls(answer):
        return units.walk(layout.graph, UnitRule(rule, counts), owned.of(call, layout.arguments))


class _Numbers:
    """Counts the calls of attention in the units of a layout, also where some of the units are not run."""

    def __init__(self, layout: TokenLayout) -> None:
        self._layout = layout
        self._next: int | None = None

    def counted(self, unit: int, call: Call) -> Call:
        """A unit's call in which they are counted."""
        if unit not in self._layout.inside:
            return call
        return call._replace(forward=functools.partial(self._inside, unit, call.forward))

    def next(self) -> int:
        """The number of a call of attention; -1 outside of these units."""
        if self._next is None:
            return -1
        self._next += 1
        return self._next - 1

    def _inside(self, unit: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        expected = self._layout.attentions_of(unit)
        self._next = expected.start
        try:
            result = forward(*args, **kwargs)
            seen = self._next - expected.start
        finally:
            self._next = None
        if seen != len(expected):
            raise OtherUnitsError(
                f"attention was called {seen} times in {self._layout.graph.units[unit].name!r}, and {len(expected)} "
                "times when the denoiser was recorded; with another attention backend, or other processors, its tokens "
                "cannot be divided: choose them before AsyncDiff is attached"
            )
        return result


def _check_keys(attention: AttentionCall, expected: int) -> None:
    found = attention.key.shape[-2]
    if found != expected:
        raise ShapeChangedError(
            f"an attention has {found} keys, and {expected} are expected by what was recorded; where tokens are "
            "divided there must be as many in all steps"
        )


class _OwnTensors:
    """A part's own tokens of what units are given whole.

    What several of them are given, rotary embeddings for instance, is cut once, as long as nobody writes to it.
    """

    def __init__(self, parts: TokenParts, part: int) -> None:
        self._parts = parts
        self._part = part
        self._known: dict[tuple[int, int, Extent], tuple[Tensor, Tensor]] = {}

    def of(self, call: Call, extents: Mapping[int, Extent]) -> Call:
        """A call with them, where tokens lie in its tensors, by their places among them."""
        places = itertools.count()

        def own(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            extent = extents.get(next(places))
            if extent is None or leaf.shape[extent.dim] != extent.length:  # it has no others any more
                return leaf
            return self._cut(leaf, extent)

        return call.with_leaves(own) if extents else call

    def _cut(self, leaf: Tensor, extent: Extent) -> Tensor:
        if leaf.is_inference():  # it is not known whether it was written to
            return self._parts.cut(leaf, extent, self._part)
        key = id(leaf), leaf._version, extent
        if key not in self._known:
            self._known[key] = leaf, self._parts.cut(leaf, extent, self._part)  # with the leaf, whose id it stays
        return self._known[key][1]


def _with_all_keys(
    attention: AttentionCall, site: Site, parts: TokenParts, part: int, pairs: Sequence[Pair]
) -> AttentionCall:
    """The call with the keys and values of all tokens, and a mask that has a column for each.

    Raises:
        ValueError: it is causal; or its mask says of the part's own text what it does not say of the others'.
    """
    if attention.options["is_causal"]:
        raise ValueError("attention is causal")
    extent, mask = site.keys, attention.mask
    if mask is not None and mask.shape[-1] == attention.key.shape[-2] != site.total:
        if extent.text is not None:
            raise ValueError("the mask is for a part of the text")
        # A mask for the part's own keys: what it says of the picture's tokens, it says of all of them.
        column = extent._replace(dim=mask.ndim - 1)
        alike = parts.own(mask, column, part)[..., :1]
        everyone = [alike.expand(*alike.shape[:-1], parts.size(source)) for source in range(parts.count)]
        mask = parts.join(mask, column, part, everyone)
    return attention._replace(
        key=parts.join(attention.key, extent, part, [key for key, _ in pairs]),
        value=parts.join(attention.value, extent, part, [value for _, value in pairs]),
        mask=mask,
    )


def _with_own_rows(attention: AttentionCall, queries: Extent | None, parts: TokenParts, part: int) -> AttentionCall:
    """The call with the rows of its mask that belong to its queries."""
    mask = attention.mask
    if mask is None or queries is None or mask.ndim < 2 or mask.shape[-2] in (1, attention.query.shape[-2]):
        return attention
    return attention._replace(mask=parts.cut(mask, queries._replace(dim=mask.ndim - 2), part))
