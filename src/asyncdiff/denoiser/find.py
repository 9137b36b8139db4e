"""Which parts of a pipeline are denoisers, and where they run."""

from typing import Any

import torch
from torch import nn

from asyncdiff.denoiser.form import has_timestep
from asyncdiff.denoiser.wrapper import check_wrappers, unwrapped
from asyncdiff.errors import ConfigurationError


def find_denoisers(pipe: Any) -> dict[str, nn.Module]:
    """The pipeline's noise-prediction networks by name: what is given a timestep, and no side network of one.

    What is around one and hands its calls on, as peft's models do, is left off.

    Raises:
        ConfigurationError: there is none, or what is around one does more than that.
    """
    parts = {name: part for name, part in getattr(pipe, "components", {}).items() if isinstance(part, nn.Module)}
    inner = {name: unwrapped(part) for name, part in parts.items()}
    found = {name: part for name, part in inner.items() if _predicts_noise(getattr(part, "_orig_mod", part))}
    for name in found:
        check_wrappers(name, parts[name])
    if not found:
        timeless = next((name for name in ("unet", "transformer") if getattr(pipe, name, None) is not None), None)
        raise ConfigurationError(
            f"{type(pipe).__name__} has no denoiser: a torch module among its components whose forward takes a timestep"
            + (f"; its {timeless!r} ({type(getattr(pipe, timeless)).__name__}) takes none" if timeless else "")
        )
    return found


def device_of(pipe: Any, denoiser: nn.Module) -> torch.device:
    """Where the denoiser runs; with offloading that is not where its weights are.

    Raises:
        ConfigurationError: nothing tells, because it has no weights.
    """
    device = getattr(pipe, "_execution_device", None)
    if isinstance(device, torch.device):
        return device
    weight = next(denoiser.parameters(), None)
    if weight is None:
        raise ConfigurationError(f"{type(pipe).__name__} has a denoiser without weights ({type(denoiser).__name__})")
    return weight.device


def is_denoiser_class(kind: Any) -> bool:
    """Whether modules of a class predict noise: they take a timestep."""
    # ControlNets take a timestep too, but what they give is an input of the denoiser.
    names = [base.__name__.lower() for base in kind.__mro__]
    return has_timestep(kind) and not any("controlnet" in name and "unet" not in name for name in names)


def _predicts_noise(module: nn.Module) -> bool:
    return is_denoiser_class(type(module))


def finish(device: torch.device) -> None:
    """Wait for all that a device was given to do."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
