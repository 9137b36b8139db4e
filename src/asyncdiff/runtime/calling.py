"""Who makes a call of a denoiser: which pipeline, through which of its callbacks, with gradients or not."""

import functools
import inspect
import sys
import threading
from collections.abc import Collection, Iterator
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch
from torch import nn

from asyncdiff.call import Call
from asyncdiff.runtime.clock import find_schedulers


def wants_gradients(denoiser: nn.Module, call: Call) -> bool:
    """Whether the result is to be differentiated: rounds give the gradients of another function."""
    if not torch.is_grad_enabled():
        return False
    return any(tensor.requires_grad for tensor in (*call.tensors, *denoiser.parameters()))


class Calling(NamedTuple):
    """A pipeline a method of which is running.

    Attributes:
        pipeline: the pipeline.
        thread: in which it is.
        frame, code: the method's; the frame's identity only, which keeps nothing alive.
        callbacks: those that the method was given.
    """

    pipeline: Any
    thread: int
    frame: int
    code: CodeType
    callbacks: frozenset[CodeType]

    def may_go_on(self) -> bool:
        """Whether the method has not returned, or is a generator, which may be asked for its next item at any time."""
        return bool(self.code.co_flags & inspect.CO_GENERATOR) or self.is_running()

    def is_running(self) -> bool:
        """Whether the method has not returned; what it has in it is not looked at, which another thread must not do."""
        frames = _outwards(sys._current_frames().get(self.thread))
        return any(id(frame) == self.frame and frame.f_code is self.code for frame in frames)


def pipeline_calling(denoisers: Collection[nn.Module]) -> Calling | None:
    """The innermost pipeline that has one of these denoisers and is running in this thread; None without."""
    for frame in _outwards(sys._getframe(1)):
        code = frame.f_code
        if code.co_argcount and code.co_varnames[0] == "self":
            candidate = frame.f_locals.get("self")
            if _holds(candidate, denoisers) and _is_pipeline(candidate):
                given = callbacks_among(frame.f_locals)
                return Calling(candidate, threading.get_ident(), id(frame), code, given)
    return None


def callbacks_among(arguments: dict[str, Any]) -> frozenset[CodeType]:
    """The code of the callbacks that a pipeline was given."""
    given = [value for name, value in arguments.items() if "callback" in name and callable(value)]
    return frozenset(code for each in given if (code := _code_of(each)) is not None)


def is_made_by(callbacks: frozenset[CodeType]) -> bool:
    """Whether one of these is running in the calling thread."""
    return bool(callbacks) and any(frame.f_code in callbacks for frame in _outwards(sys._getframe(1)))


def _code_of(callback: Any) -> CodeType | None:
    while isinstance(callback, functools.partial):
        callback = callback.func
    code = getattr(callback, "__code__", None) or getattr(type(callback).__call__, "__code__", None)
    return code if isinstance(code, CodeType) else None


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_pipeline(candidate: Any) -> bool:
    is_assembled = isinstance(getattr(candidate, "components", None), dict) and callable(candidate)
    return is_assembled and bool(find_schedulers(candidate))


def _holds(candidate: Any, denoisers: Collection[nn.Module]) -> bool:
    """Whether an object is none of torch's modules and has a denoiser as an attribute."""
    attributes = getattr(candidate, "__dict__", None)
    if not isinstance(attributes, dict) or isinstance(candidate, nn.Module):
        return False
    return any(value is denoiser for value in list(attributes.values()) for denoiser in denoisers)
