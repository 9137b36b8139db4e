"""A call that is rehearsed without weights gives the trace of the real one."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asyncdiff.call import Call
from asyncdiff.denoiser.form import CallForm
from asyncdiff.denoiser.rates import CPU
from asyncdiff.denoiser.rehearsal import rehearse
from asyncdiff.denoiser.trace import Trace, record
from asyncdiff.errors import TraceError
from asyncdiff.plan.division import Division, divide_denoiser
from asyncdiff.plan.method import method_of
from asyncdiff.plan.schedule import Schedule
from asyncdiff.zoo import specimens
from asyncdiff.zoo.specimen import Specimen

SPECIMENS = {specimen.name: specimen for specimen in specimens()}
QUICK = (
    "UNet2DConditionModel",
    "FluxTransformer2DModel",
    "CosmosTransformer3DModel",
)

# The experts that a token goes to depend on what the router makes of it.
TO_EXPERTS = ("HiDreamImageTransformer2DModel", "NucleusMoEImageTransformer2DModel (grouped)")
# Without numbers torch tells other strides of what the old attention's group norm makes.
OTHER_STRIDES = ("UNet2DModel",)


def every(names: tuple[str, ...]) -> list[Any]:
    return [name if name in names else pytest.param(name, marks=pytest.mark.whole) for name in SPECIMENS]


def call_of(specimen: Specimen, model: nn.Module) -> Call:
    return Call(model._call_impl, (), specimen.inputs())


def divided(trace: Trace, components: int) -> Division:
    return divide_denoiser(trace, Schedule(components, 1, 1), None, CPU, method_of("forecast"))


def hollowed(specimen: Specimen) -> nn.Module:
    """The model with weights that take no memory: all are views of one number."""
    model = specimen.build()
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                number = torch.full((), float("nan"), dtype=weight.dtype)
                module._parameters[name] = nn.Parameter(number.expand(weight.shape), weight.requires_grad)
    return model


@pytest.mark.parametrize("name", every(QUICK))
def test_a_call_rehearsed_without_weights_is_divided_like_the_real_one(name: str) -> None:
    specimen = SPECIMENS[name]
    model, hollow, other = specimen.build(), hollowed(specimen), specimen.build()
    batch = CallForm(model).batch(call_of(specimen, model))
    if name.startswith(TO_EXPERTS):
        with pytest.raises(TraceError, match=r"without (them|its weights)"):
            rehearse(model, call_of(specimen, model), batch)
        return
    rehearsed = rehearse(model, call_of(specimen, model), batch)
    rehearsed_hollow = rehearse(hollow, call_of(specimen, hollow), batch)
    with torch.no_grad():
        result, recorded = record(other, call_of(specimen, other), batch)
        assert same(result, model(**specimen.inputs())), "the rehearsal has left something behind"
    for components in (2, 3):
        expected = divided(recorded, components)
        for trace in (rehearsed, rehearsed_hollow):
            found = divided(trace, components)
            if name.startswith(OTHER_STRIDES):
                continue
            assert wiring(found) == wiring(expected)
            assert found.partition.shares == pytest.approx(expected.partition.shares, rel=0.003)
            assert strides(found) == strides(expected)


def wiring(division: Division) -> tuple[Any, ...]:
    partition = division.partition
    return partition.components, partition.reads, partition.bases, partition.end.units, partition.end.reads


def strides(division: Division) -> list[Any]:
    return [leaf.stride for unit in division.graph.units for leaf in unit.outputs]


def same(one: Any, other: Any) -> bool:
    mine, others = (torch.utils._pytree.tree_leaves(each) for each in (one, other))
    return all(torch.equal(a, b) for a, b in zip(mine, others, strict=True) if isinstance(a, torch.Tensor))


class Deciding(nn.Module):
    """Runs its block once more where what its weights make is large."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64)])

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            sample = block(sample)
            if sample.sum() > 0:
                sample = block(sample)
        return sample


class Masking(nn.Module):
    """Cuts a text where its mask ends, and fills a tensor of its own piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64)])

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        cut = sample[:, : int(mask.sum())]
        gathered = torch.zeros(2, *cut.shape)
        for number, block in enumerate(self.blocks):
            gathered[number] = block(cut + gathered[number - 1])
        return gathered.sum(dim=0)


def test_numbers_that_come_from_weights_and_decide_are_refused() -> None:
    model = Deciding()
    with pytest.raises(TraceError, match="Deciding reads numbers that depend on its weights"):
        rehearse(model, Call(model, (torch.ones(1, 64), torch.ones(1)), {}))
    assert all(type(weight) is nn.Parameter for weight in model.parameters())


def test_numbers_that_come_from_the_arguments_are_known() -> None:
    model = Masking()
    given = (torch.ones(1, 6, 64), torch.ones(1), torch.tensor([1, 1, 1, 0, 0, 0]))
    rehearsed, recorded = rehearse(model, Call(model._call_impl, given, {})), None
    with torch.no_grad():
        _, recorded = record(model, Call(model._call_impl, given, {}))
    assert rehearsed.calls[0].outputs[0].shape == (1, 3, 64)
    found, expected = divided(rehearsed, 2), divided(recorded, 2)
    assert wiring(found) == wiring(expected)
    assert found.partition.reads[1], "what was written into a tensor is read from it"


class Placing(nn.Module):
    """Puts what its blocks make where a mask says, and then counts by the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64)])

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        placed = self.blocks[0](sample)
        placed[:, mask] = self.blocks[1](sample)[:, mask]
        return placed[:, : int(mask.sum())]


def test_what_says_where_is_written_to_stays_known() -> None:
    model = Placing()
    given = (torch.ones(1, 6, 64), torch.ones(1), torch.tensor([True, True, True, False, False, False]))
    assert rehearse(model, Call(model._call_impl, given, {})).calls[0].outputs[0].shape == (1, 3, 64)


class _Tied(nn.Module):
    """Two names for one weight, as text encoders have."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        return self.second(self.first(sample))


def test_a_weight_with_two_names_has_one_stand_in() -> None:
    model = _Tied()
    call = Call(model._call_impl, (torch.zeros(2, 4), torch.tensor(1.0)), {})
    assert [made.name for made in rehearse(model, call).calls] == ["", "first", "second"]
    assert model.second.weight is model.first.weight
