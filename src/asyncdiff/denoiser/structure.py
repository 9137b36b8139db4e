"""What decides which parts of a denoiser run and how data flows between them, apart from a call's arguments."""

from collections.abc import Hashable
from typing import Any

import torch
from torch import nn

from asyncdiff.errors import ConfigurationError
from asyncdiff.hooks import is_compiled

Structure = Hashable

_PLAIN = (bool, int, float, str, type(None))


def structure_of(denoiser: nn.Module) -> Structure:
    """The module tree and the plain settings of its modules.

    Adapters change the tree; FreeU, forward chunking and the like set attributes of modules in it.
    """
    return tuple(
        (name, type(module), is_compiled(module), _settings(module)) for name, module in denoiser.named_modules()
    )


def surroundings_of(modules: list[dict[str, Any]], device_type: str) -> Structure:
    """What may change from call to call: the hooks that guiders put on modules, and automatic casting.

    Args:
        modules: the attributes of each.
    """
    hooks = tuple(
        [
            (number, tuple(registry.hooks))
            for number, attributes in enumerate(modules)
            if (registry := attributes.get("_diffusers_hook")) is not None and registry.hooks
        ]
    )
    casting = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
    return hooks, casting


def check_callable_in_parts(name: str, denoiser: nn.Module) -> None:
    """Refuse a denoiser whose calls cannot be taken apart.

    Raises:
        ConfigurationError: it is compiled as a whole, or another cache decides which blocks run.
    """
    if is_compiled(denoiser) or hasattr(denoiser, "_orig_mod"):
        raise ConfigurationError(
            f"the {name!r} is compiled as a whole, so its parts cannot be run one by one; compile the parts instead: "
            f"pipe.{name}.compile_repeated_blocks()"
        )
    if getattr(denoiser, "is_cache_enabled", False):
        raise ConfigurationError(
            f"the {name!r} has a cache enabled, which skips blocks by its own rule; call pipe.{name}.disable_cache()"
        )


def _settings(module: nn.Module) -> Hashable:
    return tuple(_setting(key, value) for key, value in vars(module).items() if not key.startswith("_"))


def _setting(key: str, value: Any) -> Hashable:
    return (key, value) if isinstance(value, _PLAIN) else (key, type(value))
