"""Reversible hooks on modules, on a scheduler and on a pipeline. Nothing is changed on a class that others use."""

import contextlib
import copy
import copyreg
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import nn

from asyncdiff.call import Call, Forward
from asyncdiff.errors import ConfigurationError

# The attribute through which `torch.nn.Module.compile` puts a compiled call in place of a module's own. What stands
# there surrounds everything else that is done to a call: forward hooks, other libraries' wrappers of `forward`, the
# compiled graph. Those may come and go without touching it, and a copied or pickled module leaves it behind.
_CALL = "_compiled_call_impl"


class Intercept(Protocol):
    """Stands in for a call of a module."""

    def __call__(self, call: Call) -> Any: ...


class CallInPlace:
    """Stands in a module for its call.

    Attributes:
        compiled: what stood there before.
        forward: the call that is made without this.
    """

    def __init__(self, module: nn.Module) -> None:
        self.compiled: Forward | None = vars(module).get(_CALL)
        self.forward: Forward = self.compiled or module._call_impl

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What comes of the call."""
        raise NotImplementedError


class _InterceptedCall(CallInPlace):
    def __init__(self, module: nn.Module, intercept: Intercept) -> None:
        super().__init__(module)
        self._intercept = intercept

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._intercept(Call(self.forward, args, kwargs))


def intercept_call(module: nn.Module, intercept: Intercept) -> Callable[[], None]:
    """Call `intercept` in place of the module; returns how to undo it.

    Raises:
        ConfigurationError: asyncdiff is attached to the module already.
    """
    return place_call(module, _InterceptedCall(module, intercept))


def place_call(module: nn.Module, call: CallInPlace) -> Callable[[], None]:
    """Put what was made for a module in place of its call; returns how to undo it.

    Raises:
        ConfigurationError: asyncdiff is attached to the module already.
    """
    if is_intercepted(module):
        raise ConfigurationError("asyncdiff is attached to this pipeline already; call disable() on the first one")
    setattr(module, _CALL, call)

    def undo() -> None:
        if vars(module).get(_CALL) is not call:
            return  # compiled since: that call has taken the place of this one
        if call.compiled is None:
            delattr(module, _CALL)
        else:
            setattr(module, _CALL, call.compiled)

    return undo


def is_intercepted(module: nn.Module) -> bool:
    """Whether calls of the module are intercepted."""
    return isinstance(vars(module).get(_CALL), CallInPlace)


def is_compiled(module: nn.Module) -> bool:
    """Whether `module.compile()` was called: the module and all in it run as a compiled graph."""
    call = vars(module).get(_CALL)
    return (call.compiled if isinstance(call, CallInPlace) else call) is not None


class _StandIn:
    """Takes the place of a method of one object.

    A copy of the object gets the plain method: it must work on the copy, not on the original.
    """

    def __init__(self, owner: Any, name: str, listener: Callable[..., Any]) -> None:
        self._owner, self._name = owner, name
        self.listener: Callable[..., Any] | None = listener
        self._method = getattr(owner, name)
        # Pipelines read the signature to see which arguments a scheduler takes. What the method itself holds is not
        # taken over: it may be another stand-in.
        functools.update_wrapper(self, self._method, updated=())  # type: ignore[arg-type]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self._owner))
        return copy.copy(self._method) if copied is None else getattr(type(copied), self._name).__get__(copied)

    def __reduce__(self) -> Any:
        return getattr, (self._owner, self._name)


class _ListenedMethod(_StandIn):
    """Tells a listener of every call, once it is over."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self._method(*args, **kwargs)
        if self.listener is not None:
            self.listener(*args, **kwargs)
        return result


class _GuardedMethod(_StandIn):
    """Asks a listener before every call; if that raises, there is no call."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.listener is not None:
            self.listener(*args, **kwargs)
        return self._method(*args, **kwargs)


class _InterceptedMethod(_StandIn):
    """Has a listener answer every call."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = Call(self._method, args, kwargs)
        return call() if self.listener is None else self.listener(call)


class _ListenedContext(_StandIn):
    """Tells a listener of the first argument of a context that is entered, and of None when it is left."""

    @contextlib.contextmanager
    def __call__(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with self._method(*args, **kwargs) as entered:
            self._tell(args[0] if args else next(iter(kwargs.values()), None))
            try:
                yield entered
            finally:
                self._tell(None)

    def _tell(self, context: Any) -> None:
        if self.listener is not None:
            self.listener(context)


def listen(owner: Any, name: str, listener: Callable[..., None]) -> Callable[[], None]:
    """Call `listener` after every call of a method of one object; returns how to undo it."""
    return _place(_ListenedMethod(owner, name, listener), owner, name)


def guard(owner: Any, name: str, check: Callable[..., None]) -> Callable[[], None]:
    """Call `check` before every call of a method of one object, which it may refuse; returns how to undo it."""
    return _place(_GuardedMethod(owner, name, check), owner, name)


def intercept_method(owner: Any, name: str, intercept: Callable[[Call], Any]) -> Callable[[], None]:
    """Call `intercept` in place of a method of one object; returns how to undo it."""
    return _place(_InterceptedMethod(owner, name, intercept), owner, name)


def listen_to_context(owner: Any, name: str, listener: Callable[[Any], None]) -> Callable[[], None]:
    """Tell `listener` in which context (its first argument) an object is; returns how to undo it."""
    return _place(_ListenedContext(owner, name, listener), owner, name)


class Around(Protocol):
    """The context in which every call of an object runs, given the call's named arguments; it is told the result."""

    def __call__(self, kwargs: dict[str, Any]) -> AbstractContextManager[Callable[[Any], None]]: ...


def surround_calls(owner: Any, around: Around) -> Callable[[], None]:
    """Run every call of one object inside of a context; returns how to undo it.

    A call is looked up on the class: the object gets one of its own, which is called like the one it had. A copied or
    pickled object is of the class that it had.
    """
    kind: Any = type(owner)
    is_active = True

    @functools.wraps(kind.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_active:
            return kind.__call__(self, *args, **kwargs)
        with around(kwargs) as tell:
            result = kind.__call__(self, *args, **kwargs)
            tell(result)
            return result

    def reduce(self: Any, protocol: Any) -> Any:
        made, arguments, *rest = kind.__reduce_ex__(self, protocol)
        # Pickle insists that what `__newobj__` makes is of the object's own class.
        made = kind.__new__ if made is copyreg.__newobj__ else made  # type: ignore[attr-defined]
        return made, tuple(kind if argument is own else argument for argument in arguments), *rest

    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    own: Any = type(kind)(kind.__name__, (kind,), {**names, "__call__": call, "__reduce_ex__": reduce})
    owner.__class__ = own

    def undo() -> None:
        nonlocal is_active
        is_active = False
        if type(owner) is own:  # else somebody has given it another one, made from this
            owner.__class__ = kind

    return undo


def _place(stand_in: _StandIn, owner: Any, name: str) -> Callable[[], None]:
    before = vars(owner).get(name)
    vars(owner)[name] = stand_in

    def undo() -> None:
        stand_in.listener = None
        if vars(owner).get(name) is not stand_in:
            return  # somebody else has put something around it, and still calls it
        if before is None:
            del vars(owner)[name]
        else:
            vars(owner)[name] = before

    return undo
