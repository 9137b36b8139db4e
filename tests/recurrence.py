"""Asynchronous denoising for two components, written down as the paper has it: nothing of asyncdiff in it.

A round makes two kinds of ordinary passes through the denoiser. In the first the front half reads the current latent,
and what it makes is kept for the next round. In the others, one for each prediction, the front half's outputs are
replaced by what it made one round ago.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn


@dataclass
class _Branch:
    """The calls with one conditioning; `begin` is the step of the pipeline in which the first of them is made."""

    begin: int
    calls: int = 0
    step: int = 0
    kept: dict[int, Any] = field(default_factory=dict)
    predictions: dict[int, Any] = field(default_factory=dict)


class Recurrence:
    """A pipeline whose denoiser is run by the recurrence.

    `watch` first: the timesteps that later steps will be given are those of an ordinary generation of the same call.
    Every branch counts its steps by itself, so one that begins late has its own warm-up.
    """

    def __init__(self, pipe: DiffusionPipeline, denoiser: nn.Module, front: Sequence[str], stride: int, warmup: int):
        self._pipe, self._denoiser = pipe, denoiser
        self._front = [denoiser.get_submodule(name) for name in front]
        self._stride, self._warmup = stride, warmup
        self._forward = denoiser.forward
        self._signature = inspect.signature(denoiser.forward)
        self._course: list[float] = []
        self._steps = 0
        self._branches: dict[Any, _Branch] = {}

    @property
    def calls(self) -> list[int]:
        """How many calls each branch had."""
        return [branch.calls for branch in self._branches.values()]

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Learn the timesteps of a call of the pipeline."""
        step = self._pipe.scheduler.step

        @functools.wraps(step)
        def count(*args: Any, **kwargs: Any) -> Any:
            self._steps += 1
            return step(*args, **kwargs)

        self._pipe.scheduler.step = count
        try:
            with self._in_place(self._learn):
                yield
        finally:
            del self._pipe.scheduler.step

    @contextmanager
    def run(self) -> Iterator[None]:
        """Run a call of the pipeline, the same that was watched."""
        for branch in self._branches.values():
            branch.step = 0
        with self._in_place(self._predict):
            yield

    @contextmanager
    def _in_place(self, forward: Callable[..., Any]) -> Iterator[None]:
        self._denoiser.forward = forward
        try:
            yield
        finally:
            del self._denoiser.forward

    def _branch(self, arguments: dict[str, Any]) -> _Branch:
        conditioning = arguments["encoder_hidden_states"]
        key = tuple(conditioning.shape), float(conditioning.double().square().sum()), str(arguments.get("skip_layers"))
        return self._branches.setdefault(key, _Branch(self._steps))

    def _learn(self, *args: Any, **kwargs: Any) -> Any:
        arguments = self._signature.bind(*args, **kwargs).arguments
        self._branch(arguments).calls += 1
        if len(self._course) == self._steps:
            self._course.append(float(arguments["timestep"].flatten()[0]))
        return self._forward(*args, **kwargs)

    def _predict(self, *args: Any, **kwargs: Any) -> Any:
        arguments = self._signature.bind(*args, **kwargs).arguments
        branch = self._branch(arguments)
        step = branch.step
        branch.step += 1
        given, place = arguments["timestep"], list(self._signature.parameters).index("timestep")

        def at(step: int) -> Any:
            timestep = self._course[min(branch.begin + step, len(self._course) - 1)]
            label = torch.full_like(given, timestep)
            if "timestep" in kwargs:  # decorators of forward find some arguments by their keywords only
                return self._forward(*args, **kwargs | {"timestep": label})
            return self._forward(*args[:place], label, *args[place + 1 :], **kwargs)

        if step < self._warmup:
            with self._keep() as branch.kept:
                branch.predictions = {step: at(step)}
        elif (step - 1) % self._stride == 0:
            steps = range(step, step + self._stride)
            with self._keep() as made:
                at(steps[-1])
            with self._replace(branch.kept):
                branch.predictions = {step: at(step) for step in steps}
            branch.kept = made
        return branch.predictions[min(step, max(branch.predictions))]

    @contextmanager
    def _keep(self) -> Iterator[dict[int, Any]]:
        """What the modules of the front half put out while the context lasts."""
        kept: dict[int, Any] = {}
        with ExitStack() as hooks:
            for number, module in enumerate(self._front):
                hook = functools.partial(lambda number, *call: kept.__setitem__(number, call[-1]), number)
                hooks.callback(module.register_forward_hook(hook).remove)
            yield kept

    @contextmanager
    def _replace(self, kept: dict[int, Any]) -> Iterator[None]:
        with ExitStack() as hooks:
            for number, module in enumerate(self._front):
                hook = functools.partial(lambda number, *call: kept[number], number)
                hooks.callback(module.register_forward_hook(hook).remove)
            yield


def plain_and_expected(
    pipe: DiffusionPipeline,
    denoiser: str,
    front: Sequence[str],
    stride: int,
    warmup: int,
    call: Callable[[], Tensor],
) -> tuple[Tensor, Tensor, list[int]]:
    """A call of a pipeline that is not attached: as it is, by the recurrence, and how many calls each branch makes."""
    recurrence = Recurrence(pipe, getattr(pipe, denoiser), front, stride, warmup)
    with recurrence.watch():
        plain = call()
    with recurrence.run():
        expected = call()
    return plain, expected, recurrence.calls
