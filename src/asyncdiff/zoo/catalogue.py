"""Which classes of the installed diffusers are denoisers: found by looking at diffusers, not by a list."""

import inspect
from collections.abc import Iterator

import diffusers
from torch import nn

from asyncdiff.denoiser.form import has_timestep

# Where diffusers keeps its denoisers. Others are found by the timestep that their forward takes.
_HOMES = ("diffusers.models.unets.", "diffusers.models.transformers.")

# Side networks: what they give is an input of a denoiser, or comes after it.
_SIDE_NETWORKS = ("controlnet", "adapter", "autoencoder")


def denoiser_classes() -> dict[str, type[nn.Module]]:
    """The denoiser classes that diffusers exports, by name."""
    return {kind.__name__: kind for kind in _exported_models() if _is_denoiser(kind)}


def _exported_models() -> Iterator[type[nn.Module]]:
    for name in sorted(dir(diffusers)):
        # Names of what needs a package that is not installed are stand-ins without the base class.
        found = getattr(diffusers, name)
        if inspect.isclass(found) and issubclass(found, nn.Module) and issubclass(found, diffusers.ModelMixin):
            yield found


def _is_denoiser(kind: type[nn.Module]) -> bool:
    if kind is diffusers.ModelMixin:
        return False
    names = [base.__name__.lower() for base in kind.__mro__ if base.__module__.startswith("diffusers.models.")]
    is_side_network = any(
        word in name and "unet" not in name and not name.endswith("mixin") for name in names for word in _SIDE_NETWORKS
    )
    return not is_side_network and (kind.__module__.startswith(_HOMES) or has_timestep(kind))
