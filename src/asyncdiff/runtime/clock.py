"""Where a pipeline stands: which generation it is in, and how many steps of it are over."""

import functools
import inspect
import itertools
import math
import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor

from asyncdiff.call import is_equal
from asyncdiff.hooks import listen
from asyncdiff.runtime.labels import Timetable, numbers_of

# In so many steps it is looked at whether a step consists of several calls with a scheduler step each.
_WATCHED_STEPS = 2
_ROUNDING = 0.01  # of times in half precision
_UNITS = (1.0, 1e-3)  # in which denoisers are told the scheduler's timesteps
# Of a scheduler's step: every scheduler takes them first, in this order.
_STEP_ARGUMENTS = ("model_output", "timestep", "sample")


class Clock:
    """Listens to the pipeline's schedulers, which every pipeline sets up once and then calls once a step.

    A second-order scheduler is called once for every noise prediction: it is these that are counted as steps.

    Attributes:
        generation: how many generations have begun.
        steps: how many steps of this generation are over.
        timetable: the timesteps that this generation goes through.
        is_complete: whether the pipeline has come to its end, whatever is known of its steps.
        is_open: whether a generation has begun, and has not ended.
        thread: the thread in which it has begun.
        on_generation, on_step, on_end: told when a generation begins, a step is over (with its timestep), and a
            generation has ended: as soon as its last step is over, as far as that is known.
    """

    def __init__(self, pipeline: Any) -> None:
        self.generation = 0
        self.steps = 0
        self.timetable = Timetable()
        self.is_open = self.is_complete = False
        self.thread = threading.get_ident()
        self.on_generation: list[Callable[[], None]] = []
        self.on_step: list[Callable[[Any], None]] = []
        self.on_end: list[Callable[[], None]] = []
        self._pipeline = pipeline
        self._schedulers: dict[str, Any] = {}
        self._set_up: Any = None  # the scheduler that was set up last
        self._whole = Timetable()  # as the scheduler was set up; a pipeline may leave out the first or last steps
        self._undo: list[Callable[[], None]] = []
        self._is_announced = False
        self._is_at_first_call = False
        self._has_no_known_end = False
        self._is_by_hand = False
        self._times: dict[str, Any] = {}
        self._pending: list[Any] = []
        self._has_views = False
        self._bind()

    @property
    def is_over(self) -> bool:
        """Whether all steps of the generation are over."""
        return self.is_complete or 0 < len(self.timetable.timesteps) <= self.steps_done

    @property
    def is_at_last_step(self) -> bool:
        """Whether the denoiser is called for the last step, as far as that is known."""
        return len(self.timetable.timesteps) == self.steps + 1

    @property
    def steps_done(self) -> int:
        """How many steps of the generation the scheduler has taken."""
        return self.steps + len(self._pending)

    def follow(self, pipeline: Any) -> None:
        """Listen to the schedulers of a pipeline that is about to generate."""
        self.end()
        self._is_announced = False
        if self._is_elsewhere(pipeline):
            self._listen_to(pipeline)

    def rest(self, pipeline: Any) -> None:
        """No pipeline is generating: listen to the one that may be driven by hand."""
        if not self.is_open and self._is_elsewhere(pipeline):
            self._listen_to(pipeline)
            self._is_announced = False

    def find(self, pipeline: Any, is_new: bool = False) -> None:
        """A pipeline is generating; if that was not heard, as of another one or another scheduler, begin.

        Args:
            is_new: whether it was not generating before, so that what was heard must have been for this.
        """
        if self._is_elsewhere(pipeline):
            self.end()
            self._listen_to(pipeline)
            self._is_announced = False
        if not self._is_announced or (is_new and not self._is_at_first_call):
            self._begin(self._likely_scheduler())

    def has_not_heard(self, pipeline: Any) -> bool:
        """Whether a loop by hand in this thread may have set up a scheduler that the pipeline has got since."""
        is_anothers = self.is_open and self.thread != threading.get_ident()
        return not is_anothers and self._is_elsewhere(pipeline)

    def take_up(self, pipeline: Any, times: dict[str, Any]) -> None:
        """Listen to a pipeline's schedulers; a call by hand that is for the first step is the first of a generation."""
        self.end()
        self._listen_to(pipeline)
        scheduler, called = self._likely_scheduler(), _number_of(_first_of(times))
        first = _numbers(scheduler.timesteps)[:1] if getattr(scheduler, "num_inference_steps", None) else ()
        if first and called is not None and any(_is_close(called, first[0] * unit) for unit in _UNITS):
            self._begin(scheduler)

    def drive_by_hand(self) -> None:
        """No pipeline makes the calls of this generation: what one says of its steps is said of another."""
        self._is_by_hand = True

    def goes_on(self, times: dict[str, Any]) -> bool:
        """Whether a call with these time arguments can be the next one of a generation whose steps are all heard."""
        return bool(self._pending) or not self._times or _are_equal(times, self._times)

    def is_out_of_turn(self, times: dict[str, Any]) -> bool:
        """Whether a call comes after a step, and is not for the next one, as far as times tell that.

        They do where the denoiser is given the scheduler's timesteps, as they are or as thousandths.
        """
        if not self._pending or self._has_views:
            return False
        now, last = _first_of(times), self._pending[-1]
        if self._comes_next(now, last) or _are_equal(times, self._times):
            return False
        begun, step, called = map(_number_of, (_first_of(self._times), last, now))
        whole = self._whole.timesteps
        if not begun or not step or called is None or step not in whole:
            return False
        following = [after for before, after in itertools.pairwise(whole) if before == step]
        return any(
            _is_close(begun, step * unit)
            and not any(_is_close(called, each * unit, _ROUNDING * unit) for each in following)
            for unit in _UNITS
        )

    def _comes_next(self, time: Any, last: Any) -> bool:
        """Whether these are the scheduler's own timesteps, one after the other, which is seen without reading them."""
        steps = getattr(self._set_up, "timesteps", None)
        if not (isinstance(steps, Tensor) and isinstance(time, Tensor) and isinstance(last, Tensor)):
            return False
        memory = {each.untyped_storage().data_ptr() for each in (steps, time, last)}
        return len(memory) == 1 and bool(time.storage_offset() - last.storage_offset() == steps.stride(0))

    def call(self, times: dict[str, Any]) -> None:
        """A denoiser is about to be called with these time arguments."""
        if not self.is_open:
            # It was ended too early: what follows goes on to count, and nobody knows where it ends.
            self.is_open = self._has_no_known_end = True
        if self._is_at_first_call:
            self._is_at_first_call = False
            self.timetable = self._cut(times)
        if self._pending:
            # Each of several views of a picture may have a scheduler step of its own. That shows in the first steps;
            # values are read off a device no longer than that.
            is_watched = self._has_views or self.steps < _WATCHED_STEPS
            if is_watched and self._is_of_same_step(times):
                self._has_views = True
            else:
                self.tick()
            self._pending = []
        self._times = times

    def tick(self) -> None:
        """A step is over."""
        self.steps += 1
        timestep = self._pending[-1] if self._pending else None
        for notify in self.on_step:
            notify(timestep)

    def begin_again(self) -> None:
        """The pipeline goes through the timesteps from the first."""
        self.end()
        self.generation += 1
        self.steps = 0
        self.timetable = self._whole
        self.is_open = self._is_announced = self._is_at_first_call = True
        self.thread = threading.get_ident()
        self.is_complete = False
        self._times = {}
        self._pending = []
        self._has_views = self._has_no_known_end = self._is_by_hand = False
        for notify in self.on_generation:
            notify()

    def end(self) -> None:
        """The generation is over, or is broken off."""
        if self.is_open:
            self.is_open = False
            for notify in self.on_end:
                notify()

    def close(self) -> None:
        """Leave the schedulers as they were."""
        for undo in self._undo:
            undo()
        self._undo = []

    def _is_elsewhere(self, pipeline: Any) -> bool:
        """Whether the schedulers that this listens to are not those of a pipeline."""
        if pipeline is not self._pipeline:
            return True
        return any(getattr(pipeline, name) is not known for name, known in self._schedulers.items())

    def _listen_to(self, pipeline: Any) -> None:
        self.close()
        self._pipeline = pipeline
        self._bind()

    def _bind(self) -> None:
        self._schedulers = find_schedulers(self._pipeline)
        self._set_up = None
        for scheduler in self._schedulers.values():
            self._undo.append(listen(scheduler, "set_timesteps", functools.partial(self._begin, scheduler)))
            self._undo.append(listen(scheduler, "step", self._reader_of(scheduler)))

    def _likely_scheduler(self) -> Any:
        """The one that drives a generation that was not announced."""
        is_ready = (each for each in self._schedulers.values() if getattr(each, "num_inference_steps", None))
        return self._set_up or next(is_ready, next(iter(self._schedulers.values())))

    def _reader_of(self, scheduler: Any) -> Callable[..., None]:
        """What is called after each of a scheduler's steps; not every scheduler has the timestep in the same place."""
        signature = inspect.signature(scheduler.step)

        def end_step(*args: Any, **kwargs: Any) -> None:
            given = signature.bind(*args, **kwargs).arguments
            if "timestep" not in given:  # a method that passes its arguments on does not name them
                given = {**dict(zip(_STEP_ARGUMENTS, args, strict=False)), **kwargs}
            self._end_step(given.get("timestep"))

        return end_step

    def _begin(self, scheduler: Any, *args: Any, **kwargs: Any) -> None:
        timesteps, sigmas = _numbers(scheduler.timesteps), _numbers(getattr(scheduler, "sigmas", ()))
        self._whole = Timetable(timesteps, sigmas[: len(timesteps)] if len(sigmas) >= len(timesteps) else ())
        self._set_up = scheduler
        self.begin_again()

    def _cut(self, times: dict[str, Any]) -> Timetable:
        """The steps that the pipeline really takes, as far as it says so when it first calls its denoiser.

        Image-to-image leaves out the first ones, and tells the scheduler where it begins or just begins there; part of
        a schedule may be left to another model.
        """
        whole = self._whole
        first = getattr(self._set_up, "begin_index", None)
        told = None if self._is_by_hand else getattr(self._pipeline, "num_timesteps", None)
        count = told if isinstance(told, int) else 0
        if first is None:
            # A timestep may be there twice. Of those that begin later than the first, most go on to the last.
            places = _places_of(_first_of(times), whole.timesteps)
            first = next((place for place in places if place + count == len(whole.timesteps)), places[0])
        if not 0 < count <= len(whole.timesteps) - first:
            count = len(whole.timesteps) - first
        return Timetable(whole.timesteps[first : first + count], whole.sigmas[first : first + count])

    def _end_step(self, timestep: Any) -> None:
        # A pipeline may call the scheduler several times for one step: for each frame, for sound beside pictures.
        if self._pending and not is_equal(timestep, self._pending[-1]):
            self.tick()
        self._pending = [timestep]
        if self.is_over and not self._has_views and not self._has_no_known_end:
            self.end()

    def _is_of_same_step(self, times: dict[str, Any]) -> bool:
        """Whether a call has the times of the one before, and no second-order scheduler has repeated them."""
        if not _are_equal(times, self._times):
            return False
        timestep = _numbers(self._pending[-1])
        return len(timestep) != 1 or self.timetable.timesteps.count(timestep[0]) <= 1


def find_schedulers(pipeline: Any) -> dict[str, Any]:
    """The schedulers of a pipeline by name: one, or one for each of its stages."""
    parts = {**getattr(pipeline, "components", {}), "scheduler": getattr(pipeline, "scheduler", None)}
    return {name: part for name, part in parts.items() if _is_scheduler(part)}


def _is_scheduler(part: Any) -> bool:
    return callable(getattr(part, "set_timesteps", None)) and callable(getattr(part, "step", None))


def _numbers(values: Any) -> tuple[float, ...]:
    return () if values is None else tuple(numbers_of(values).tolist())


def _are_equal(times: dict[str, Any], others: dict[str, Any]) -> bool:
    return times.keys() == others.keys() and all(is_equal(times[name], others[name]) for name in times)


def _first_of(times: dict[str, Any]) -> Any:
    return next(iter(times.values()), None)


def _is_close(time: float, other: float, least: float = 0.0) -> bool:
    return math.isclose(time, other, rel_tol=_ROUNDING, abs_tol=least)


def _number_of(time: Any) -> float | None:
    """The one number that a call has for its time, however often."""
    numbers = set(_numbers(time))
    return numbers.pop() if len(numbers) == 1 else None


def _places_of(time: Any, timesteps: tuple[float, ...]) -> list[int]:
    """Where in a timetable a call's time stands; at its beginning, where that cannot be told."""
    number = _number_of(time)
    return [place for place, timestep in enumerate(timesteps) if timestep == number] or [0]
