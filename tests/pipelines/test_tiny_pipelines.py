"""The tiny pipelines are what other tests may rely on: repeatable, finite, sensitive to their denoiser."""

from typing import Any, NamedTuple

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

from tests.tiny import PIPELINES, TinyPipeline, every, run


class Case(NamedTuple):
    tiny: TinyPipeline
    pipe: DiffusionPipeline
    output: torch.Tensor


@pytest.fixture(scope="module", params=every("sd15", "svd", "sd3", "flux", "wan22"))
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


@pytest.mark.whole
def test_output_stays_finite_over_many_steps(case: Case) -> None:
    output = run(case.pipe, case.tiny, num_inference_steps=12)
    assert output.isfinite().all()
    assert output.abs().max() < 1e4


def test_silencing_a_unit_in_the_middle_or_the_time_shows(case: Case) -> None:
    denoiser = getattr(case.pipe, case.tiny.denoiser)
    for module in (unit_in_the_middle(denoiser), time_embedding(denoiser)):
        with module.register_forward_hook(lambda module, args, result: silence(result)):
            changed = run(case.pipe, case.tiny)
        assert (changed - case.output).norm() > 0.02 * case.output.norm()


def unit_in_the_middle(denoiser: nn.Module) -> nn.Module:
    """The second block of the longest list of blocks, and in a UNet the first one between its two halves."""
    middle = getattr(denoiser, "mid_block", None)
    if middle is not None:
        return getattr(middle, "base_midblock", middle).resnets[0]  # ControlNet-XS has a second one beside it
    lists = [module for module in denoiser.children() if isinstance(module, nn.ModuleList)]
    block = max(lists, key=lambda blocks: sum(weight.numel() for weight in blocks.parameters()))[1]
    return block[0] if isinstance(block, nn.ModuleList) else block  # Stable Cascade has a list of lists


def time_embedding(denoiser: nn.Module) -> nn.Module:
    """What brings the time in, by the many names that it has."""
    kinds = ("TimestepEmbedding", "TimestepEmbedder", "Kandinsky5TimeEmbeddings", "ChromaApproximator")
    kinds += ("SDCascadeTimestepBlock", "Krea2TimestepEmbedding", "MLPEmbedder")  # the last one is PRX's
    kinds += ("CosmosTimestepEmbedding", "AceStepTimestepEmbedding", "StableAudioGaussianFourierProjection")
    found = [
        module
        for name, module in denoiser.named_modules()
        if type(module).__name__ in kinds and not name.startswith("context_embedder")  # texts may have one of their own
    ]
    return getattr(found[0], "mapper", found[0])  # Stable Cascade's blocks map sines themselves


def silence(result: Any) -> Any:
    return torch.zeros_like(result) if isinstance(result, torch.Tensor) else tuple(map(silence, result))
