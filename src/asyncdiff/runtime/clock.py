"""Where a pipeline stands: which generation it is in, and how many steps of it are over."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

from asyncdiff.call import is_equal
from asyncdiff.hooks import listen
from asyncdiff.runtime.labels import Timetable

# In so many steps it is looked at whether a step consists of several calls with a scheduler step each.
_WATCHED_STEPS = 2


class Clock:
    """Listens to the pipeline's schedulers, which every pipeline sets up once and then calls once a step.

    A second-order scheduler is called once for every noise prediction: it is these that are counted as steps.

    Attributes:
        generation: how many generations have begun.
        steps: how many steps of this generation are over.
        timetable: the timesteps of this generation, as the scheduler has set them.
    """

    def __init__(self, pipeline: Any) -> None:
        self.generation = 0
        self.steps = 0
        self.timetable = Timetable()
        self.on_generation: list[Callable[[], None]] = []
        self.on_step: list[Callable[[Any], None]] = []
        self._pipeline = pipeline
        self._schedulers: dict[str, Any] = {}
        self._undo: list[Callable[[], None]] = []
        self._times: dict[str, Any] = {}
        self._pending: list[Any] = []
        self._has_views = False
        self._bind()

    def check_schedulers(self) -> None:
        """Follow the pipeline to another scheduler, if the user has given it one."""
        changed = [name for name, old in self._schedulers.items() if getattr(self._pipeline, name) is not old]
        if changed:
            self.close()
            self._bind()
            self._begin(self._schedulers[changed[0]])

    @property
    def is_over(self) -> bool:
        """Whether all steps of the generation are over."""
        return 0 < len(self.timetable.timesteps) <= self.steps + len(self._pending)

    def call(self, times: dict[str, Any]) -> None:
        """A denoiser is about to be called with these time arguments."""
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
        self.generation += 1
        self.steps = 0
        self._times = {}
        self._pending = []
        self._has_views = False
        for notify in self.on_generation:
            notify()

    def close(self) -> None:
        """Leave the schedulers as they were."""
        for undo in self._undo:
            undo()
        self._undo = []

    def _bind(self) -> None:
        self._schedulers = find_schedulers(self._pipeline)
        for scheduler in self._schedulers.values():
            self._undo.append(listen(scheduler, "set_timesteps", functools.partial(self._begin, scheduler)))
            self._undo.append(listen(scheduler, "step", self._reader_of(scheduler)))

    def _reader_of(self, scheduler: Any) -> Callable[..., None]:
        """What is called after each of a scheduler's steps; not every scheduler has the timestep in the same place."""
        signature = inspect.signature(scheduler.step)

        def end_step(*args: Any, **kwargs: Any) -> None:
            self._end_step(signature.bind(*args, **kwargs).arguments.get("timestep"))

        return end_step

    def _begin(self, scheduler: Any, *args: Any, **kwargs: Any) -> None:
        timesteps, sigmas = _numbers(scheduler.timesteps), _numbers(getattr(scheduler, "sigmas", ()))
        self.timetable = Timetable(timesteps, sigmas[: len(timesteps)] if len(sigmas) >= len(timesteps) else ())
        self.begin_again()

    def _end_step(self, timestep: Any) -> None:
        # A pipeline may call the scheduler several times for one step: for each frame, for sound beside pictures.
        if self._pending and not is_equal(timestep, self._pending[-1]):
            self.tick()
        self._pending = [timestep]

    def _is_of_same_step(self, times: dict[str, Any]) -> bool:
        """Whether a call has the times of the one before, and no second-order scheduler has repeated them."""
        if times.keys() != self._times.keys() or not all(is_equal(times[name], self._times[name]) for name in times):
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
    return tuple(torch.as_tensor(values).double().flatten().tolist())
