"""Calls of pipelines that are generators: which of them draws, and which was left in the middle of its picture."""

import inspect
import sys
import weakref
from types import FrameType, GeneratorType
from typing import TYPE_CHECKING, Any

from asyncdiff.errors import BusyError

if TYPE_CHECKING:
    _Generator = GeneratorType[Any, Any, Any]


def is_generating_stepwise(pipeline: Any) -> bool:
    """Whether a pipeline's call only returns a generator, which draws as it is asked for its next item."""
    return inspect.isgeneratorfunction(inspect.unwrap(type(pipeline).__call__))


class Generators:
    """Those that the pipelines on one denoiser have returned; nothing of them is kept alive."""

    def __init__(self) -> None:
        self._known: weakref.WeakSet[_Generator] = weakref.WeakSet()
        self._left: weakref.WeakSet[_Generator] = weakref.WeakSet()
        self._drawing: weakref.ref[_Generator] | None = None

    @property
    def is_drawing(self) -> bool:
        """Whether one is asked for its next item just now, and has drawn last."""
        drawing = self._drawing() if self._drawing is not None else None
        return drawing is not None and drawing.gi_running

    @property
    def is_at_rest(self) -> bool:
        """Whether the one that has drawn last is in the middle of its picture, and has been left for the moment."""
        drawing = self._drawing() if self._drawing is not None else None
        return drawing is not None and drawing.gi_frame is not None and not drawing.gi_running

    def note(self, result: Any) -> None:
        """What a pipeline's call has returned."""
        if isinstance(result, GeneratorType):
            self._known.add(result)

    def draws_another(self) -> bool:
        """A pipeline calls the denoiser: whether it is not the generator, if there was one, that has drawn last.

        Raises:
            BusyError: it is a generator that was left, and another generation has begun since.
        """
        if not self._known:
            return False
        before, now = self._drawing() if self._drawing is not None else None, self._running()
        if now is not None and now in self._left:
            raise BusyError(
                "this generator was left in the middle of its picture, and another generation has begun on the same "
                "denoiser since; one at a time can run on it: draw each to its end, or load the denoiser twice"
            )
        if now is before:
            return False
        if before is not None:
            self._left.add(before)
        self._drawing = None if now is None else weakref.ref(now)
        return True

    def _running(self) -> "_Generator | None":
        """The innermost that is running in this thread."""
        frames = {each.gi_frame: each for each in self._known if each.gi_running}
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frames:
            if frame in frames:
                return frames[frame]
            frame = frame.f_back
        return None
