"""A denoiser's structure, looked at again: nothing that has changed since is missed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from asyncdiff.denoiser.look import Look
from asyncdiff.denoiser.structure import structure_of
from tests.tiny import PIPELINES
from tests.tiny.adapters import load_lora


class Processor:
    """What an attention block calls, no module."""

    def __init__(self) -> None:
        self.scale = [0.5]

    def __call__(self) -> None: ...


def denoiser() -> Any:
    module: Any = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    module[0].processor = Processor()
    module[0].scaling = {"a": 1.0}
    module[0].sizes = (1, 2)
    module[0].nested = ([1],)
    module[0].held = torch.zeros(3)
    return module


CHANGES: dict[str, Callable[[Any], object]] = {
    "an attribute": lambda module: setattr(module[0], "sizes", (1, 3)),
    "an attribute more": lambda module: setattr(module[1][0], "skip", True),
    "an attribute less": lambda module: delattr(module[0], "sizes"),
    "an attribute of another name": lambda module: setattr(module[0], "lengths", module[0].__dict__.pop("sizes")),
    "an attribute of another kind": lambda module: setattr(module[0], "held", None),
    "what a dict holds": lambda module: module[0].scaling.update(a=0.5),
    "what a list in a tuple holds": lambda module: module[0].nested[0].append(2),
    "an attribute of a processor": lambda module: setattr(module[0].processor, "scale", [0.6]),
    "what a list of a processor holds": lambda module: module[0].processor.scale.append(0.5),
    "another processor": lambda module: setattr(module[0], "processor", nn.functional.relu),
    "a module more": lambda module: module[1].append(nn.ReLU()),
    "a module in a leaf": lambda module: module[1][0].add_module("adapter", nn.Linear(2, 2)),
    "a module less": lambda module: module[1].pop(0),
    "another module": lambda module: module.__setitem__(0, nn.ReLU()),
    "a module of another name": lambda module: module[1].add_module("b", module[1]._modules.pop("0")),
    "a compiled module": lambda module: setattr(module[0], "_compiled_call_impl", lambda: None),
    "training": lambda module: module[1].eval(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen(name: str) -> None:
    module = denoiser()
    look = Look(module)
    before = look.structure()
    CHANGES[name](module)
    after = look.structure()
    assert after != before
    assert after == structure_of(module)


def test_adapters_that_are_switched() -> None:
    pipe = PIPELINES["sd15"].build()
    load_lora(pipe, "a", 1)
    load_lora(pipe, "b", 2)
    look, seen = Look(pipe.unet), []
    for switch in (
        lambda: pipe.set_adapters(["a"]),
        lambda: pipe.set_adapters(["b"]),
        pipe.disable_lora,
        pipe.enable_lora,
        lambda: pipe.set_adapters(["b"], [0.5]),
        lambda: pipe.delete_adapters("b"),
        pipe.unload_lora_weights,
    ):
        switch()
        seen.append(look.structure())
        assert seen[-1] == structure_of(pipe.unet)
    assert seen[1] == seen[3]
    assert len(set(seen)) == len(seen) - 1


def test_nothing_has_changed() -> None:
    module = denoiser()
    look = Look(module)
    before = look.structure()
    assert before == structure_of(module)
    assert look.structure() is before
    module[0].weight.data.mul_(2)  # a value
    assert look.structure() is before


def test_what_has_taken_the_place_of_its_like_is_looked_at_too() -> None:
    module = denoiser()
    look = Look(module)
    before = look.structure()
    module[0].scaling, module[0].held = {"a": 1.0}, torch.ones(3)
    assert look.structure() is before
    module[0].scaling["a"] = 0.5
    assert look.structure() != before


def test_what_is_unchanged_is_not_looked_at_closely(monkeypatch: pytest.MonkeyPatch) -> None:
    module, closely = denoiser(), []

    def counted(denoiser: nn.Module) -> Any:
        closely.append(denoiser)
        return structure_of(denoiser)

    monkeypatch.setattr("asyncdiff.denoiser.look.structure_of", counted)
    look = Look(module)
    for _ in range(3):
        look.structure()
    assert len(closely) == 1
