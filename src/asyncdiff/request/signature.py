"""What a pipeline can be called with, as data: known before the call, and far from it."""

import difflib
import inspect
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from asyncdiff.errors import ConfigurationError

_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
# The types of values that can be written as text.
_WRITTEN = (bool, int, float, str, list, tuple, dict)
OTHER = "other"


def near(unknown: str, known: Collection[str]) -> str | None:
    """A question whether the name that is most like one that is not known is meant, if there is one that is like it."""
    found = difflib.get_close_matches(unknown, known, 1)
    return f"is {found[0]!r} meant?" if found else None


@dataclass(frozen=True)
class Signature:
    """What a pipeline can be called with.

    Attributes:
        pipeline: the name of its class.
        names: of its arguments, in their order.
        by_place: how many of them may be given without their names.
        required: those that have no default.
        takes_any: whether it takes others as well.
        kinds: of an argument, by name, where its annotation says so: the names of Python's types, or "other".
        parts: the names of the pipeline's parts.
    """

    pipeline: str
    names: tuple[str, ...]
    by_place: int
    required: tuple[str, ...]
    takes_any: bool
    kinds: Mapping[str, tuple[str, ...]]
    parts: tuple[str, ...]

    @classmethod
    def of(cls, pipe: Any) -> "Signature":
        """That of a pipeline's own `__call__`."""
        parts = tuple(name for name, part in getattr(pipe, "components", {}).items() if part is not None)
        return cls._of(type(pipe), inspect.signature(pipe.__call__), parts)

    @classmethod
    def of_class(cls, kind: type, parts: Collection[str]) -> "Signature":
        """That of a pipeline of this class, with these parts, that is still to be loaded."""
        called: Any = kind
        bound = inspect.signature(types.MethodType(called.__call__, kind))
        return cls._of(kind, bound, tuple(parts))

    @classmethod
    def _of(cls, kind: type, called: inspect.Signature, parts: tuple[str, ...]) -> "Signature":
        taken = called.parameters.values()
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        named = [each for each in taken if each.kind not in variable]
        hints = _hints(kind)
        return cls(
            pipeline=kind.__name__,
            names=tuple(each.name for each in named),
            by_place=sum(each.kind in _BY_PLACE for each in named),
            required=tuple(each.name for each in named if each.default is each.empty),
            takes_any=any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken),
            kinds={each.name: _kinds(hints[each.name]) for each in named if each.name in hints},
            parts=parts,
        )

    def unknown(self, names: Collection[str]) -> str | None:
        """The first of these names that it takes no argument by."""
        return None if self.takes_any else next((name for name in names if name not in self.names), None)

    def missing(self, names: Collection[str]) -> str | None:
        """The first argument that it needs and that is not among these."""
        return next((name for name in self.required if name not in names), None)

    def call(self, by_place: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call, by name, in the order of the pipeline's own.

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
        self.check(given)
        return {name: given[name] for name in (*self.names, *given) if name in given}

    def check(self, names: Collection[str]) -> None:
        """
        Raises:
            ConfigurationError: the pipeline takes no call with arguments of these names.
        """
        unknown, missing = self.unknown(names), self.missing(names)
        if unknown is not None:
            advice = near(unknown, self.names) or f"it takes {', '.join(self.names)}"
            raise ConfigurationError(f"{self.pipeline} takes no {unknown!r}; {advice}")
        if missing is not None:
            raise ConfigurationError(f"{self.pipeline} needs {missing!r}")


def _hints(kind: type) -> Mapping[str, Any]:
    called: Callable[..., Any] = kind.__call__  # type: ignore[operator]
    try:
        return get_type_hints(called)
    except (NameError, TypeError, AttributeError):  # an annotation that cannot be read says nothing
        return {}


def _kinds(annotation: Any) -> tuple[str, ...]:
    """The names of the types that an annotation allows; None among them says nothing."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        allowed = [_kinds(each) for each in get_args(annotation) if each is not types.NoneType]
        return tuple(dict.fromkeys(name for names in allowed for name in names)) if all(allowed) else ()
    if annotation is Any:
        return ()
    if origin is Literal:
        return tuple(dict.fromkeys(type(each).__name__ for each in get_args(annotation)))
    kind = origin or annotation
    return (kind.__name__ if kind in _WRITTEN else OTHER,)
