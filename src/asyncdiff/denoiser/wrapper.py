"""What a pipeline may have in the place of a denoiser: a module around it that hands calls on, as peft's does."""

import inspect
import itertools
from collections.abc import Iterator

from torch import nn

from asyncdiff.denoiser.form import has_timestep
from asyncdiff.errors import ConfigurationError
from asyncdiff.hooks import is_compiled


def unwrapped(module: nn.Module) -> nn.Module:
    """The module that takes a timestep, inside of what hands calls on to it; the module itself where there is none."""
    *_, (_, innermost) = _way_inside(module)
    return innermost if _takes_timestep(innermost) else module


def check_wrappers(name: str, module: nn.Module) -> None:
    """Refuse what does more around a denoiser than to hand its calls on.

    Args:
        name: the pipeline's name for the module.
        module: what the pipeline has.

    Raises:
        ConfigurationError: the calls are shared out among devices or ranks there, or compiled.
    """
    if unwrapped(module) is module:
        return
    way = list(_way_inside(module))
    for (_, wrapper), (path, _) in itertools.pairwise(way):
        if is_compiled(wrapper) or hasattr(wrapper, "_orig_mod"):
            inner = way[-1][0].replace("_orig_mod.", "")
            raise ConfigurationError(
                f"the {name!r} is compiled as a whole, so its parts cannot be run one by one; compile the parts "
                f"instead: pipe.{name}.{inner}.compile_repeated_blocks()"
            )
        if _shares_out(wrapper):
            raise ConfigurationError(
                f"the {name!r} is in a {type(wrapper).__name__}, which shares calls or weights out among devices by "
                f"itself; give the pipeline the module in it, with all its weights: pipe.{name} = pipe.{name}.{path}"
            )


def not_reached(name: str, module: nn.Module) -> ConfigurationError:
    """The error where a call of what the pipeline has never became one of the denoiser in it."""
    *_, (path, inner) = _way_inside(module)
    return ConfigurationError(
        f"the pipeline's {name!r} is a {type(module).__name__} that does not call the {type(inner).__name__} in it as "
        "a module (but its `forward`, or nothing of it), so that it would run on one device; have it do so, or give "
        f"the pipeline the module in it: pipe.{name} = pipe.{name}.{path}"
    )


def _way_inside(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """A module, and all that lie one in the other inside of it, as long as each hands calls on to the next."""
    path = ""
    while True:
        yield path, module
        if _takes_timestep(module) or not _hands_on(module):
            return
        weights = sum(parameter.numel() for parameter in module.parameters())
        for name, child in module.named_children():
            if 2 * sum(parameter.numel() for parameter in child.parameters()) > weights:
                path, module = f"{path}.{name}" if path else name, child
                break
        else:
            return


def _takes_timestep(module: nn.Module) -> bool:
    return has_timestep(getattr(module, "_orig_mod", module))  # what is compiled as a whole is not looked into


def _hands_on(module: nn.Module) -> bool:
    """Whether a module takes arguments that it does not know of."""
    kinds = {parameter.kind for parameter in inspect.signature(module.forward).parameters.values()}
    return bool(kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD})


def _shares_out(wrapper: nn.Module) -> bool:
    """Whether a module knows of several devices or ranks, as all do that run one in parallel on different data."""
    kinds = {kind.__name__ for value in vars(wrapper).values() for kind in type(value).__mro__}
    return hasattr(wrapper, "device_ids") or "ProcessGroup" in kinds
