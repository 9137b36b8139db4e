"""When is a call of a denoiser part of a generation, and of which? The one place where that is decided.

It is if a pipeline makes it: the one that was attached to, every call of which is surrounded, or another one that has
the same denoiser, which is found on the stack; or if it is made by hand, between `set_timesteps` and the last `step` of
the scheduler, in order and in one thread. It is not if gradients are wanted, if a callback makes it, or if the user has
paused. What is not part of a generation is computed in full, and leaves no trace.
"""

import contextlib
import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from types import CodeType
from typing import Any, NamedTuple

from torch import nn

from asyncdiff.call import Call
from asyncdiff.denoiser.form import CallForm
from asyncdiff.hooks import surround_calls
from asyncdiff.runtime.calling import Calling, callbacks_among, is_made_by, pipeline_calling, wants_gradients
from asyncdiff.runtime.clock import Clock
from asyncdiff.runtime.generators import Generators, is_generating_stepwise
from asyncdiff.runtime.turn import Turn

PAUSED = "paused"
_BY_CALLBACK = "a callback made it"
_NOBODY = "no pipeline is generating"
_OUT_OF_ORDER = "it is none of the steps in order"


class _Running(NamedTuple):
    pipeline: Any
    callbacks: frozenset[CodeType]


class Generations:
    """Follows a pipeline's generations.

    Args:
        pipeline: the one that is attached to.
        denoisers: its denoisers by name.
        clock: is set on the generation that a call is part of.
        timeout: seconds that one thread waits for another one's generation.
        on_begin: told that a call of a pipeline begins, before anything is done in it.
        on_failure: told why a generation is broken off.
        goes_on: whether ranks may wait for each other after the last step too, until the pipeline's call ends.
    """

    def __init__(
        self,
        pipeline: Any,
        denoisers: Mapping[str, nn.Module],
        clock: Clock,
        timeout: float,
        on_begin: Callable[[], None],
        on_failure: Callable[[str], None],
        goes_on: bool = False,
    ) -> None:
        self._pipeline = pipeline
        self._denoisers = denoisers
        self._forms = {name: CallForm(denoiser) for name, denoiser in denoisers.items()}
        self._clock = clock
        self._turn = Turn(timeout)
        self._on_begin = on_begin
        self._on_failure = on_failure
        self._goes_on = goes_on
        self._running: dict[int, list[_Running]] = {}  # the surrounded calls that are running, by thread
        self._generators = Generators()
        self._generation_of_calling = -1
        self._calling: Calling | None = None  # the other method of a pipeline whose generation the clock is set on
        self._paused: Counter[int] = Counter()
        self._undo: list[Callable[[], None]] = []
        self._surrounded: list[Any] = []
        self._surround(pipeline)
        clock.on_end.append(self._end)

    def why_outside(self, name: str, call: Call) -> str:
        """Why a call of a denoiser is not part of a generation; empty if it is. Then the clock is set on that one.

        Raises:
            BusyError: another thread is generating with the denoiser.
        """
        thread = threading.get_ident()
        if self._paused[thread]:
            return PAUSED
        if wants_gradients(self._denoisers[name], call):
            return "gradients are wanted"
        running = self._running.get(thread)
        if running:
            if is_made_by(running[-1].callbacks):
                return _BY_CALLBACK
            self._generators.draws_another()
            self._clock.find(running[-1].pipeline)
            return ""
        modules = [*self._denoisers.values(), *(getattr(self._pipeline, each) for each in self._denoisers)]
        calling = pipeline_calling(modules)  # in which there may be something around the denoiser
        if calling is not None:
            return self._why_outside_of(calling, name, call)
        if self._generators.is_at_rest:
            return "a pipeline that is a generator is between two of its steps"
        # A call of a pipeline, in another thread, follows its own schedulers.
        is_unheard = not self._running and self._clock.has_not_heard(self._pipeline)
        if not is_unheard and not self._is_driven_by_hand(thread):
            return _NOBODY
        times = self._forms[name].read(call).times
        if is_unheard:
            self._clock.take_up(self._pipeline, times)
            if not self._is_driven_by_hand(thread):
                return _NOBODY
        if self._clock.is_out_of_turn(times):
            return _OUT_OF_ORDER  # a look at something between two steps: the loop may go on
        if not self._clock.goes_on(times):
            self._clock.end()
            return _OUT_OF_ORDER
        self._turn.take(lambda: self._is_driven_by_hand(thread))
        self._clock.drive_by_hand()
        return ""

    def is_pipelines_own(self, part: nn.Module, call: Call) -> bool:
        """Whether a call of another part is one that all ranks make: by a pipeline, none of its callbacks, as it is."""
        thread = threading.get_ident()
        running = self._running.get(thread)
        if not running or self._paused[thread] or wants_gradients(part, call):
            return False
        return not is_made_by(running[-1].callbacks)

    def _why_outside_of(self, calling: Calling, name: str, call: Call) -> str:
        """The same where a method of a pipeline makes the call that is not surrounded.

        Another pipeline's first call, or one beside `__call__`; it may go through the timesteps, or ask for one.
        """
        if is_made_by(calling.callbacks):
            return _BY_CALLBACK
        self._turn.take(calling.is_running)
        self._surround(calling.pipeline)
        if self._generators.draws_another() or (self._calling != calling and not self._generators.is_drawing):
            self._break_off_what_has_failed()
            self._calling = calling
            self._clock.find(calling.pipeline, is_new=True)
        elif not self._clock.is_open:
            return _OUT_OF_ORDER
        if not self._clock.goes_on(self._forms[name].read(call).times):
            self._clock.end()
            return _OUT_OF_ORDER
        self._generation_of_calling = self._clock.generation
        return ""

    def _break_off_what_has_failed(self) -> None:
        """A call that is not surrounded has ended before its last step, which shows when the next generation begins.

        The other ranks are still waiting for this one.
        """
        clock, calling = self._clock, self._calling
        steps = len(clock.timetable.timesteps)
        if calling is None or self._generation_of_calling != clock.generation or calling.may_go_on():
            return
        if clock.is_open and clock.steps_done < steps:
            kind = type(calling.pipeline).__name__
            self._on_failure(f"a call of another pipeline ({kind}) ended after step {clock.steps_done} of {steps}")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Calls of the denoisers in this thread are part of no generation."""
        thread = threading.get_ident()
        self._paused[thread] += 1
        try:
            yield
        finally:
            self._paused[thread] -= 1
            if not self._paused[thread]:
                del self._paused[thread]

    def close(self) -> None:
        """Leave the pipeline as it was."""
        try:
            self._turn.take(lambda: False)  # another thread may be generating
        finally:
            self._clock.end()
            if self._end in self._clock.on_end:
                self._clock.on_end.remove(self._end)
            for undo in self._undo:
                undo()
            self._undo, self._surrounded = [], []

    def _surround(self, pipeline: Any) -> None:
        """Know of the beginning and the end of a pipeline's calls."""
        if callable(pipeline) and not any(known is pipeline for known in self._surrounded):
            self._surrounded.append(pipeline)
            # A class may demand something of those made from it; its pipelines are found on the stack.
            with contextlib.suppress(TypeError):
                run = self._run_stepwise if is_generating_stepwise(pipeline) else self._run
                self._undo.append(surround_calls(pipeline, functools.partial(run, pipeline)))

    @contextlib.contextmanager
    def _run_stepwise(self, pipeline: Any, kwargs: dict[str, Any]) -> Iterator[Callable[[Any], None]]:
        """Around a call that does nothing yet; what it returns is found on the stack when it draws."""
        del pipeline, kwargs
        yield self._generators.note

    @contextlib.contextmanager
    def _run(self, pipeline: Any, kwargs: dict[str, Any]) -> Iterator[Callable[[Any], None]]:
        """Around every call of a pipeline."""
        thread, clock = threading.get_ident(), self._clock
        self._turn.take(lambda: thread in self._running)
        self._break_off_what_has_failed()
        if thread not in self._running:
            self._on_begin()
        self._running.setdefault(thread, []).append(_Running(pipeline, callbacks_among(kwargs)))
        clock.follow(pipeline)
        before = clock.generation
        try:
            yield self._generators.note
        except BaseException as error:
            if clock.is_open or clock.generation == before or self._goes_on:
                self._on_failure(told(error))
            raise
        else:
            if clock.is_open and not clock.is_over and getattr(pipeline, "_interrupt", False) is True:
                self._on_failure(f"it was stopped after step {clock.steps_done} of {len(clock.timetable.timesteps)}")
            elif clock.is_open:
                clock.is_complete = True
        finally:
            clock.end()
            self._running[thread].pop()
            if not self._running[thread]:
                del self._running[thread]
                self._turn.leave()

    def _is_driven_by_hand(self, thread: int) -> bool:
        """Whether a thread has set the scheduler up, and has not taken all steps."""
        is_alive = any(each.ident == thread for each in threading.enumerate())
        return self._clock.is_open and self._clock.thread == thread and is_alive

    def _end(self) -> None:
        self._clock.rest(self._pipeline)
        if threading.get_ident() not in self._running:
            self._turn.leave()


def told(error: BaseException) -> str:
    """An error in one line."""
    text = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
