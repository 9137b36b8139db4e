"""A denoiser's arguments: where its timestep is, what decides how it runs, and how to compare them."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves

from asyncdiff.errors import ConfigurationError

Signature = tuple[Any, ...]

_TIMESTEP_NAMES = ("timestep", "timesteps", "t")


def has_timestep(module: nn.Module) -> bool:
    """Whether a module's forward takes a timestep, as denoisers' do."""
    return _timestep_name(inspect.signature(module.forward)) is not None


def _timestep_name(signature: inspect.Signature) -> str | None:
    """The usual name of the argument, or the first that has "time" or "timestep" among its words."""
    names = list(signature.parameters)
    usual = [name for name in _TIMESTEP_NAMES if name in names]
    return next(iter(usual + [name for name in names if {"time", "timestep"} & set(name.split("_"))]), None)


class CallForm:
    """How a denoiser is called."""

    def __init__(self, denoiser: nn.Module) -> None:
        self._signature = inspect.signature(denoiser.forward)
        found = _timestep_name(self._signature)
        if found is None:
            raise ConfigurationError(f"{type(denoiser).__name__} takes no timestep: it is no denoiser")
        self._timestep = found

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Signature, list[Tensor]]:
        """The timestep argument, the signature, and all other tensors in a fixed order.

        The signature is what decides how the denoiser runs: not the values of its tensors.
        """
        arguments = dict(self._signature.bind(*args, **kwargs).arguments)
        timestep = arguments.pop(self._timestep, None)
        leaves, structure = tree_flatten(arguments)
        signature = (structure, *(_trait(leaf) for leaf in leaves))
        return timestep, signature, [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def with_timestep(
        self, timestep: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with another timestep."""
        bound = self._signature.bind(*args, **kwargs)
        bound.arguments[self._timestep] = timestep
        return bound.args, bound.kwargs


def tensors_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """All tensors in the arguments, in a fixed order."""
    return [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]


def digest(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Mean and root mean square of every tensor, and for each number the scale of its rounding."""
    floats = [leaf.detach().double() for leaf in tensors_of(args, kwargs) if leaf.is_floating_point() and leaf.numel()]
    means = [leaf.mean() for leaf in floats]
    sizes = [leaf.square().mean().sqrt() for leaf in floats]
    if not floats:
        return torch.zeros(0), torch.zeros(0)
    return torch.stack([*means, *sizes]), torch.stack([*sizes, *sizes])


def _trait(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.dtype, leaf.device
    if leaf is None or isinstance(leaf, (bool, int, str)):
        return leaf
    return type(leaf)
