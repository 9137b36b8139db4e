"""One call of a pipeline as data, and what a pipeline can be called with: known before the call, and far from it."""

import difflib
import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asyncdiff.errors import ConfigurationError

_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def near(unknown: str, known: Collection[str]) -> str | None:
    """A question whether the name that is most like one that is not known is meant, if there is one that is like it."""
    found = difflib.get_close_matches(unknown, known, 1)
    return f"is {found[0]!r} meant?" if found else None


@dataclass(frozen=True)
class Request:
    """One call of a pipeline.

    Attributes:
        arguments: by name, in the order of the pipeline's own.
    """

    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Signature:
    """What a pipeline can be called with.

    Attributes:
        pipeline: the name of its class.
        names: of its arguments, in their order.
        by_place: how many of them may be given without their names.
        required: those that have no default.
        takes_any: whether it takes others as well.
    """

    pipeline: str
    names: tuple[str, ...]
    by_place: int
    required: tuple[str, ...]
    takes_any: bool

    @classmethod
    def of(cls, pipe: Any) -> "Signature":
        """That of a pipeline's own `__call__`."""
        taken = inspect.signature(pipe.__call__).parameters.values()
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        named = [each for each in taken if each.kind not in variable]
        return cls(
            pipeline=type(pipe).__name__,
            names=tuple(each.name for each in named),
            by_place=sum(each.kind in _BY_PLACE for each in named),
            required=tuple(each.name for each in named if each.default is each.empty),
            takes_any=any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken),
        )

    def unknown(self, names: Collection[str]) -> str | None:
        """The first of these names that it takes no argument by."""
        return None if self.takes_any else next((name for name in names if name not in self.names), None)

    def missing(self, names: Collection[str]) -> str | None:
        """The first argument that it needs and that is not among these."""
        return next((name for name in self.required if name not in names), None)

    def request(self, by_place: Sequence[Any], named: Mapping[str, Any]) -> Request:
        """A call with these arguments.

        Raises:
            ConfigurationError: the pipeline takes no such call.
        """
        if len(by_place) > self.by_place:
            raise ConfigurationError(
                f"{self.pipeline} takes {self.by_place} arguments without their names, not {len(by_place)}"
            )
        given = dict(zip(self.names, by_place, strict=False))
        for name, value in named.items():
            if name in given:
                raise ConfigurationError(f"{self.pipeline} is given {name!r} twice, by its place and by its name")
            given[name] = value
        unknown, missing = self.unknown(given), self.missing(given)
        if unknown is not None:
            advice = near(unknown, self.names) or f"it takes {', '.join(self.names)}"
            raise ConfigurationError(f"{self.pipeline} takes no {unknown!r}; {advice}")
        if missing is not None:
            raise ConfigurationError(f"{self.pipeline} needs {missing!r}")
        return Request({name: given[name] for name in (*self.names, *given) if name in given})
