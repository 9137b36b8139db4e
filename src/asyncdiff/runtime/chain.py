"""A call in full by ranks that have a part of the weights each: one component after the other."""

from collections.abc import Sequence
from typing import Any

from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from asyncdiff.call import Call
from asyncdiff.denoiser.graph import Edge
from asyncdiff.exchange.protocol import Channel, Relay
from asyncdiff.plan.chain import Link
from asyncdiff.plan.division import Division
from asyncdiff.report import Counts
from asyncdiff.runtime.context import Context
from asyncdiff.runtime.fillers import Fillers
from asyncdiff.runtime.rules import Residuals, check_shape, substitute, unshared
from asyncdiff.runtime.units import UnitRule


class ChainRunner:
    """Makes calls of one denoiser in full, each component on the ranks that have its weights."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def run(
        self, division: Division, links: Sequence[Link], fillers: Fillers, call: Call, channel: Channel | None
    ) -> tuple[list[Any], TreeSpec]:
        """The result's leaves, right on the predictor's rank and of the right form on all others, and its structure.

        Args:
            channel: where the ranks of this process leave what later steps read; None where they read nothing.
        """
        exchange, units = self._context.exchange, self._context.units
        relay = exchange.relay(division, links, self._context.device)
        several = len(exchange.ranks) > 1
        parts = {rank: _Part(rank, division, links, relay, fillers, several) for rank in exchange.ranks}
        if several:
            for link in links:
                # In one process the ranks take turns: each begins anew, and what it has computed already it has kept.
                rule = parts[link.component].rule(until=link.units[-1] + 1)
                try:
                    units.walk(division.graph, rule, call)
                except _ReachedError:
                    continue
        results = {
            rank: tree_flatten(units.walk(division.graph, part.rule(channel), call)) for rank, part in parts.items()
        }
        relay.finish()
        return results.get(division.partition.predictor, results[exchange.ranks[0]])


class _ReachedError(BaseException):
    """A walk has come to where it was to end; no denoiser's business."""


class _Part:
    """What one rank does in a chained step: runs its own units, and puts the others' work in place of theirs."""

    def __init__(
        self,
        rank: int,
        division: Division,
        links: Sequence[Link],
        relay: Relay,
        fillers: Fillers,
        remembers: bool,
    ) -> None:
        messages = [message for link in links for message in link.messages]
        self._rank = rank
        self._division = division
        self._relay = relay
        self._fillers = fillers
        self._remembers = remembers
        self._own = division.partition.components[division.schedule.component_of(rank)]
        self._sent = {edge for message in messages if message.source == rank for edge in message.edges}
        self._received = {edge for message in messages if message.reader == rank for edge in message.edges}
        self._made: dict[int, tuple[list[Any], TreeSpec]] = {}

    def rule(self, channel: Channel | None = None, until: int | None = None) -> UnitRule:
        """The rule of a walk.

        Args:
            channel: where what later steps read is left.
            until: the unit before which the walk ends; None for the whole call.
        """
        division, rank = self._division, self._rank
        kept = frozenset[Edge]() if channel is None else division.kept_by(rank)
        residuals = Residuals(division.partition)

        def rule(unit: int, call: Call) -> Any:
            if until is not None and unit >= until:
                raise _ReachedError
            residuals.note(unit, call)
            self._relay.reach(rank, unit)
            result = self._result(unit, call)
            for number, leaf in enumerate(tree_leaves(result)):
                edge = Edge(unit, number)
                if edge in self._sent:
                    check_shape(division.graph.units[unit], number, leaf)
                    self._relay.made(rank, edge, unshared(division.graph.units[unit], edge, leaf))
                if channel is not None and edge in kept:
                    channel.keep(rank, edge, residuals.of(edge, leaf))
            self._relay.reach(rank, unit + 1)
            return result

        return UnitRule(rule, Counts())

    def _result(self, unit: int, call: Call) -> Any:
        if unit in self._division.replicated:
            return call()
        if unit not in self._own:
            return substitute(self._division.graph, self._fillers, unit, call, self._handed_on)
        if unit in self._made:
            leaves, structure = self._made[unit]
            return tree_unflatten(self._copied(unit, leaves), structure)
        result = call()
        if self._remembers:
            leaves, structure = tree_flatten(result)
            self._made[unit] = self._copied(unit, leaves), structure
        return result

    def _handed_on(self, edge: Edge) -> Any:
        """What another rank has made of an edge, if it is read here."""
        if edge not in self._received:
            return None
        return unshared(self._division.graph.units[edge.unit], edge, self._relay.read(self._rank, edge))

    def _copied(self, unit: int, leaves: Sequence[Any]) -> list[Any]:
        """Leaves, with copies of those that the denoiser writes to later on."""
        known = self._division.graph.units[unit]
        return [unshared(known, Edge(unit, number), leaf) for number, leaf in enumerate(leaves)]
