"""Which guidance branch a denoiser is called for, where the pipeline gives it a name."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from asyncdiff.hooks import listen_to_context


class Branches:
    """Listens to the contexts in which pipelines call their denoisers (diffusers' `cache_context`), from the beginning.

    The first call of a generation is in one already when it is decided who computes it.
    """

    def __init__(self, denoisers: Mapping[str, nn.Module]) -> None:
        self._names: dict[str, Any] = dict.fromkeys(denoisers)
        self._undo: list[Callable[[], None]] = []
        for name, denoiser in denoisers.items():
            if hasattr(denoiser, "cache_context"):
                enter = functools.partial(self._names.__setitem__, name)
                self._undo.append(listen_to_context(denoiser, "cache_context", enter))

    def of(self, name: str) -> Any:
        """The name of the branch that a denoiser computes; None where it has none."""
        return self._names[name]

    def close(self) -> None:
        """Leave the denoisers as they were."""
        for undo in self._undo:
            undo()
        self._undo = []
