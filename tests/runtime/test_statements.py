"""What is said of a denoiser's weights: another one after each way to change them."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from asyncdiff.denoiser.structure import structure_of
from asyncdiff.exchange.agreement import Statement
from asyncdiff.runtime.statements import Fingerprint


def denoiser() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 8, bias=False), nn.BatchNorm2d(8), nn.Linear(8, 8).half())


def said(statements: list[Statement]) -> list[tuple[str, str]]:
    return [(each.name, each.exact) for each in statements]


def trained(module: nn.Module) -> None:
    optimizer = torch.optim.SGD(module[1].parameters(), 0.1)  # type: ignore[index]
    module[1](torch.rand(8)).sum().backward()  # type: ignore[index]
    optimizer.step()


def replaced(module: nn.Module) -> None:
    module[1].weight = nn.Parameter(torch.rand(8, 8))  # type: ignore[index]


def put(module: nn.Module) -> None:
    module[1].weight.data = torch.rand(8, 8)  # type: ignore[index]


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "loaded": lambda module: module.load_state_dict({key: value + 1 for key, value in module.state_dict().items()}),
    "trained": trained,
    "replaced": replaced,
    "other data": put,
    "written past torch": lambda module: module[0].weight.data.mul_(1.01),  # type: ignore[index]
    "of a buffer": lambda module: module[2].running_mean.add_(1),  # type: ignore[index]
    "of half precision": lambda module: module[3].bias.detach().add_(1),  # type: ignore[index]
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_shows(name: str) -> None:
    module = denoiser()
    structure = structure_of(module)
    fingerprint = Fingerprint("unet", module)
    before = said(fingerprint.statements(structure))
    assert said(fingerprint.statements(structure)) == before
    CHANGES[name](module)
    after = said(fingerprint.statements(structure))
    assert after != before
    assert after == said(Fingerprint("unet", module).statements(structure))


def test_memory_of_another_form_holds_the_same_weights() -> None:
    module = denoiser()
    structure = structure_of(module)
    before = said(Fingerprint("unet", module).statements(structure))
    module.to(memory_format=torch.channels_last)
    assert said(Fingerprint("unet", module).statements(structure)) == before


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        module = denoiser()
        structure = structure_of(module)
        fingerprint = Fingerprint("unet", module)
        before = said(fingerprint.statements(structure))
        assert said(fingerprint.statements(structure)) == before
        module[1].weight.add_(1)  # type: ignore[index,operator,union-attr]
        assert said(fingerprint.statements(structure)) != before
