"""What decides which parts of a denoiser run and how data flows between them, apart from a call's arguments."""

from collections.abc import Hashable
from typing import Any

import torch
from torch import nn

from asyncdiff.errors import ConfigurationError
from asyncdiff.hooks import is_compiled

Structure = Hashable

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FEW = 4  # convolutions

_PLAIN = (bool, int, float, str, type(None), torch.dtype)

# By these a layer of PEFT tells which of its adapters it uses; it keeps them in private attributes.
_SWITCHES = ("disable_adapters", "active_adapters")

# So many values of a list, and of all lists in it, are compared; of the rest, how many there are.
_MOST_VALUES = 256


def structure_of(denoiser: nn.Module) -> Structure:
    """The module tree and the plain settings of its modules.

    Adapters change the tree; FreeU, forward chunking and the like set attributes of modules in it, an IP-Adapter's
    scale those of attention processors.
    """
    return tuple(
        (name, type(module), is_compiled(module), _settings(module)) for name, module in denoiser.named_modules()
    )


def is_watched(denoiser: nn.Module) -> bool:
    """Whether somebody sees its modules' calls, and may count them: by torch's own hooks, or where attention is made.

    Of attention processors, those of diffusers are known not to.
    """
    return any(
        module._forward_hooks or module._forward_pre_hooks or is_foreign(getattr(module, "processor", None))
        for module in denoiser.modules()
    )


def is_foreign(processor: object) -> bool:
    """Whether an attention processor is none of diffusers', nor of torch's."""
    return processor is not None and not type(processor).__module__.startswith(("diffusers.", "torch."))


def convolves(denoiser: nn.Module) -> bool:
    """Whether it is a convolutional network, apart from how it takes a picture apart and puts it together."""
    return sum(isinstance(module, _CONVOLUTIONS) and _overlaps(module) for module in denoiser.modules()) > _FEW


def _overlaps(convolution: Any) -> bool:
    sizes = zip(convolution.kernel_size, convolution.stride, strict=True)
    return any(size > 1 and size > stride for size, stride in sizes)


def surroundings_of(name: str, denoiser: nn.Module, modules: list[dict[str, Any]], device_type: str) -> Structure:
    """What may change from call to call: the hooks that guiders put on modules, and automatic casting.

    Args:
        name: the pipeline's name for the denoiser.
        modules: the attributes of each of its modules that own others.

    Raises:
        ConfigurationError: a hook that has come since is a rule of its own for what is computed.
    """
    hooked = [
        (number, registry.hooks)
        for number, attributes in enumerate(modules)
        if (registry := attributes.get("_diffusers_hook")) is not None and registry.hooks
    ]
    for _, hooks in hooked:
        if any(map(_has_own_rule, hooks.values())):
            _check_hooks(name, denoiser)
    casting = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
    return tuple((number, tuple(hooks)) for number, hooks in hooked), casting


def check_callable_in_parts(name: str, denoiser: nn.Module) -> None:
    """Refuse a denoiser whose calls cannot be taken apart.

    Raises:
        ConfigurationError: it is compiled as a whole, or something else decides which of its blocks run, or where.
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
    _check_hooks(name, denoiser)
    sharded = next((own for own, weights in denoiser.named_parameters() if hasattr(weights, "device_mesh")), None)
    if sharded is not None:
        raise ConfigurationError(
            f"the weights of the {name!r} ({sharded!r}, for one) are distributed among ranks (tensor parallelism, "
            "FSDP), which then have to call every part of it together; asyncdiff gives each rank parts of its own: "
            "load it whole on every rank"
        )


def _check_hooks(name: str, denoiser: nn.Module) -> None:
    """Refuse hooks of diffusers that decide from step to step what is computed, or compute with other ranks."""
    hooks = [
        (own, hook_name, hook)
        for own, module in denoiser.named_modules()
        if (registry := vars(module).get("_diffusers_hook")) is not None
        for hook_name, hook in registry.hooks.items()
    ]
    found = next((one for one in hooks if _has_own_rule(one[2])), None)
    if found is None:
        return
    own, hook_name, hook = found
    # Those without a state belong to it all the same if they come from the same place: they read its state.
    family = dict.fromkeys(repr(other) for _, other, one in hooks if type(one).__module__ == type(hook).__module__)
    reason = (
        "which keeps values from step to step: two rules would decide which blocks are computed"
        if _keeps_values(hook)
        else "which shares every call out among ranks that all have to take part; asyncdiff gives each parts of its own"
    )
    raise ConfigurationError(
        f"the {name!r} has the hook {hook_name!r} ({type(hook).__name__}) on its {own or type(denoiser).__name__!r}, "
        f"{reason}; take it off: for each of {', '.join(family)} call diffusers.hooks.HookRegistry."
        f"check_if_exists_or_initialize(pipe.{name}).remove_hook(...)"
    )


def _has_own_rule(hook: Any) -> bool:
    return _keeps_values(hook) or _computes_with_other_ranks(hook)


def _keeps_values(hook: Any) -> bool:
    """Whether a hook of diffusers has a state, as all do by which blocks are skipped or replaced in some steps."""
    return bool(getattr(hook, "_is_stateful", False))


def _computes_with_other_ranks(hook: Any) -> bool:
    """Whether a hook of diffusers divides tokens among ranks, or puts them together again (context parallelism)."""
    return getattr(hook, "parallel_config", None) is not None


def _settings(module: nn.Module) -> Hashable:
    own = [setting(key, value) for key, value in vars(module).items() if key[0] != "_"]
    kind = type(module)
    return (*own, *(setting(key, getattr(module, key)) for key in _SWITCHES if hasattr(kind, key)))


def setting(key: str, value: Any) -> Hashable:
    """What of a module's attribute is part of the structure."""
    if isinstance(value, _PLAIN):
        return key, value
    if callable(value) and not isinstance(value, (nn.Module, type)) and hasattr(value, "__dict__"):
        # What a module calls, such as an attention processor, decides as the module does.
        own = [(name, _form(held, [_MOST_VALUES])) for name, held in vars(value).items() if name[0] != "_"]
        return key, type(value), tuple(own)
    return key, _form(value, [_MOST_VALUES])


def is_fixed(value: Any) -> bool:
    """Whether an attribute stays what it is as long as it is this object."""
    return isinstance(value, (*_PLAIN, type)) or (
        type(value) is tuple and len(value) <= _MOST_VALUES and all(isinstance(item, _PLAIN) for item in value)
    )


def _form(value: Any, left: list[int]) -> Hashable:
    """A plain value itself, what lists and the like hold of such, however deep, and of all else the type.

    Args:
        left: how many values are looked at yet.
    """
    kind: type = type(value)
    if isinstance(value, _PLAIN):
        return value
    if not isinstance(value, (list, tuple, set, frozenset, dict)):
        return kind
    items: list[Hashable] = []
    for item in value.items() if isinstance(value, dict) else value:
        if left[0] <= 0:
            break
        left[0] -= 1
        items.append(_form(item, left))
    return kind, len(value), frozenset(items) if isinstance(value, (set, frozenset)) else tuple(items)
