"""A denoiser divided by tokens, and by components on each part of them: whose keys each rank reads. Pure.

Every rank has its own tokens of the picture; at every attention it needs the keys and values of the others' tokens:
they are the live edges of this division (DistriFusion, arXiv 2402.19481, section 4.1). In steps in full they are those
of this very step, in rounds what the steps before let expect; fresh ones throughout make every step that is computed
one in full.

With P parts and N components the rank n · P + p has the tokens p, and runs component n of them in rounds. It reads the
keys of the others that have component n, and of the ranks that have its own tokens what the other components make.
"""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch.utils._pytree import tree_structure

from asyncdiff.denoiser.graph import Edge, Graph, UnitCall
from asyncdiff.denoiser.rates import DeviceRates
from asyncdiff.denoiser.residual import find_bases
from asyncdiff.denoiser.trace import Leaf, Trace
from asyncdiff.plan.cost import fast_enough
from asyncdiff.plan.division import Division, Goal
from asyncdiff.plan.key_form import KeyForm, key_form
from asyncdiff.plan.layers import check_exit, undivided_layers
from asyncdiff.plan.method import Method
from asyncdiff.plan.moments import Moment
from asyncdiff.plan.partition import End, Partition
from asyncdiff.plan.routing import messages, parts_of_round
from asyncdiff.plan.schedule import Schedule, Step, StepKind
from asyncdiff.plan.token_layout import Site, TokenLayout, TokenParts, with_tokens


class Piece(NamedTuple):
    """What the ranks with one part of the tokens make at a unit, as a unit of the division.

    Attributes:
        unit: the unit call.
        site: the number of the attention of which these are the keys and values; None for the unit's own output.
        part: of the tokens.
    """

    unit: int
    site: int | None
    part: int


@dataclass(frozen=True)
class TokenDivision(Division):
    """A denoiser divided by tokens: what is a unit here, and a component, is explained above.

    Attributes:
        layout: where its call is divided.
        parts: who has which tokens.
        bases: of a leaf of the last unit's output that is made by adding to what the first unit is given: the place of
            that among the first unit's tensors.
        layers: the layout's own units, given to components.
        share: what a call with the last part's tokens takes, relative to an undivided one.
    """

    layout: TokenLayout
    parts: TokenParts
    bases: Mapping[int, int]
    layers: Partition
    share: float

    @functools.cached_property
    def _units(self) -> Mapping[Piece, int]:
        return {piece: unit for unit, piece in enumerate(_pieces(self.layout, self.layers, self.parts.count))}

    @property
    def walked(self) -> Graph:
        return self.layout.graph

    @property
    def bounds(self) -> tuple[int, ...]:
        return self.parts.bounds

    @property
    def divided_share(self) -> float:
        return self.share

    def described(self) -> str:
        layout = self.layout
        owners = [self.layers.owner(unit) for unit in layout.inside]
        return str((self.bounds, layout.first, layout.last, layout.inputs, layout.made, list(layout.sites), owners))

    def place(self, rank: int) -> tuple[int, int]:
        """A rank's component, and its part of the tokens."""
        return divmod(rank, self.parts.count)

    def keys_of_step(self, rank: int) -> Moment:
        """What a rank exchanges at every attention of a step in full: each part's keys, with those that have its
        component."""
        component, _ = self.place(rank)
        results = tuple((part, component * self.parts.count + part) for part in range(self.parts.count))
        return Moment(results=results, readers=tuple(source for _, source in results))

    def results(self, step: Step) -> tuple[tuple[int, int], ...]:
        """The last unit's output, as (part of the tokens, the rank that makes it)."""
        if step.kind is StepKind.BRIDGED:
            return ()  # every rank makes the prediction for itself
        return tuple((part, self.layers.predictor * self.parts.count + part) for part in range(self.parts.count))

    def result_bytes(self, prediction: float, part: float) -> float:
        return part * self.graph.bytes(self.partition.end.reads) / self.parts.count

    @functools.cached_property
    def dealt(self) -> frozenset[int]:
        """The sites at which heads are dealt out; nowhere where keys of a step in full are kept."""
        return self.layout.dealt(self.parts) if self.schedule.fresh else frozenset()

    @functools.cached_property
    def key_form(self) -> KeyForm:
        """In what form that travels which is exchanged within a step; as it is where keys of some steps are forecast:
        these are what the forecasts begin with."""
        return key_form(self.method.bits if self.schedule.fresh else None)

    @functools.cached_property
    def exchanged_within(self) -> tuple[tuple[int, int, int], ...]:
        parts = range(self.parts.count)
        sizes = {
            (source, reader): sum(
                self.layout.dealt_bytes(number, self.parts, source, reader, self.key_form)
                if number in self.dealt
                else self.layout.given_bytes(number, self.parts, source, self.key_form)
                for number in self.layout.sites
            )
            for source in parts
            for reader in parts
            if source != reader
        }
        return tuple(
            (source, reader, sizes[part, self.place(reader)[1]])
            for reader in range(self.schedule.world_size)
            for part, source in self.keys_of_step(reader).results
            if source != reader
        )

    @functools.cached_property
    def passes_within(self) -> float:
        last = self.parts.count - 1  # which is no smaller than the others
        return sum(
            self.layout.passes_within(number, self.parts, last, number in self.dealt, self.key_form)
            for number in self.layout.sites
        )

    @property
    def moments_within(self) -> int:
        return len(self.layout.sites) + len(self.dealt)

    @property
    def bytes_per_round(self) -> int:
        """The same where keys and values are exchanged within a step, as they are."""
        if self.schedule.fresh:
            return sum(size for _, _, size in self.exchanged_within)
        return sum(self.bytes_of(reads) for reads in self.partition.reads)

    def reads_of(self, rank: int) -> frozenset[Edge]:
        return self.made_everywhere if self.schedule.fresh else super().reads_of(rank)

    @functools.cached_property
    def made_everywhere(self) -> frozenset[Edge]:
        """The last unit's output of all tokens, from which steps are bridged."""
        return self.partition.end.reads if self.schedule.bridge > 1 else frozenset()

    def exit(self, leaf: int) -> Edge:
        """The live edge that is a leaf of the last unit's output, of all tokens."""
        return Edge(len(self.graph.units) - 1, leaf)

    def edges(self, number: int, part: int) -> tuple[Edge, Edge]:
        """The live edges that are a part's keys and values at a site."""
        unit = self._units[Piece(self.layout.sites[number].unit, number, part)]
        return Edge(unit, 0), Edge(unit, 1)

    @functools.cached_property
    def between_layers(self) -> frozenset[Edge]:
        """The outputs of the layout's own units that other components read."""
        return frozenset[Edge]().union(*self.layers.reads)

    def runs(self, component: int) -> frozenset[int]:
        """The layout's own units that the ranks with a component run in a round: all but the other components'."""
        others = (units for number, units in enumerate(self.layers.components) if number != component)
        return frozenset(range(len(self.layout.graph.units))).difference(*others)

    def of_part(self, edge: Edge, part: int) -> Edge:
        """The live edge that is a part of one of them: its tokens, or a copy where it has none."""
        return Edge(self._units[Piece(edge.unit, None, part)], edge.leaf)


def divide_tokens(
    layout: TokenLayout,
    schedule: Schedule,
    rates: DeviceRates,
    method: Method,
    share: float,
    bases: Mapping[int, int],
    goal: Goal | None = None,
    layers: Partition | None = None,
) -> TokenDivision:
    """Give each of the schedule's components a part of the tokens, and of the units.

    Args:
        share: what a call with the tokens of the last part takes, relative to an undivided one.
        bases: of the leaves of the last unit's output (`bases_of`).
        goal: with it as many steps are bridged as it takes.
        layers: the units given to components (`divide_layers`); by default each rank runs all of them.

    Raises:
        SplitError: steps are to be bridged, and what comes after the tokens reads more than the last unit's output.
    """
    layers = layers or undivided_layers(layout)
    parts = layout.parts(schedule.components // len(layers.components))
    in_unit = Counter(site.unit for site in layout.sites.values())
    inside = [layout.graph.units[unit] for unit in layout.inside]
    cost, time = (sum(getattr(unit, name) for unit in inside) for name in ("cost", "time"))
    pieces = _pieces(layout, layers, parts.count)
    made = tuple(
        _output(layout, piece, parts)
        if piece.site is None
        else _keys(layout, layout.sites[piece.site], piece, parts, in_unit[piece.unit])
        for piece in pieces
    )
    # The last of all is the last unit's output, which every rank gets whole.
    last = layout.graph.units[layout.last]
    graph = Graph(
        (*made, replace(last, cost=0.0, time=0.0, flops=0, reads=frozenset(), replicated=True)),
        frozenset(),
        layout.graph.cost - cost,
        layout.graph.time - time,
    )
    exits = frozenset(
        Edge(len(made), place)
        for place, leaf in enumerate(last.outputs)
        if leaf.value is not None and last.origins[place] == place
    )
    outside = 1 - time / layout.graph.time
    ranks = [(component, part) for component in range(len(layers.components)) for part in range(parts.count)]
    partition = Partition(
        components=tuple(
            frozenset(
                unit
                for unit, piece in enumerate(pieces)
                if piece.part == part and layers.owner(piece.unit) == component
            )
            for component, part in ranks
        ),
        reads=tuple(_reads(pieces, layers, component, part) for component, part in ranks),
        predictor=0,
        shares=tuple(share - max(0.0, share - outside) * (1 - layers.shares[component]) for component, _ in ranks),
        end=End(frozenset(), exits, outside),
    )
    schedule = replace(schedule, predictor=0, versions=method.versions, fresh_sum=False)
    if goal is not None:
        largest = max(partition.shares)
        schedule = fast_enough(schedule, goal.steps, goal.speedup, largest, partition.end.share, share)
    if schedule.bridge > 1:
        check_exit(
            layout,
            "steps cannot be bridged where tokens are divided so",
            "leave bridge and target_speedup out",
        )
    sent = () if schedule.fresh else messages(schedule, partition)
    part_of = parts_of_round(graph, partition, sent, rates)
    return TokenDivision(graph, partition, schedule, sent, part_of, method, layout, parts, bases, layers, share)


def bases_of(trace: Trace, layout: TokenLayout) -> dict[int, int]:
    """For each leaf of the last unit's output: which tensor of the first unit's it is made of by adding to it, if any.

    What is forecast then is what was added, and the newest tensor is added to that.
    """
    owners = [0 if unit in layout.inside else None for unit in range(len(layout.graph.units))]
    found = {}
    for edge, base in find_bases(trace, layout.graph, owners).items():
        is_divided = edge.leaf in layout.outputs
        is_cut_here = base.input in layout.inputs[layout.first]
        if edge.unit == layout.last and base.unit == layout.first and is_divided == is_cut_here:
            found[edge.leaf] = base.input
    return found


def _pieces(layout: TokenLayout, layers: Partition, parts: int) -> tuple[Piece, ...]:
    """The units of the division, in the order in which they are made."""
    read = {edge.unit for reads in layers.reads for edge in reads}
    sites: dict[int, list[int]] = {}
    for number, site in layout.sites.items():
        sites.setdefault(site.unit, []).append(number)
    return tuple(
        Piece(unit, number, part)
        for unit in sorted(read | sites.keys())
        for number in (*sites.get(unit, ()), *([None] if unit in read else ()))
        for part in range(parts)
    )


def _reads(pieces: Sequence[Piece], layers: Partition, component: int, part: int) -> frozenset[Edge]:
    """What a rank reads: the others' keys in its component, and of its own tokens what other components make."""
    found = set[Edge]()
    for unit, piece in enumerate(pieces):
        if piece.site is not None and piece.part != part and layers.owner(piece.unit) == component:
            found |= {Edge(unit, 0), Edge(unit, 1)}
        elif piece.site is None and piece.part == part:
            found |= {Edge(unit, edge.leaf) for edge in layers.reads[component] if edge.unit == piece.unit}
    return frozenset(found)


def _keys(layout: TokenLayout, site: Site, piece: Piece, parts: TokenParts, sites: int) -> UnitCall:
    """A part's keys and values at a site, one of so many in its unit."""
    real = layout.graph.units[site.unit]
    share = parts.size(piece.part) / parts.tokens / sites
    outputs = tuple(_own(form, parts.length(site.keys, piece.part)) for form in site.forms)
    return UnitCall(
        call=real.call,
        name=real.name,
        ordinal=(piece.site or 0) * parts.count + piece.part,
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


def _output(layout: TokenLayout, piece: Piece, parts: TokenParts) -> UnitCall:
    """A unit's output of a part of the tokens; what it costs is told where its keys are."""
    cut = layout.cut(parts, piece.part).units[piece.unit]
    return replace(
        cut,
        ordinal=(len(layout.attentions) + piece.unit) * parts.count + piece.part,
        cost=0.0,
        time=0.0,
        flops=0,
        reads=frozenset(),
        overwritten=frozenset(),
        replicated=False,
    )


def _own(form: Leaf, tokens: int) -> Leaf:
    """The form of some tokens' keys or values, packed."""
    return with_tokens(form, len(form.shape) - 2, tokens)
