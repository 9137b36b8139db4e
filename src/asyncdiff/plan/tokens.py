"""A denoiser's tokens divided over ranks: where they lie, who has which, and whose keys each reads. Pure.

Every rank runs all units on its own tokens of the picture; at every attention it needs the keys and values of the
others' tokens: they are the live edges of this division (DistriFusion, arXiv 2402.19481, section 4.1). In steps in full
they are those of this very step, in rounds what the steps before let expect; fresh ones throughout make every step that
is computed one in full.
"""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_structure

from asyncdiff.denoiser.graph import Edge, Graph, UnitCall
from asyncdiff.denoiser.rates import DeviceRates
from asyncdiff.denoiser.residual import find_bases
from asyncdiff.denoiser.trace import Leaf, Trace
from asyncdiff.errors import SplitError
from asyncdiff.plan.cost import fast_enough
from asyncdiff.plan.division import Division, Goal
from asyncdiff.plan.method import Method
from asyncdiff.plan.partition import End, Partition
from asyncdiff.plan.routing import messages, parts_of_round
from asyncdiff.plan.schedule import Schedule, Step, StepKind
from asyncdiff.plan.storage import contiguous_stride


class Extent(NamedTuple):
    """Where in a tensor the tokens of the picture lie; others, those of the text for instance, may lie around them.

    Attributes:
        dim: along which dimension.
        start: the place of the first.
    """

    dim: int
    start: int


@dataclass(frozen=True)
class Site:
    """A call of attention in which keys are tokens of the picture.

    Attributes:
        unit: the unit call in which it is made.
        keys: where they begin among all keys.
        queries: where they begin among all queries; None where the queries are none of them.
        total: how many keys there are in the undivided call.
        forms: of the undivided call's keys and values, shape (batch, heads, keys, channels).
    """

    unit: int
    keys: int
    queries: int | None
    total: int
    forms: tuple[Leaf, Leaf]

    @property
    def extent(self) -> Extent:
        """Where the tokens lie in keys and values."""
        return Extent(len(self.forms[0].shape) - 2, self.keys)


@dataclass(frozen=True)
class TokenLayout:
    """Where a denoiser's call can be divided by tokens.

    Attributes:
        graph: the units of the call.
        tokens: how many tokens the picture has.
        first, last: the unit calls between which, both included, every rank has its own tokens only.
        arguments: where they lie in tensors that the denoiser is given for these units, by their places.
        inputs: for each of these units, where tokens lie in its input tensors, by their places among them.
        outputs: where they lie in the output of the last one, by leaf.
        sites: by their numbers among all calls of attention in those units.
        queries: of the other calls of attention there, by number, where tokens begin among the queries.
        attentions: how many calls of attention there are.
    """

    graph: Graph
    tokens: int
    first: int
    last: int
    arguments: Mapping[int, Extent]
    inputs: Mapping[int, Mapping[int, Extent]]
    outputs: Mapping[int, Extent]
    sites: Mapping[int, Site]
    queries: Mapping[int, int]
    attentions: int

    @property
    def last_site(self) -> int:
        """The last unit call with a site."""
        return max(site.unit for site in self.sites.values())


@dataclass(frozen=True)
class TokenParts:
    """Tokens dealt out to ranks in order, as evenly as can be.

    Attributes:
        tokens: how many there are.
        count: how many ranks.
    """

    tokens: int
    count: int

    @functools.cached_property
    def bounds(self) -> tuple[int, ...]:
        """Where each rank's tokens begin, and where the last one's end."""
        return tuple(rank * self.tokens // self.count for rank in range(self.count + 1))

    def size(self, rank: int) -> int:
        """How many tokens a rank has."""
        return self.bounds[rank + 1] - self.bounds[rank]

    def cut(self, tensor: Tensor, extent: Extent, rank: int) -> Tensor:
        """What a rank has of a tensor of all tokens: its own, and what lies around all of them."""
        before = tensor.narrow(extent.dim, 0, extent.start)
        end = extent.start + self.tokens
        after = tensor.narrow(extent.dim, end, tensor.shape[extent.dim] - end)
        own = self.of(tensor, extent, rank)
        around = [part for part in (before, after) if part.shape[extent.dim]]
        return torch.cat((before, own, after), extent.dim) if around else own

    def of(self, tensor: Tensor, extent: Extent, rank: int) -> Tensor:
        """A rank's tokens, of a tensor of all tokens."""
        return tensor.narrow(extent.dim, extent.start + self.bounds[rank], self.size(rank))

    def own(self, tensor: Tensor, extent: Extent, rank: int) -> Tensor:
        """A rank's tokens, of a tensor of its own alone and of what lies around them."""
        return tensor.narrow(extent.dim, extent.start, self.size(rank))

    def join(self, mine: Tensor, extent: Extent, rank: int, parts: Sequence[Tensor]) -> Tensor:
        """All tokens, given each rank's, with what lies around them in a tensor of one rank's tokens."""
        end = extent.start + self.size(rank)
        before = mine.narrow(extent.dim, 0, extent.start)
        after = mine.narrow(extent.dim, end, mine.shape[extent.dim] - end)
        return torch.cat((before, *parts, after), extent.dim)


@dataclass(frozen=True)
class TokenDivision(Division):
    """A denoiser divided by tokens: the keys and values of a rank's tokens, at each site, are a unit's output.

    Attributes:
        layout: where its call is divided.
        parts: who has which tokens.
        bases: of a leaf of the last unit's output that is made by adding to what the first unit is given: the place of
            that among the first unit's tensors.
    """

    layout: TokenLayout
    parts: TokenParts
    bases: Mapping[int, int]

    @functools.cached_property
    def _places(self) -> Mapping[int, int]:
        """How many sites come before each, by its number."""
        return {number: place for place, number in enumerate(self.layout.sites)}

    @property
    def walked(self) -> Graph:
        return self.layout.graph

    @property
    def bounds(self) -> tuple[int, ...]:
        return self.parts.bounds

    def described(self) -> str:
        layout = self.layout
        return str((self.bounds, layout.first, layout.last, layout.inputs, layout.outputs, list(layout.sites)))

    def results(self, step: Step) -> tuple[tuple[int, int], ...]:
        if step.kind is StepKind.BRIDGED:
            return ()  # every rank makes the prediction for itself
        return tuple((rank, rank) for rank in range(self.parts.count))

    def result_bytes(self, prediction: float, part: float) -> float:
        return part * self.graph.bytes(self.partition.end.reads) / self.parts.count

    @property
    def bytes_per_round(self) -> int:
        """The same where keys and values are exchanged within a step, as they are."""
        size = self.graph.bytes if self.schedule.fresh else self.bytes_of
        return sum(size(reads) for reads in self.partition.reads)

    def reads_of(self, rank: int) -> frozenset[Edge]:
        return self.made_everywhere if self.schedule.fresh else super().reads_of(rank)

    @functools.cached_property
    def made_everywhere(self) -> frozenset[Edge]:
        """The last unit's output of all tokens, from which steps are bridged."""
        return self.partition.end.reads if self.schedule.bridge > 1 else frozenset()

    def exit(self, leaf: int) -> Edge:
        """The live edge that is a leaf of the last unit's output, of all tokens."""
        return Edge(len(self.graph.units) - 1, leaf)

    def edges(self, number: int, rank: int) -> tuple[Edge, Edge]:
        """The live edges that are a rank's keys and values at a site."""
        unit = self._places[number] * self.parts.count + rank
        return Edge(unit, 0), Edge(unit, 1)


def divide_tokens(
    layout: TokenLayout,
    schedule: Schedule,
    rates: DeviceRates,
    method: Method,
    share: float,
    bases: Mapping[int, int],
    goal: Goal | None = None,
) -> TokenDivision:
    """Give each of the schedule's components a part of the tokens.

    Args:
        share: what a call with the tokens of the last of them takes, relative to an undivided one.
        bases: of the leaves of the last unit's output (`bases_of`).
        goal: with it as many steps are bridged as it takes.

    Raises:
        SplitError: steps are to be bridged, and what comes after the tokens reads more than the last unit's output.
    """
    parts = TokenParts(layout.tokens, schedule.components)
    in_unit = Counter(site.unit for site in layout.sites.values())
    inside = [layout.graph.units[unit] for unit in range(layout.first, layout.last + 1)]
    cost, time = (sum(getattr(unit, name) for unit in inside) for name in ("cost", "time"))
    keys = tuple(
        _virtual_unit(layout, site, number, parts, rank, in_unit[site.unit])
        for number, site in layout.sites.items()
        for rank in range(parts.count)
    )
    # The last of all is the last unit's output, which every rank gets whole.
    last = layout.graph.units[layout.last]
    graph = Graph(
        (*keys, replace(last, cost=0.0, time=0.0, flops=0, reads=frozenset(), replicated=True)),
        frozenset(),
        layout.graph.cost - cost,
        layout.graph.time - time,
    )
    components = tuple(
        frozenset(unit for unit in range(len(keys)) if unit % parts.count == rank) for rank in range(parts.count)
    )
    every = frozenset(Edge(unit, leaf) for unit in range(len(keys)) for leaf in (0, 1))
    exits = frozenset(
        Edge(len(keys), place)
        for place, leaf in enumerate(last.outputs)
        if leaf.value is not None and last.origins[place] == place
    )
    partition = Partition(
        components=components,
        reads=tuple(frozenset(edge for edge in every if edge.unit not in own) for own in components),
        predictor=0,
        shares=(share,) * parts.count,
        end=End(frozenset(), exits, 1 - time / layout.graph.time),
    )
    schedule = replace(schedule, predictor=0, versions=method.versions, fresh_sum=False)
    if goal is not None:
        schedule = fast_enough(schedule, goal.steps, goal.speedup, share, partition.end.share)
    if schedule.bridge > 1:
        _check_exit(layout)
    sent = () if schedule.fresh else messages(schedule, partition)
    part_of = parts_of_round(graph, partition, sent, rates)
    return TokenDivision(graph, partition, schedule, sent, part_of, method, layout, parts, bases)


def bases_of(trace: Trace, layout: TokenLayout) -> dict[int, int]:
    """For each leaf of the last unit's output: which tensor of the first unit's it is made of by adding to it, if any.

    What is forecast then is what was added, and the newest tensor is added to that.
    """
    inside = range(layout.first, layout.last + 1)
    owners = [0 if unit in inside else None for unit in range(len(layout.graph.units))]
    found = {}
    for edge, base in find_bases(trace, layout.graph, owners).items():
        is_of_picture = edge.leaf in layout.outputs
        is_cut_here = base.input in layout.inputs[layout.first]
        if edge.unit == layout.last and base.unit == layout.first and is_of_picture == is_cut_here:
            found[edge.leaf] = base.input
    return found


def _check_exit(layout: TokenLayout) -> None:
    """Whether all that is read after the tokens is what the last unit gives."""
    units = layout.graph.units
    later = [(unit.name, unit.reads) for unit in units[layout.last + 1 :]]
    for name, reads in (*later, ("the prediction", layout.graph.output_reads)):
        for edge in reads:
            if layout.first <= edge.unit < layout.last:
                raise SplitError(
                    f"steps cannot be bridged where tokens are divided so: {name!r} reads what "
                    f"{units[edge.unit].name!r} makes, in the middle of it; leave bridge and target_speedup out"
                )


def _virtual_unit(layout: TokenLayout, site: Site, number: int, parts: TokenParts, rank: int, sites: int) -> UnitCall:
    real = layout.graph.units[site.unit]
    share = parts.size(rank) / parts.tokens / sites
    outputs = tuple(_part(form, parts.size(rank)) for form in site.forms)
    return UnitCall(
        call=real.call,
        name=real.name,
        ordinal=number * parts.count + rank,
        cost=real.cost * share,
        time=real.time * share,
        flops=int(real.flops * share),
        reads=frozenset(),
        outputs=outputs,
        origins=(0, 1),
        structure=tree_structure((0, 0)),
        overwritten=frozenset(),
        replicated=False,
    )


def _part(form: Leaf, tokens: int) -> Leaf:
    """The form of some tokens' keys or values, packed."""
    *others, _, channels = form.shape
    shape = (*others, tokens, channels)
    return replace(form, shape=shape, stride=contiguous_stride(shape))
