"""How a denoiser is divided for its calls: found in one of them for every structure and shape, and kept for a while."""

import contextlib
import functools
import logging
from collections.abc import Iterator
from typing import Any

from asyncdiff.call import Call
from asyncdiff.denoiser.form import Signature
from asyncdiff.denoiser.graph import build_graph, operations
from asyncdiff.denoiser.keeping import keeping_state
from asyncdiff.denoiser.look import Look
from asyncdiff.denoiser.rates import rates_of
from asyncdiff.denoiser.rehearsal import rehearse
from asyncdiff.denoiser.structure import Structure, check_callable_in_parts, convolves, is_watched, surroundings_of
from asyncdiff.denoiser.trace import Trace, record
from asyncdiff.errors import AsyncDiffError, OtherUnitsError, SplitError, TraceError
from asyncdiff.exchange.agreement import Statement
from asyncdiff.plan.division import Division, Goal, divide_denoiser
from asyncdiff.plan.key_form import key_form
from asyncdiff.plan.layers import check_cut, divide_layers
from asyncdiff.plan.link import Link
from asyncdiff.plan.moments import Moment
from asyncdiff.plan.ownership import Ownership, ownership_of
from asyncdiff.plan.token_counting import why_not
from asyncdiff.plan.tokens import TokenDivision, bases_of, divide_tokens
from asyncdiff.runtime.axis import Axis, Rivals, measured_link, seconds_of, uncounted
from asyncdiff.runtime.context import Context
from asyncdiff.runtime.fresh_keys import FreshKeys
from asyncdiff.runtime.recent import Recent
from asyncdiff.runtime.stream import Stream
from asyncdiff.runtime.token_finding import FoundTokens, TokenFinder
from asyncdiff.settings import Settings

logger = logging.getLogger(__name__)


class Divisions:
    """The divisions of one denoiser.

    Attributes:
        structure: what of the denoiser, apart from a call's arguments, decides how data flows in it.
        look: says what it is now.
    """

    def __init__(self, context: Context) -> None:
        self.structure: Structure = None
        self.look = Look(context.denoiser)
        self._context = context
        self._modules: list[dict[str, Any]] = []  # their attributes
        self._ownership: Ownership | None = None
        self._axis = Axis(context)
        self._known: Recent[tuple[Structure, Signature, Goal | None, bool], dict[tuple[int, int], Division]] = Recent()

    def look_again(self) -> None:
        """Once a generation: adapters and fusions change the module tree, and with it what the units are.

        Raises:
            ConfigurationError: the denoiser cannot be taken apart any more.
        """
        denoiser, units = self._context.denoiser, self._context.units
        check_callable_in_parts(self._context.name, denoiser)
        structure = self.look.structure()
        if structure != self.structure:
            self.structure = structure
            self._modules = [vars(module) for module in denoiser.modules() if next(module.children(), None) is not None]
            units.remove()
        of_structure = (divisions for (made_for, *_), divisions in self._known.items() if made_for == structure)
        units.keep([division.walked for divisions in of_structure for division in divisions.values()])

    def surroundings(self) -> Structure:
        """What of the structure may change from call to call.

        Raises:
            ConfigurationError: the denoiser cannot be taken apart any more.
        """
        context = self._context
        return surroundings_of(context.name, context.denoiser, self._modules, context.device.type)

    def check_unchanged(self, cause: BaseException) -> None:
        """Whether what has failed may have another cause than that the denoiser was changed in the middle.

        Raises:
            OtherUnitsError: it may not.
        """
        if self.look.structure() != self.structure:
            name = self._context.name
            raise OtherUnitsError(
                f"the modules of the denoiser {name!r}, or their settings, have changed within a generation (a "
                "callback has put an adapter on or off, or scaled it, for instance), and what was recorded of it holds "
                "no more: change them between two generations, or generate within `with async_diff.paused():`"
            ) from cause

    def known(self, stream: Stream, lane: int) -> Division | None:
        """The division made for such calls: best for a stream in the same place, since values may decide on shapes."""
        made = self._made_for(stream)
        return made.get((lane, stream.place), next(iter(made.values()), None))

    def divide(self, stream: Stream, lane: int, call: Call) -> tuple[object, Division]:
        """Record a call and divide the denoiser for its stream; returns the call's result and the division.

        Where each rank has a part of the weights, the call is rehearsed instead, and there is no result; the first
        division says who has which part.

        Raises:
            SplitError: the denoiser cannot be divided so.
            RankMismatchError: the ranks would divide it differently.
        """
        context, goal, result = self._context, self._goal(), None
        batch = context.form.batch(call)
        if context.schedule.chained:
            trace = rehearse(context.denoiser, call, batch)
        else:
            result, trace = record(context.denoiser, call.with_own_containers(), batch)
        if context.schedule.by_tokens:
            division: Division = self._divide_tokens(context.settings, trace, call, goal)
        else:
            division = self._divide_open(trace, call, goal)
        stream.division = division
        self._made_for(stream)[lane, stream.place] = division
        if goal is not None:
            self._say_if_out_of_reach(division, goal)
        context.units.add(division.walked)
        what = f"the division of the denoiser {context.name!r}"
        context.exchange.check_agreement(lambda: [Statement(what, division.described())], what)
        if context.schedule.chained and self._ownership is None:
            self._ownership = ownership_of(division.graph, division.partition)
            if context.share is not None:
                own = {division.schedule.component_of(rank) for rank in context.exchange.ranks}
                context.share.take(self._ownership, own)
        return result, division

    def _divide_layers(self, trace: Trace, goal: Goal | None) -> Division:
        """Give each rank of the group a component of the call."""
        context, settings = self._context, self._context.settings
        rates, method = rates_of(context.device), settings.chosen_method
        return divide_denoiser(trace, context.schedule, settings.split, rates, method, goal, self._ownership)

    def _find_tokens(self, settings: Settings, trace: Trace, call: Call, goal: Goal | None) -> FoundTokens:
        """Find where the call can be divided by tokens."""
        context, schedule = self._context, settings.schedule()
        graph = build_graph(trace, rates_of(context.device))
        context.units.add(graph)
        is_bridged = goal is not None or schedule.bridge > 1
        finder = TokenFinder(context.denoiser, context.units, context.form, trace, graph, is_bridged, schedule.fresh)
        with keeping_state(context.denoiser, context.device):
            return finder.find(call, settings.tokens or 1)

    def _divide_tokens(self, settings: Settings, trace: Trace, call: Call, goal: Goal | None) -> TokenDivision:
        """Give each rank of the group a part of the call's tokens, and of its units."""
        found, rates = self._find_tokens(settings, trace, call, goal), rates_of(self._context.device)
        layout, components = found.layout, settings.told_components or 1
        share = operations(found.divided, rates) / operations(trace, rates)
        method = settings.chosen_method
        bases = bases_of(trace, layout) if method.residual else {}
        layers = divide_layers(layout, trace, components, method.residual)
        if components > 1:
            check_cut(layout, layout.parts(settings.tokens or 1), found.divided)
        return divide_tokens(layout, settings.schedule(), rates, method, share, bases, goal, layers)

    def choose_axis(self, call: Call) -> None:
        """At the beginning of a generation: whether it is by tokens that calls are divided, where that is left open."""
        if self._axis.is_open:
            self._axis.choose(self.structure, self._goal(), functools.partial(self._find_rivals, call))

    def _find_rivals(self, call: Call) -> Rivals | None:
        """Divide a call by tokens and by components, and time it; all ranks take part."""
        with keeping_state(self._context.denoiser, self._context.device):
            return self._timed_rivals(call)

    def _timed_rivals(self, call: Call) -> Rivals | None:
        context, axis, rates = self._context, self._axis, rates_of(self._context.device)
        found = self._found_unasked(call)
        if axis.gathered(None if found is None else ()) is None or found is None:
            return None
        trace, tokens = found
        layout = tokens.layout
        parts = layout.parts(context.schedule.components)
        link = measured_link(context.exchange, parts.count, context.device)
        everyone = Moment(results=tuple((part, part) for part in range(parts.count)))
        form = key_form(axis.by_tokens.chosen_method.bits)
        others = FreshKeys(context.exchange, layout, parts, everyone, context.name, layout.dealt(parts), form)
        part = tokens.trial.divided(layout, parts, context.exchange.ranks[0], [], others)
        with uncounted(context.exchange.traffic):
            divided = seconds_of(lambda: part(), context.device)
        whole = seconds_of(lambda: call.with_own_containers()(), context.device)
        measured = axis.gathered((whole, divided, 1 / link.bandwidth, link.latency))
        if measured is None:
            return None
        whole, divided, of_a_byte, latency = measured
        settings = axis.by_tokens

        def by_tokens(goal: Goal | None) -> Division:
            share, method = divided / whole, settings.chosen_method
            return divide_tokens(layout, settings.schedule(), rates, method, share, {}, goal)

        return Rivals(
            by_tokens=by_tokens,
            by_components=functools.partial(self._divide_layers, trace),
            call=whole,
            link=Link("measured", 1 / of_a_byte, latency),
            of_a_byte=rates.per_byte / operations(trace, rates),
            prediction=sum(leaf.bytes for leaf in trace.calls[0].outputs),
        )

    def _found_unasked(self, call: Call) -> tuple[Trace, FoundTokens] | None:
        """Where the tokens of a call are, if they can be divided.

        Not where others would see the call: it is made a few times more, once with a picture that is none. Users may
        have hooks, and there are attention processors that count their calls.
        """
        context, denoiser = self._context, self._context.denoiser
        if is_watched(denoiser) or convolves(denoiser):
            return None
        try:
            trace = record(denoiser, call.with_own_containers(), context.form.batch(call))[1]
            if self.look.structure() != self.structure or why_not(trace) is not None:
                return None
            return trace, self._find_tokens(self._axis.by_tokens, trace, call, self._goal())
        except (SplitError, TraceError) as error:
            logger.info("%s", error)
        except AsyncDiffError:
            raise
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            # Nobody has asked for tokens: whatever the denoiser stumbles over that is called with what is no picture,
            # or has no memory for, is a reason to leave them whole.
            logger.info("tokens of the denoiser %r were not found: %s", context.name, error)
        return None

    def _divide_open(self, trace: Trace, call: Call, goal: Goal | None) -> Division:
        """By tokens, where that was chosen and can be done with such a call; else by components."""
        division: Division | None = None
        if self._axis.takes_tokens:
            try:
                division = self._divide_tokens(self._axis.by_tokens, trace, call, goal)
            except SplitError as error:
                logger.info("%s", error)
            what = f"how the denoiser {self._context.name!r} is divided"
            if not self._context.exchange.agree(division is not None, what):
                division = None
        return self._divide_layers(trace, goal) if division is None else division

    def forget(self, stream: Stream) -> None:
        """Calls like a stream's are not like the recorded one, which may have been the odd one: record anew."""
        self._made_for(stream).clear()

    @contextlib.contextmanager
    def told_apart(self, stream: Stream, *others: type[TraceError]) -> Iterator[None]:
        """If a call is not like the recorded one, say where that was, and record anew from now on.

        Args:
            others: errors that say the same, beside OtherUnitsError.
        """
        kinds: tuple[type[TraceError], ...] = (OtherUnitsError, *others)
        try:
            yield
        except kinds as error:
            self.forget(stream)
            raise type(error)(f"in step {stream.index} of the denoiser {self._context.name!r} {error}") from None

    def _made_for(self, stream: Stream) -> dict[tuple[int, int], Division]:
        """Those made for calls like a stream's, by lane and place."""
        key = (self.structure, stream.arguments.signature, self._goal(), self._axis.takes_tokens)
        return self._known.of(key, dict)

    def _goal(self) -> Goal | None:
        steps, target = len(self._context.clock.timetable.timesteps), self._context.settings.target_speedup
        return Goal(steps, target) if target is not None and steps else None

    def _say_if_out_of_reach(self, division: Division, goal: Goal) -> None:
        reached = division.modelled_speedup(goal.steps)
        if reached < goal.speedup:
            logger.warning(
                "the denoiser %r cannot be made %.2f times as fast in %d steps; bridge=%d makes it %.2f times as fast",
                self._context.name,
                goal.speedup,
                goal.steps,
                division.schedule.bridge,
                reached,
            )
