"""A pipeline whose denoisers' weights are divided: where all its parts are, and how it becomes what it was."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from asyncdiff.denoiser.elsewhere import Elsewhere, Unread
from asyncdiff.errors import ConfigurationError
from asyncdiff.weights.share import Share


class Sharing:
    """Puts the denoisers' weights aside, and all other parts of a pipeline on a device.

    Attributes:
        shares: by the denoisers' names.

    Raises:
        ConfigurationError: the pipeline is not on the CPU, whole, as it was loaded.
    """

    def __init__(self, pipe: Any, denoisers: Mapping[str, nn.Module], device: torch.device) -> None:
        for name, denoiser in denoisers.items():
            _check_whole(name, denoiser)
        divided = {id(module) for denoiser in denoisers.values() for module in denoiser.modules()}
        parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
        self._moved = [part for part in parts if divided.isdisjoint(map(id, part.modules()))]
        self.shares = {name: Share(denoiser, device) for name, denoiser in denoisers.items()}
        for part in self._moved:
            part.to(device)

    def put_back(self) -> bool:
        """Move all parts to the host's memory again; whether the denoisers have all their weights."""
        whole = [share.put_back() for share in self.shares.values()]
        for part in self._moved:
            part.to("cpu")
        return all(whole)


def _check_whole(name: str, denoiser: nn.Module) -> None:
    for own, weight in denoiser.named_parameters():
        if isinstance(weight, Elsewhere) and not isinstance(weight, Unread):
            raise ConfigurationError(
                f"the {name!r} has a part of its weights only, since AsyncDiff was attached with shard=True; load the "
                "pipeline again"
            )
        if weight.device.type != "cpu":
            raise ConfigurationError(
                f"shard=True takes a pipeline on the CPU, and moves to each device what belongs there, but {own!r} of "
                f"the {name!r} is on {weight.device}; leave out pipe.to(...), and offloading"
            )
    if any(hasattr(module, "_hf_hook") for module in denoiser.modules()):
        raise ConfigurationError(
            f"the {name!r} has its weights moved from call to call (offloading); shard=True takes a pipeline on the "
            "CPU as it was loaded: leave out enable_..._offload(), or call pipe.remove_all_hooks()"
        )
