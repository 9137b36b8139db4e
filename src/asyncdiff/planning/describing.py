"""Make a hollow pipeline, and the first step of its call, into plain data to plan with."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from asyncdiff.denoiser.find import find_denoisers
from asyncdiff.denoiser.form import has_timestep
from asyncdiff.planning.first_step import FirstStep
from asyncdiff.planning.subject import Subject


def describe(pipe: Any, step: FirstStep) -> Subject:
    """What is planned for.

    Args:
        pipe: the hollow pipeline.
        step: the first step of its call.
    """
    denoisers = find_denoisers(pipe)
    denoiser = denoisers[step.denoiser]
    like = {name for name, other in denoisers.items() if _weights(other) == _weights(denoiser)}
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module) and name not in like}
    # What takes a timestep works with the denoiser, and is where that is.
    apart = {name: size for name, part in parts.items() if not has_timestep(part) and (size := _size(part))}
    return Subject(
        kind=type(denoiser).__name__,
        trace=step.trace,
        calls=step.calls,
        pictures=step.pictures,
        weights=_weights(denoiser),
        twins=len(like),
        buffers=len(like) * _buffers(denoiser),
        others=apart,
        common=sum(_buffers(part) + (0 if name in apart else _size(part)) for name, part in parts.items()),
    )


def _weights(module: nn.Module) -> Mapping[str, int]:
    return {name: weight.numel() * weight.element_size() for name, weight in module.named_parameters()}


def _size(module: nn.Module) -> int:
    return sum(_weights(module).values())


def _buffers(module: nn.Module) -> int:
    return sum(buffer.numel() * buffer.element_size() for buffer in module.buffers())
