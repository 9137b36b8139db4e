"""What calls of a denoiser that nobody has asked for leave as it was: random numbers, and what its processors count."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from asyncdiff.denoiser.structure import is_foreign


@contextlib.contextmanager
def keeping_state(denoiser: nn.Module, device: torch.device) -> Iterator[None]:
    """What is drawn within, of the default generators, is drawn again afterwards; and what a user's own attention
    processors hold in attributes, such as the number of calls they have seen, is put back."""
    processors = {id(found): found for found in _processors(denoiser) if is_foreign(found)}
    undo = [_keep(vars(processor)) for processor in processors.values() if hasattr(processor, "__dict__")]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            for put_back in undo:
                put_back()


def _processors(denoiser: nn.Module) -> Iterator[Any]:
    for module in denoiser.modules():
        yield getattr(module, "processor", None)


def _keep(attributes: dict[str, Any]) -> Callable[[], None]:
    """What gives attributes, and the lists and the like among them, what they hold now."""
    held = dict(attributes)
    copies = {name: value.copy() for name, value in held.items() if isinstance(value, (list, dict, set))}

    def put_back() -> None:
        attributes.clear()
        attributes.update(held)
        for name, copy in copies.items():
            value = held[name]
            value.clear()
            if isinstance(value, list):
                value.extend(copy)
            else:
                value.update(copy)

    return put_back
