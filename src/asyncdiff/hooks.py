"""Reversible hooks on modules and on a scheduler. Nothing is changed on a class."""

import copy
import functools
from collections.abc import Callable
from typing import Any, Protocol

from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

from asyncdiff.errors import ConfigurationError

HOOK_NAME = "asyncdiff"

Forward = Callable[..., Any]


class Intercept(Protocol):
    """Stands in for a module's forward; is given the original one and the arguments."""

    def __call__(self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...


class _InterceptHook(ModelHook):  # type: ignore[misc]
    def __init__(self, intercept: Intercept) -> None:
        super().__init__()
        self._intercept = intercept

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self._intercept(self.fn_ref.original_forward, args, kwargs)


def intercept_forward(module: nn.Module, intercept: Intercept) -> Callable[[], None]:
    """Call `intercept` in place of the module's forward; returns how to undo it.

    Raises:
        ConfigurationError: asyncdiff is attached to the module already.
    """
    had_registry = hasattr(module, "_diffusers_hook")
    had_own_forward = "forward" in vars(module)
    registry = HookRegistry.check_if_exists_or_initialize(module)
    if registry.get_hook(HOOK_NAME) is not None:
        raise ConfigurationError("asyncdiff is attached to this pipeline already; call disable() on the first one")
    registry.register_hook(_InterceptHook(intercept), HOOK_NAME)

    def undo() -> None:
        registry.remove_hook(HOOK_NAME, recurse=False)
        if not registry.hooks:
            if not had_own_forward:
                del module.forward
            if not had_registry:
                del module._diffusers_hook

    return undo


class _ListenedMethod:
    """A scheduler's method that tells a listener of its calls.

    A copy of the scheduler gets the plain method: it must drive the copy, not the original.
    """

    def __init__(self, scheduler: Any, name: str, listener: Callable[..., None]) -> None:
        self._scheduler, self._name, self._listener = scheduler, name, listener
        self._method = getattr(scheduler, name)
        # Pipelines read the signature to see which arguments a scheduler takes.
        functools.update_wrapper(self, self._method)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self._method(*args, **kwargs)
        self._listener(*args, **kwargs)
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self._scheduler))
        return copy.copy(self._method) if copied is None else getattr(type(copied), self._name).__get__(copied)


def listen(scheduler: Any, name: str, listener: Callable[..., None]) -> Callable[[], None]:
    """Call `listener` after every call of a method of one scheduler object; returns how to undo it."""
    setattr(scheduler, name, _ListenedMethod(scheduler, name, listener))

    def undo() -> None:
        vars(scheduler).pop(name, None)

    return undo
