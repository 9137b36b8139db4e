"""Which parts of a pipeline are denoisers, and how their device weighs bytes against arithmetic."""

from typing import Any

from torch import nn

from asyncdiff.errors import ConfigurationError

# Floating-point operations that a device does in the time in which it moves one byte, roughly.
# Constants, not measurements: the same model must be divided in the same way in every run.
_OPERATIONS_PER_BYTE = {"cpu": 8.0}
_OPERATIONS_PER_BYTE_ELSEWHERE = 100.0


def find_denoisers(pipe: Any) -> dict[str, nn.Module]:
    """The pipeline's noise-prediction networks by name: its `unet`s and `transformer`s.

    Raises:
        ConfigurationError: there is none.
    """
    found = {
        name: module
        for name, module in getattr(pipe, "components", {}).items()
        if name.startswith(("unet", "transformer")) and isinstance(module, nn.Module)
    }
    if not found:
        raise ConfigurationError(
            f"{type(pipe).__name__} has no denoiser: a `unet` or a `transformer` that is a torch module is needed"
        )
    return found


def operations_per_byte(denoiser: nn.Module) -> float:
    """How `build_graph` should weigh bytes moved on the denoiser's device."""
    device = next(denoiser.parameters()).device.type
    return _OPERATIONS_PER_BYTE.get(device, _OPERATIONS_PER_BYTE_ELSEWHERE)
