"""How a denoiser is called: which of its arguments are times, which is denoised, what decides how it runs."""

import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten

from asyncdiff.call import Call, tensors_of
from asyncdiff.errors import ConfigurationError

Signature = tuple[Any, ...]

_MAIN_NAMES = ("timestep", "timesteps", "t")
_WORDS = {"time", "timestep", "timesteps"}
_WORDS_BESIDE = {"sigma", "sigmas"}


def has_timestep(module: nn.Module | type[nn.Module]) -> bool:
    """Whether a module's forward takes a timestep, as denoisers' do."""
    return bool(_time_names(inspect.signature(module.forward)))


def _time_names(signature: inspect.Signature) -> list[str]:
    """The arguments that say where in the noise a call is, the main one first.

    Some denoisers are given a second time: the one that the step leads to, or that of another modality; some the
    noise level beside the timestep.
    """
    names = list(signature.parameters)
    main = [name for name in _MAIN_NAMES if name in names]
    times = main + [name for name in names if name not in main and _WORDS & set(name.split("_"))]
    return times + [name for name in names if times and _WORDS_BESIDE & set(name.split("_"))]


@dataclass(frozen=True)
class CallParts:
    """A call's arguments, taken apart.

    Attributes:
        times: the time arguments by name, the timestep first.
        signature: what decides how the denoiser runs: not the values of tensors.
        tensors: all other tensors, in a fixed order.
    """

    times: dict[str, Any]
    signature: Signature
    tensors: list[Tensor]


@dataclass(frozen=True)
class _Shape:
    """The structure of arguments as part of a signature, with which divisions are looked up."""

    structure: TreeSpec

    def __hash__(self) -> int:
        # Older versions of torch cannot hash a structure that has dictionaries in it.
        return hash((self.structure.num_nodes, self.structure.num_leaves))


class CallForm:
    """How a denoiser is called."""

    def __init__(self, denoiser: nn.Module) -> None:
        self._signature = inspect.signature(denoiser.forward)
        self._times = _time_names(self._signature)
        if not self._times:
            raise ConfigurationError(f"{type(denoiser).__name__} takes no timestep: it is no denoiser")

    def arguments(self, call: Call) -> dict[str, Any]:
        """A call's arguments by name."""
        return dict(self._signature.bind(*call.args, **call.kwargs).arguments)

    def read(self, call: Call) -> CallParts:
        """The parts of a call's arguments."""
        arguments = self.arguments(call)
        times = {name: arguments.pop(name) for name in self._times if _is_number(arguments.get(name))}
        leaves, structure = tree_flatten(arguments)
        signature = (_Shape(structure), *(_trait(leaf) for leaf in leaves))
        return CallParts(times, signature, tensors_of(leaves))

    def main(self, call: Call) -> Any:
        """The argument that is denoised: the first tensor, or list of tensors, that is no time; None without one."""
        arguments = self.arguments(call)
        candidates = (value for name, value in arguments.items() if name not in self._times)
        return next((value for value in candidates if isinstance(value, Tensor) or _is_list_of_tensors(value)), None)

    def batch(self, call: Call) -> int:
        """How large the batch of a call is."""
        return batch_size(self.main(call))

    def with_times(self, call: Call, times: dict[str, Any]) -> Call:
        """The call with other times, each in the place where it was: decorators look into keyword arguments."""
        positions = list(self._signature.parameters)
        moved, kwargs = list(call.args), call.kwargs
        for name, time in times.items():
            if name in kwargs:
                kwargs = {**kwargs, name: time}
            else:
                moved[positions.index(name)] = time
        return call.giving((tuple(moved), kwargs))


def batch_size(main: Any) -> int:
    """How large the batch of a call is, by its main argument: a tensor, or a list with an item for each member."""
    if isinstance(main, Tensor):
        return main.shape[0] if main.ndim else 1
    return len(main) if isinstance(main, list) else 1


def _is_list_of_tensors(argument: Any) -> bool:
    return isinstance(argument, list) and bool(argument) and all(isinstance(item, Tensor) for item in argument)


def _is_number(argument: Any) -> bool:
    is_plain = isinstance(argument, (int, float)) and not isinstance(argument, bool)
    return is_plain or isinstance(argument, Tensor)


def _trait(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.dtype, leaf.device
    if leaf is None or isinstance(leaf, (bool, int, str)):
        return leaf
    return type(leaf)
