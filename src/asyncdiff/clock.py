"""Where a pipeline stands: which generation it is in, and how many steps of it are over."""

from collections.abc import Callable
from typing import Any

import torch

from asyncdiff.hooks import listen


class Clock:
    """Listens to the pipeline's scheduler, which every pipeline sets up once and then calls once a step.

    Attributes:
        generation: how many generations have begun.
        steps: how many steps of this generation are over.
        timesteps: the scheduler's timesteps of this generation.
    """

    def __init__(self, pipeline: Any) -> None:
        self.generation = 0
        self.steps = 0
        self.timesteps: tuple[float, ...] = ()
        self.on_generation: list[Callable[[], None]] = []
        self.on_step: list[Callable[[Any], None]] = []
        self._pipeline = pipeline
        self._scheduler: Any = None
        self._undo: list[Callable[[], None]] = []
        self._bind()

    def check_scheduler(self) -> None:
        """Follow the pipeline to another scheduler, if the user has given it one."""
        if self._pipeline.scheduler is not self._scheduler:
            self.close()
            self._bind()
            self._begin()

    def close(self) -> None:
        """Leave the scheduler as it was."""
        for undo in self._undo:
            undo()
        self._undo = []

    def _bind(self) -> None:
        self._scheduler = self._pipeline.scheduler
        self._undo = [
            listen(self._scheduler, "set_timesteps", self._begin),
            listen(self._scheduler, "step", self._end_step),
        ]

    def _begin(self, *args: Any, **kwargs: Any) -> None:
        self.generation += 1
        self.steps = 0
        self.timesteps = tuple(torch.as_tensor(self._scheduler.timesteps).double().tolist())
        for notify in self.on_generation:
            notify()

    def _end_step(self, model_output: Any, timestep: Any, *args: Any, **kwargs: Any) -> None:
        self.steps += 1
        for notify in self.on_step:
            notify(timestep)
