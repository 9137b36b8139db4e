"""A call of a module as one thing: what is called, and what it is given."""

from collections.abc import Callable
from types import NoneType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

Forward = Callable[..., Any]

# Most arguments by far: no containers, which torch is slow to look into.
_PLAIN = (NoneType, bool, int, float, str)


class Call(NamedTuple):
    """A call that is to be made, or to be answered otherwise.

    Attributes:
        forward: what is called.
        args, kwargs: what it is given.
    """

    forward: Forward
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self) -> Any:
        """Make the call; returns its result."""
        return self.forward(*self.args, **self.kwargs)

    @property
    def given(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, positional and named."""
        return self.args, self.kwargs

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments, however deep, in a fixed order."""
        found: list[Tensor] = []
        for argument in (*self.args, *self.kwargs.values()):
            if isinstance(argument, Tensor):
                found.append(argument)
            elif not isinstance(argument, _PLAIN):
                found += tensors_of(argument)
        return found

    def giving(self, given: tuple[tuple[Any, ...], dict[str, Any]]) -> "Call":
        """The same call with other arguments."""
        args, kwargs = given
        return self._replace(args=args, kwargs=kwargs)

    def with_own_containers(self) -> "Call":
        """The same arguments in lists and dicts of their own: some denoisers empty the ones that they are given."""
        return self.with_leaves(lambda leaf: leaf)

    def with_leaves(self, change: Callable[[Any], Any]) -> "Call":
        """The same call with every leaf of its arguments changed, tensors in the order of `tensors`."""

        def changed(argument: Any) -> Any:
            if isinstance(argument, Tensor):
                return change(argument)
            return argument if isinstance(argument, _PLAIN) else tree_map(change, argument)

        args = tuple(changed(each) for each in self.args)
        return self._replace(args=args, kwargs={name: changed(each) for name, each in self.kwargs.items()})


def tensors_of(arguments: Any) -> list[Tensor]:
    """All tensors in arguments or results of any form, in a fixed order."""
    return [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]


def is_equal(one: Any, other: Any) -> bool:
    """Whether two arguments have the same values; reading them off a device costs time."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other))
    return bool(one == other)
