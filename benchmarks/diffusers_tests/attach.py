"""Watch every call of a pipeline, with AsyncDiff attached to it or not. Only for a process that runs others' tests.

The classes of pipelines are changed here: the tests make their pipelines themselves, so that nothing else comes by all
of them. asyncdiff itself changes no class.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from diffusers import DiffusionPipeline

from asyncdiff import AsyncDiff
from asyncdiff.errors import AsyncDiffError
from benchmarks.diffusers_tests.digest import Digest
from benchmarks.diffusers_tests.records import PipeCall

# The tests take two steps, most of them: to see a round at all, the second has to be one.
MODES: dict[str, Mapping[str, Any] | None] = {
    "plain": None,
    "full": {"components": 2, "warmup": 10**6},
    "rounds": {"components": 2, "warmup": 1, "cooldown": 0},
}


class Watch:
    """Makes the tests' calls of pipelines, and remembers them.

    Attributes:
        calls: those since `begin`.
    """

    def __init__(self, settings: Mapping[str, Any] | None) -> None:
        self.calls: list[PipeCall] = []
        self._settings = settings
        self._inside = False
        self._wrapped: dict[type, Callable[..., Any]] = {}

    def begin(self) -> None:
        """Of a test: forget the calls of the one before, and find pipelines that were imported since."""
        self.calls.clear()
        for kind in _derived(DiffusionPipeline):
            if "__call__" in vars(kind) and kind not in self._wrapped:
                self._wrap(kind)

    def end(self) -> None:
        """The classes of pipelines are as they were."""
        for kind, method in self._wrapped.items():
            kind.__call__ = method  # type: ignore[method-assign]
        self._wrapped.clear()

    def _wrap(self, kind: type) -> None:
        method = self._wrapped[kind] = vars(kind)["__call__"]

        @functools.wraps(method)
        def call(pipe: Any, *args: Any, **kwargs: Any) -> Any:
            plain = functools.partial(method, pipe, *args, **kwargs)
            return plain() if self._inside else self._call(pipe, plain)

        kind.__call__ = call  # type: ignore[method-assign]

    def _call(self, pipe: Any, plain: Callable[[], Any]) -> Any:
        name = type(pipe).__name__
        attached, refused = self._attach(pipe)
        self._inside = True
        try:
            result = plain()
        except BaseException as error:
            self.calls.append(PipeCall(name, refused=refused, error=type(error).__name__))
            raise
        else:
            digest = Digest(result)
            rounds = 0 if attached is None else _rounds(attached)
            self.calls.append(PipeCall(name, digest.form, digest.values, digest.finite, rounds, refused))
            return result
        finally:
            self._inside = False
            if attached is not None:
                attached.disable()

    def _attach(self, pipe: Any) -> tuple[AsyncDiff | None, str]:
        if self._settings is None:
            return None, ""
        try:
            return AsyncDiff(pipe, executor="local", **self._settings), ""
        except AsyncDiffError as error:
            return None, f"{type(error).__name__}: {error}"


def _rounds(attached: AsyncDiff) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing was accelerated is no news here
        counts = [denoiser.counts for denoiser in attached.report().denoisers]
    return sum(each.rounds + each.bridged + each.stored for each in counts)


def _derived(kind: type[Any]) -> Iterator[type[Any]]:
    for derived in kind.__subclasses__():
        yield derived
        yield from _derived(derived)
