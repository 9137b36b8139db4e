"""The structure of a denoiser, looked at again and again: closely only where something may have changed."""

from collections.abc import Hashable
from typing import Any

from torch import nn

from asyncdiff.denoiser.structure import Structure, is_fixed, setting, structure_of


class Look:
    """Follows the structure of one denoiser, which most generations leave as it is."""

    def __init__(self, denoiser: nn.Module) -> None:
        self._denoiser = denoiser
        self._structure: Structure = None
        self._attributes: list[dict[str, Any]] = []  # of each of its modules
        self._seen: list[Any] = []
        self._open: list[tuple[dict[str, Any], str, Hashable]] = []

    def structure(self) -> Structure:
        """What `structure_of` says: the very object of the last time, where nothing has changed since."""
        if not self._is_as_seen() or any(setting(key, held[key]) != known for held, key, known in self._open):
            self._look_closely()
        return self._structure

    def _look_closely(self) -> None:
        structure = structure_of(self._denoiser)
        if structure != self._structure:
            self._structure = structure
        self._attributes = [vars(module) for module in self._denoiser.modules()]
        self._seen = self._see()
        # What may become another without another object in its place: lists, attention processors.
        self._open = [
            (held, key, setting(key, value))
            for held in self._attributes
            for key, value in held.items()
            if key[0] != "_" and not is_fixed(value)
        ]

    def _see(self) -> list[Any]:
        """All attributes and all children, in one list: lists compare fast, and identical values first."""
        seen: list[Any] = []
        for held in self._attributes:
            seen += held
            seen += held.values()
            children = held.get("_modules")
            if children:
                seen += children.keys()
                seen += children.values()
        return seen

    def _is_as_seen(self) -> bool:
        try:
            return bool(self._seen) and self._see() == self._seen
        except (RuntimeError, TypeError, ValueError):  # tensors, for one, do not compare: then there is another one
            return False
