"""On a device without double precision, like Apple's, the same as on the CPU."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from asyncdiff import AsyncDiff
from asyncdiff.denoiser.rates import rates_of
from asyncdiff.runtime import dividing
from tests import single
from tests.comparison import relative_error
from tests.processes import run_ranks
from tests.tiny import PIPELINES, run
from tests.tiny.adapters import build_small_unet

SETTINGS: dict[str, dict[str, Any]] = {
    "bridged": dict(components=1, bridge=2),
    "components": dict(components=2),
    "strided": dict(components=2, stride=2, warmup=3),
    "guarded": dict(components=2, bridge=2, max_error=0.5),
    "shared out": dict(guidance=2, components=1),
}


def _pipe() -> DiffusionPipeline:
    pipe = build_small_unet()
    pipe.unet.set_attn_processor(AttnProcessor())  # torch knows another attention for such a device
    return pipe


def _results(pipe: DiffusionPipeline, names: Sequence[str]) -> dict[str, Tensor]:
    tiny = PIPELINES["sd15"]
    found = {"plain": run(pipe, tiny, num_inference_steps=10)}
    for name, given in ((name, SETTINGS[name]) for name in names):
        with AsyncDiff(pipe, executor="local", **{"warmup": 2} | given) as async_diff:
            found[name] = run(pipe, tiny, num_inference_steps=10)
            counts = async_diff.report().denoisers[0].counts
            assert name == "shared out" or counts.rounds + counts.bridged >= 3, name
    return found


def _what_it_refuses() -> list[str]:
    there = torch.ones(2, device=single.DEVICE)
    refused = []
    for name, deed in {
        "double": lambda: there.double(),
        "to the CPU as doubles": lambda: there.to("cpu", torch.float64),
        "made there": lambda: torch.zeros(1, dtype=torch.float64, device=single.DEVICE),
        "sent there": lambda: torch.zeros(1, dtype=torch.float64).to(single.DEVICE),
        "to the CPU, then doubles": lambda: there.cpu().double(),
        "singles of doubles": lambda: torch.zeros(1, dtype=torch.float64).float().to(single.DEVICE),
    }.items():
        try:
            deed()
        except single.NoDoublesError:
            refused.append(name)
    return refused


def _there(rank: int, names: Sequence[str]) -> tuple[list[str], dict[str, Tensor]]:
    pipe = _pipe()
    with single.device(), torch.no_grad():
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                single.put_there(part)
        found = _results(pipe, names)
        if any(tensor.device != single.DEVICE for tensor in found.values()):
            raise RuntimeError("something was not computed there")
        return _what_it_refuses(), {name: tensor.cpu() for name, tensor in found.items()}


@pytest.mark.skipif(not single.is_possible(), reason="this torch does not let Python play a device")
@pytest.mark.parametrize(
    "names", [["components"], pytest.param(["shared out", "bridged", "strided", "guarded"], marks=pytest.mark.whole)]
)
def test_a_device_without_doubles(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # In a process of its own: torch knows of the device from then on.
    (result,) = run_ranks(1, _there, names, joined=False)
    if isinstance(result, Exception):
        raise result
    refused, found = result
    assert refused == ["double", "to the CPU as doubles", "made there", "sent there"]
    monkeypatch.setattr(dividing, "rates_of", lambda device: rates_of(single.DEVICE))  # to be divided in the same way
    expected = _results(_pipe(), names)
    assert torch.equal(found["plain"], expected["plain"])
    for name in names:
        assert relative_error(found[name], expected[name]) < 1e-4, name
    assert len({float(tensor.sum()) for tensor in expected.values()}) == len(expected), "settings that do nothing"
