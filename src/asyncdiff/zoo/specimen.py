"""The smallest working model of a denoiser class, with random weights, and inputs for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Specimen:
    """One denoiser class, small.

    Attributes:
        kind: the class's name in diffusers.
        config: the arguments of its constructor.
        inputs: makes the arguments of one call; always the same ones.
        variant: what is special about it, where a class has several specimens.
        time: the name of the timestep argument among the inputs. Others may move with it, see `times`.
    """

    kind: str
    config: Mapping[str, Any]
    inputs: Callable[[], dict[str, Any]]
    variant: str = ""
    time: str = "timestep"

    @property
    def name(self) -> str:
        """The class, and the variant in brackets."""
        return f"{self.kind} ({self.variant})" if self.variant else self.kind

    def times(self) -> tuple[str, ...]:
        """The timestep argument, and those of the same form that are times by their names: they move with it."""
        inputs = self.inputs()
        form = _form(inputs[self.time])
        others = [name for name in inputs if is_time(name) and name != self.time]
        return (self.time, *(name for name in others if _form(inputs[name]) == form))

    def build(self) -> nn.Module:
        """The model, always with the same weights."""
        with torch.random.fork_rng(devices=[]):  # some constructors draw numbers that are no parameters
            torch.manual_seed(0)
            model: nn.Module = getattr(diffusers, self.kind)(**self.config)
        randomise(model.eval())
        return model


def is_time(name: str) -> bool:
    """Whether an argument is a time by its name."""
    return not {"time", "timestep", "timesteps"}.isdisjoint(name.split("_"))


def _form(argument: Any) -> Any:
    return argument.shape if isinstance(argument, Tensor) else type(argument)


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> None:
    """Draw weights that keep magnitudes, none of them zero: a layer that is zero at first would hide others."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if not parameter.is_floating_point():
            continue
        if parameter.ndim > 1:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.normal_(1.0 if name.endswith("weight") else 0.0, 0.1, generator=generator)


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Normal random numbers, always the same ones."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
