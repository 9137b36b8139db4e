"""A pipeline whose denoisers' weights are divided: where all its parts are, and how it becomes what it was."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from asyncdiff.denoiser.elsewhere import Elsewhere, Unread, bytes_of, needs_its_module
from asyncdiff.denoiser.form import has_timestep
from asyncdiff.errors import ConfigurationError
from asyncdiff.exchange.protocol import Exchange
from asyncdiff.plan.places import Places, places_of
from asyncdiff.weights.part import Group, PlacedPart
from asyncdiff.weights.share import Share


class Sharing:
    """Puts the denoisers' weights aside, and all other parts of a pipeline on a device.

    Attributes:
        shares: by the denoisers' names.

    Raises:
        ConfigurationError: the pipeline is not on the CPU, whole, as it was loaded.
    """

    def __init__(self, pipe: Any, denoisers: Mapping[str, nn.Module], device: torch.device) -> None:
        divided = {id(module) for denoiser in denoisers.values() for module in denoiser.modules()}
        parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
        for name, part in parts.items():
            _check_whole(name, part)
        # What a pipeline itself keeps apart of offloading decides by values what it gives, and may give no tensors.
        self._kept = frozenset(getattr(pipe, "_exclude_from_cpu_offload", ()))
        self._device = device
        self._others = {name: part for name, part in parts.items() if divided.isdisjoint(map(id, part.modules()))}
        self._placed: dict[str, PlacedPart] = {}
        self.shares = {name: Share(denoiser, device) for name, denoiser in denoisers.items()}

    @property
    def _all_shares(self) -> list[Share]:
        """Of the denoisers, and of the parts that one rank has."""
        return [*self.shares.values(), *(placed.share for placed in self._placed.values())]

    def places(self, told: Places | None, ranks: int) -> dict[str, int]:
        """The rank of a group that has a part alone, for every part that works apart from the denoiser.

        Args:
            told: where the user wants parts.
            ranks: of a group.

        Raises:
            ConfigurationError: the user wants a part that is not there, or a rank.
        """
        apart = {name: part for name, part in self._others.items() if self._is_apart(name, part)}
        return places_of({name: _bytes(part) for name, part in apart.items()}, ranks, told)

    def place(self, places: Mapping[str, int], group: Group) -> None:
        """Give every part to its rank of the group, and the rest to all.

        Args:
            places: as `places` has found them.
            group: that of this process.
        """
        for name, part in self._others.items():
            if name in places and group.size > 1:
                self._placed[name] = PlacedPart(name, part, places[name], group, self._device)
            else:
                part.to(self._device)

    def _is_apart(self, name: str, part: nn.Module) -> bool:
        """Whether a part works before or after the loop, and can be one rank's."""
        return not has_timestep(part) and name not in self._kept and _bytes(part) > 0

    def gather(self, exchange: Exchange) -> None:
        """Put all weights together again in the host's memory; all ranks of the group take part."""
        for share in self._all_shares:
            share.gather(exchange)

    def put_back(self) -> bool:
        """Leave all parts in the host's memory; whether they have all their weights."""
        for placed in self._placed.values():
            placed.close()
        is_whole = [share.put_back() for share in self._all_shares]
        for name, part in self._others.items():
            if name not in self._placed:
                part.to("cpu")
        return all(is_whole)


def _bytes(part: nn.Module) -> int:
    return sum(map(bytes_of, part.parameters()))


def _check_whole(name: str, part: nn.Module) -> None:
    for own, weight in part.named_parameters():
        if isinstance(weight, Elsewhere) and not isinstance(weight, Unread):
            raise ConfigurationError(
                f"the {name!r} has a part of its weights only, since AsyncDiff was attached with shard=True; load the "
                "pipeline again"
            )
        if weight.device.type != "cpu":
            advice = "leave out pipe.to(...), and offloading"
            if needs_its_module(weight):
                advice = (
                    "what bitsandbytes has quantized on a GPU is moved by .to('cpu') where diffusers lets it (4 bits); "
                    "torchao and GGUF load on the CPU"
                )
            raise ConfigurationError(
                f"shard=True takes a pipeline on the CPU, and moves to each device what belongs there, but {own!r} of "
                f"the {name!r} is on {weight.device}; {advice}"
            )
    if any(hasattr(module, "_hf_hook") for module in part.modules()):
        raise ConfigurationError(
            f"the {name!r} has its weights moved from call to call (offloading); shard=True takes a pipeline on the "
            "CPU as it was loaded: leave out enable_..._offload(), or call pipe.remove_all_hooks()"
        )
