"""What dividing a picture's tokens comes to, counted from a call that was recorded at three sizes of the picture. Pure.

No weight is read. What an operator costs is a + b·x + g·x² of a picture x times as large: a is not the picture's, b is
done for each of its tokens, and g is attention among them. A text beside the picture is divided as well: what is done
for each of its tokens shows in the same call with a text twice as long. Tokens may still depend on each other in ways
that cannot be seen so; that is tried once the model is there (`runtime.token_finding`).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from asyncdiff.denoiser.graph import Graph, build_graph, cost_of, is_work
from asyncdiff.denoiser.rates import DeviceRates
from asyncdiff.denoiser.trace import Attention, Form, Leaf, Operator, Trace
from asyncdiff.errors import AsyncDiffError, SplitError
from asyncdiff.plan.storage import contiguous_stride
from asyncdiff.plan.token_layout import Extent, Site, TokenLayout

_LEAST_SHARE = 0.5  # of a call, as in `runtime.token_finding`
_OTHERS = "it runs other operators for pictures of other sizes"
_CONVOLUTIONS = "there are convolutions between its attentions"


class _Growth(NamedTuple):
    """A quantity of a picture x times as large: a + b·x + g·x².

    Attributes:
        undivided: what of it every part has to do where a text is divided as well; None where it is not.
    """

    a: float
    b: float
    g: float
    undivided: float | None = None

    @property
    def whole(self) -> float:
        """That of the picture itself."""
        return self.a + self.b + self.g

    @property
    def is_among_tokens(self) -> bool:
        """Whether it is attention of all tokens to all."""
        return self.g > 1e-6 * abs(self.b)

    def of_part(self, count: int) -> float:
        """What it is for one of so many parts of the tokens: own queries, and all keys."""
        if self.undivided is not None:
            return self.undivided + (self.whole - self.undivided) / count
        linear = self.b * (1 + 1 / count) / 2 if self.is_among_tokens else self.b / count
        return self.a + linear + self.g / count

    def with_text(self, ratio: float, longer: float) -> "_Growth":
        """The same where a text is divided as well.

        Args:
            ratio: how many tokens the text has for each of the picture's.
            longer: what it is with a text twice as long.
        """
        if self.is_among_tokens:
            # g is what all tokens have to do with each other; what grows as they do are queries, keys, values and
            # results, half of which every part reads.
            in_proportion = (self.a - self.g * ratio**2) + (self.b - 2 * self.g * ratio)
            return self._replace(undivided=max(in_proportion, 0.0) / 2)
        return self._replace(undivided=self.a - min(max(longer - self.whole, 0.0), max(self.a, 0.0)))


@dataclass(frozen=True)
class CountedTokens:
    """A denoiser's call that can be divided by tokens, as far as that can be counted.

    Attributes:
        layout: where attention among the tokens is; it says nothing of how tensors lie.
        growths: of the cost of each operator between the first of these attentions and the last.
        elsewhere: what all other operators cost.
        on_host: what it costs the host to start all of them.
        joining: what it costs to put the keys and values of all parts together.
        with_text: the same where a text is divided as well; None where there is none beside the picture in attention.
    """

    layout: TokenLayout
    growths: tuple[_Growth, ...]
    elsewhere: float
    on_host: float
    joining: float
    with_text: "CountedTokens | None" = None

    def share(self, count: int) -> float:
        """What a call with one of so many parts of the tokens takes, relative to an undivided one."""
        own = self.elsewhere + sum(growth.of_part(count) for growth in self.growths)
        own += self.joining if count > 1 else 0.0
        whole = self.elsewhere + sum(growth.whole for growth in self.growths)
        return max(own, self.on_host) / max(whole, self.on_host)


def count_tokens(
    traces: Sequence[Trace], rates: DeviceRates, longer: Callable[[int], Trace] | None = None
) -> CountedTokens:
    """Find the attentions among a picture's tokens, and what of a call is done for each token.

    Args:
        traces: the same call for pictures of three sizes; that of the first is meant.
        longer: given how many tokens a text has, the first call with a text twice as long; raises AsyncDiffError where
            there is no such text.

    Raises:
        SplitError: the call cannot be divided by tokens; says why.
    """
    first = traces[0]
    sizes = [picture_size(trace) / picture_size(first) for trace in traces]
    if len(set(sizes)) < len(sizes):
        raise SplitError("its call is the same for pictures of other sizes")
    graph = build_graph(first, rates)
    layout = _layout(graph, first, _attentions(traces, sizes))
    between = [_between(trace, graph, layout) for trace in traces]
    if len({len(operators) for operators in between}) > 1:
        raise SplitError(_OTHERS)
    costs = ([cost_of(operator, rates.per_byte) for operator in operators] for operators in between)
    growths = tuple(_growth(sizes, of_one) for of_one in zip(*costs, strict=True))
    inside = sum(growth.whole for growth in growths)
    elsewhere = sum(cost_of(operator, rates.per_byte) for operator in first.operators) - inside
    if inside < _LEAST_SHARE * (inside + elsewhere):
        raise SplitError(f"{inside / (inside + elsewhere):.0%} of a call is spent between its attentions")
    on_host = rates.per_operator * sum(map(is_work, first.operators))
    keys = sum(form.bytes for site in layout.sites.values() for form in site.forms)
    counted = CountedTokens(layout, growths, elsewhere, on_host, rates.per_byte * 2 * keys)  # read, and written
    return counted if longer is None else replace(counted, with_text=_with_text(counted, longer, rates))


def why_not(trace: Trace) -> str | None:
    """Why it is not worth recording a call at other sizes; None where it is."""
    found = [number for number, operator in enumerate(trace.operators) if operator.attention is not None]
    if not found:
        return "it has no attention"
    return _CONVOLUTIONS if _mixes_neighbours(trace.operators[found[0] : found[-1]]) else None


def picture_size(trace: Trace) -> int:
    """How many numbers a call gives: as many as the picture has."""
    count = 1
    for size in next(leaf.shape for leaf in trace.calls[0].outputs if leaf.value is not None):
        count *= size
    return count


def _growth(sizes: Sequence[float], costs: Sequence[float]) -> _Growth:
    """Through what it costs at three sizes, the first of which is 1."""
    (_, x, y), (at_one, at_x, at_y) = sizes, costs
    slope = (at_x - at_one) / (x - 1)
    g = ((at_y - at_one) / (y - 1) - slope) / (y - x)
    b = slope - g * (x + 1)
    return _Growth(at_one - b - g, b, g)


def _with_text(counted: CountedTokens, longer: Callable[[int], Trace], rates: DeviceRates) -> CountedTokens | None:
    """The same with a text divided as well, if one lies beside the picture in attention."""
    layout, growths = counted.layout, counted.growths
    sizes = Counter(site.total - layout.tokens for site in layout.sites.values() if site.total > layout.tokens)
    size = sizes.most_common(1)[0][0] if sizes else 0
    if size in (0, layout.tokens):
        return None
    try:
        operators = _between(longer(size), layout.graph, layout)
    except AsyncDiffError:
        return None
    if len(operators) != len(growths):
        return None
    found = tuple(
        growth.with_text(size / layout.tokens, cost_of(operator, rates.per_byte))
        for growth, operator in zip(growths, operators, strict=True)
    )
    sites = {
        number: _with_text_after(site, layout.tokens) if site.total > layout.tokens else site
        for number, site in layout.sites.items()
    }
    return replace(counted, layout=replace(layout, sites=sites, text=size), growths=found)


class _Attention(NamedTuple):
    """An attention of the first call.

    Attributes:
        number: of the operator.
        seen: what it goes by.
        tokens: how many of its keys are the picture's; 0 where they do not grow as it does.
        repeats: whether a larger picture has more of them, of the same size: in windows, or frame by frame.
    """

    number: int
    seen: Attention
    tokens: int
    repeats: bool


def _attentions(traces: Sequence[Trace], sizes: Sequence[float]) -> list[_Attention]:
    """All attentions of the first call, by what becomes of them in the others."""
    numbered = [
        [(number, operator, operator.attention) for number, operator in enumerate(trace.operators)] for trace in traces
    ]
    in_each = [[(number, operator, seen) for number, operator, seen in each if seen is not None] for each in numbered]
    if len({len(each) for each in in_each}) > 1:
        raise SplitError(_OTHERS)
    found = []
    for alike in zip(*in_each, strict=True):
        (number, operator, seen), *larger = alike
        keys = [(other.keys - seen.keys) / (size - 1) for (_, _, other), size in zip(larger, sizes[1:], strict=True)]
        is_in_proportion = all(abs(each - keys[0]) < 0.5 for each in keys)
        repeats = any(
            (other.queries, other.keys) == (seen.queries, seen.keys) and operator.exponentials != its.exponentials
            for _, its, other in larger
        )
        found.append(_Attention(number, seen, round(keys[0]) if is_in_proportion else 0, repeats))
    return found


def _layout(graph: Graph, trace: Trace, attentions: Sequence[_Attention]) -> TokenLayout:
    counts = Counter(attention.tokens for attention in attentions if attention.tokens)
    if not counts:
        raise SplitError("no attention among the picture's tokens was found")
    tokens = counts.most_common(1)[0][0]
    among = {place: attention for place, attention in enumerate(attentions) if attention.tokens == tokens}
    begin, end = min(among), max(among)
    for attention in attentions[begin:end]:
        if attention.tokens != tokens and (attention.tokens or attention.repeats):
            raise SplitError(f"it has attention among other groups of tokens than the {tokens} of the picture")
    if _mixes_neighbours(trace.operators[among[begin].number : among[end].number]):
        raise SplitError(_CONVOLUTIONS)
    sites = {place: _site(attention, _unit_of(trace, graph, attention.number)) for place, attention in among.items()}
    return TokenLayout(
        graph=graph,
        tokens=tokens,
        first=min(site.unit for site in sites.values()),
        last=max(site.unit for site in sites.values()),
        arguments={},
        inputs={},
        made={},
        sites=sites,
        queries={},
        attentions=tuple(site.unit for site in sites.values()),
    )


def _between(trace: Trace, graph: Graph, layout: TokenLayout) -> Sequence[Operator]:
    """What runs from the first unit with attention among tokens to the last, both included."""
    first, last = (trace.calls[graph.units[unit].call] for unit in (layout.first, layout.last))
    return trace.operators[first.first_operator : last.end_operator]


def _mixes_neighbours(operators: Iterable[Operator]) -> bool:
    return any(operator.mixes_neighbours for operator in operators)


def _unit_of(trace: Trace, graph: Graph, number: int) -> int:
    for unit, found in enumerate(graph.units):
        call = trace.calls[found.call]
        if call.first_operator <= number < call.end_operator:
            return unit
    raise SplitError("it calls attention outside of its units")


def _site(attention: _Attention, unit: int) -> Site:
    if attention.seen.forms is None:
        raise SplitError("its attention is made of several operators, so that its keys are not to be seen")
    key, value = map(_leaf, attention.seen.forms)
    places = Extent(len(key.shape) - 2, 0)
    heads = key.shape[1] if attention.seen.has_plain_heads else 0
    return Site(unit, places, places, attention.seen.keys, (key, value), attention.seen.queries, heads)


def _with_text_after(site: Site, tokens: int) -> Site:
    """A site with a text's tokens among its keys, and among its queries if there are as many."""
    keys = site.keys._replace(text=tokens)
    return replace(site, keys=keys, queries=keys if site.rows == site.total else site.queries)


def _leaf(form: Form) -> Leaf:
    shape, dtype = form
    return Leaf(0, shape, contiguous_stride(shape), dtype)
