"""The tiny pipelines are what other tests may rely on: repeatable, finite, sensitive to their denoiser."""

from typing import Any, NamedTuple

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.models.embeddings import TimestepEmbedding

from tests.tiny import EVERY, PIPELINES, TinyPipeline, run


class Case(NamedTuple):
    tiny: TinyPipeline
    pipe: DiffusionPipeline
    output: torch.Tensor


@pytest.fixture(scope="module", params=EVERY)
def case(request: pytest.FixtureRequest) -> Case:
    tiny = PIPELINES[request.param]
    pipe = tiny.build()
    return Case(tiny, pipe, run(pipe, tiny))


def test_same_weights_in_every_build_and_same_output_in_every_run(case: Case) -> None:
    weights = getattr(case.pipe, case.tiny.denoiser).state_dict()
    weights_again = getattr(case.tiny.build(), case.tiny.denoiser).state_dict()
    assert weights.keys() == weights_again.keys()
    assert all(torch.equal(weight, weights_again[key]) for key, weight in weights.items())
    assert torch.equal(case.output, run(case.pipe, case.tiny))
    assert case.output.std() > 0.1


def test_output_stays_finite_over_many_steps(case: Case) -> None:
    output = run(case.pipe, case.tiny, num_inference_steps=12)
    assert output.isfinite().all()
    assert output.abs().max() < 1e4


def test_silencing_a_unit_in_the_middle_or_the_time_shows(case: Case) -> None:
    denoiser = getattr(case.pipe, case.tiny.denoiser)
    unit = denoiser.mid_block.resnets[0] if case.tiny.denoiser == "unet" else denoiser.transformer_blocks[1]
    time_embedding = next(module for module in denoiser.modules() if isinstance(module, TimestepEmbedding))
    for module in (unit, time_embedding):
        with module.register_forward_hook(lambda module, args, result: silence(result)):
            changed = run(case.pipe, case.tiny)
        assert (changed - case.output).norm() > 0.02 * case.output.norm()


def silence(result: Any) -> Any:
    return torch.zeros_like(result) if isinstance(result, torch.Tensor) else tuple(map(silence, result))
