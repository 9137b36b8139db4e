"""The hooks on a denoiser's units, and a walk through them by a rule."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

from torch import nn

from asyncdiff.call import Call
from asyncdiff.denoiser.graph import Graph
from asyncdiff.errors import OtherUnitsError
from asyncdiff.events import Events
from asyncdiff.happening import Kind
from asyncdiff.hooks import CallInPlace, is_intercepted, place_call
from asyncdiff.report import Counts


@dataclass(frozen=True)
class UnitRule:
    """What to do when a unit is called.

    Attributes:
        run: given the unit's number in the graph, and the call.
        answers: for units of which nothing is read and nothing has to be known, by name and ordinal.
        counts: of units run and skipped.
    """

    run: Callable[[int, Call], Any]
    counts: Counts
    answers: Mapping[tuple[str, int], Any] = field(default_factory=dict)


class _Walk:
    """One walk; `index` and `answers` are those of its graph and its rule."""

    __slots__ = ("answers", "calls", "index", "is_in_unit", "run", "skipped")

    def __init__(self, graph: Graph, rule: UnitRule) -> None:
        self.index, self.run, self.answers = graph.index, rule.run, rule.answers
        self.calls: dict[str, int] = {}
        self.is_in_unit = False
        self.skipped = 0


class _UnitCall(CallInPlace):
    """A unit's call. In a walk of the thread that makes it, the walk's rule says what comes of it.

    Every round makes it of every unit: so all is done here, in as few calls as there can be.
    """

    def __init__(self, module: nn.Module, name: str, walks: Mapping[int, _Walk], events: Events) -> None:
        super().__init__(module)
        self._name = name
        self._walks = walks
        self._events = events

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        walk = self._walks.get(get_ident())
        if walk is None or walk.is_in_unit:
            return self.forward(*args, **kwargs)
        ordinal = walk.calls.get(self._name, 0)
        walk.calls[self._name] = ordinal + 1
        key = self._name, ordinal
        known = walk.answers.get(key)
        if known is not None:
            walk.skipped += 1
            return known
        unit = walk.index.get(key)
        if unit is None:
            return self.forward(*args, **kwargs)
        walk.is_in_unit = True
        try:
            run = self._noted if self._events.is_on else walk.run
            return run(unit, Call(self.forward, args, kwargs))
        finally:
            walk.is_in_unit = False

    def _noted(self, unit: int, call: Call) -> Any:
        """Do what the rule says, and note whether the unit was run."""
        kind, begin = Kind.STAND_IN, self._events.mark()

        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal kind
            kind = Kind.UNIT
            return call.forward(*args, **kwargs)

        result = self._walks[get_ident()].run(unit, call._replace(forward=forward))
        self._events.note(kind, self._name, begin)
        return result


class UnitHooks:
    """Hooks on the units of one denoiser; without a walk they change nothing.

    A walk is of the thread that makes it: what other threads call meanwhile is no part of it.
    """

    def __init__(self, denoiser: nn.Module, events: Events) -> None:
        self._denoiser = denoiser
        self._events = events
        self._undo: dict[str, Callable[[], None]] = {}
        self._walks: dict[int, _Walk] = {}  # by thread

    @property
    def is_walking(self) -> bool:
        """Whether a walk of this thread is under way."""
        return get_ident() in self._walks

    def add(self, graph: Graph) -> None:
        """Hook the units of a graph that are not hooked yet, and what was not called when it was recorded."""
        for name in (*graph.calls, *graph.idle):
            module = self._denoiser.get_submodule(name)
            if name not in self._undo or not is_intercepted(module):
                self._undo[name] = place_call(module, _UnitCall(module, name, self._walks, self._events))

    def keep(self, graphs: Sequence[Graph]) -> None:
        """Hook the units of some graphs, and no others."""
        names = {name for graph in graphs for name in (*graph.calls, *graph.idle)}
        for name in self._undo.keys() - names:
            self._undo.pop(name)()
        for graph in graphs:
            self.add(graph)

    def remove(self) -> None:
        """Leave all units as they were."""
        for undo in self._undo.values():
            undo()
        self._undo.clear()

    def walk(self, graph: Graph, rule: UnitRule, call: Call) -> Any:
        """Make a call of the denoiser with a rule for its units.

        Raises:
            OtherUnitsError: it calls other units than the recorded call, or not as often.
        """
        thread = get_ident()
        walk = self._walks[thread] = _Walk(graph, rule)
        try:
            result = call.with_own_containers()()
        finally:
            del self._walks[thread]
        rule.counts.units_skipped += walk.skipped
        if walk.calls != graph.calls:  # divisions may be of different units; those of others are counted as well
            _check_calls(graph, walk.calls)
        return result


def _check_calls(graph: Graph, calls: Mapping[str, int]) -> None:
    """Whether the units were called that were called when the denoiser was recorded, and no other part of it."""
    for name in (*graph.calls, *sorted(graph.idle)):
        found, recorded = calls.get(name, 0), graph.calls.get(name, 0)
        if found != recorded:
            raise OtherUnitsError(
                f"{name!r} was called {_times(found)}, and {_times(recorded)} when the denoiser was recorded: another "
                "rule decides which blocks run (a cache like TeaCache's, for instance), and two do not go together; "
                "take it off, or call disable()"
            )


def _times(count: int) -> str:
    return {0: "not at all", 1: "once"}.get(count, f"{count} times")
