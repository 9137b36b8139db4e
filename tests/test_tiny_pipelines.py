"""The tiny pipelines are what other tests may rely on: repeatable, finite, sensitive to their denoiser."""

from typing import Any

import pytest
import torch
from tiny_pipelines import PIPELINES, run


@pytest.mark.parametrize("name", PIPELINES)
def test_same_weights_in_every_build_and_same_output_in_every_run(name: str) -> None:
    tiny = PIPELINES[name]
    pipe, again = tiny.build(), tiny.build()
    weights, weights_again = getattr(pipe, tiny.denoiser).state_dict(), getattr(again, tiny.denoiser).state_dict()
    assert weights.keys() == weights_again.keys()
    assert all(torch.equal(weight, weights_again[key]) for key, weight in weights.items())
    output = run(pipe, tiny)
    assert torch.equal(output, run(pipe, tiny))
    assert output.std() > 0.1


@pytest.mark.parametrize("name", PIPELINES)
def test_output_stays_finite_over_many_steps(name: str) -> None:
    output = run(PIPELINES[name].build(), PIPELINES[name], num_inference_steps=12)
    assert output.isfinite().all()
    assert output.abs().max() < 1e4


@pytest.mark.parametrize("name", PIPELINES)
def test_silencing_a_unit_in_the_middle_shows(name: str) -> None:
    tiny = PIPELINES[name]
    pipe = tiny.build()
    output = run(pipe, tiny)
    denoiser = getattr(pipe, tiny.denoiser)
    unit = denoiser.mid_block.resnets[0] if tiny.denoiser == "unet" else denoiser.transformer_blocks[1]
    unit.register_forward_hook(lambda module, args, result: silence(result))
    assert (run(pipe, tiny) - output).norm() > 0.05 * output.norm()


def silence(result: Any) -> Any:
    return torch.zeros_like(result) if isinstance(result, torch.Tensor) else tuple(map(silence, result))
