"""The demo pipelines load without a network and draw what they are told."""

from typing import Any

import pytest
import torch
from diffusers import CogView4Pipeline, StableDiffusionPipeline
from safetensors import safe_open

from asyncdiff.demo import DemoName, demo_folder, demo_prompts, load_demo, prompt_agreement

PROMPTS = ["red apple", "rocket", "cat face", "a red apple"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("The demo pipelines must load without a network.")

    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.mark.parametrize("count", [2, pytest.param(len(PROMPTS), marks=pytest.mark.whole)])
@pytest.mark.parametrize(
    ("name", "pipeline_class", "guidance_scale"),
    # The U-Net's pictures are looked at by tests/serving too.
    [
        pytest.param("unet", StableDiffusionPipeline, 5.0, marks=pytest.mark.whole),
        ("dit", CogView4Pipeline, 5.0),
    ],
)
def test_demo_draws_its_prompts(name: DemoName, pipeline_class: type[Any], guidance_scale: float, count: int) -> None:
    pipeline = load_demo(name)
    assert isinstance(pipeline, pipeline_class)
    pipeline.set_progress_bar_config(disable=True)
    prompts = PROMPTS[:count]
    images = pipeline(
        prompts,
        num_inference_steps=10,
        guidance_scale=guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(prompts))],
    ).images
    assert [image.size for image in images] == [(128, 128)] * len(prompts)
    assert prompt_agreement(images, prompts) == 100.0
    assert prompt_agreement(images[1:], prompts[:-1]) < 50.0


def test_weights_load_in_the_type_asked_for() -> None:
    pipeline = load_demo("unet", torch_dtype=torch.bfloat16)
    assert pipeline.unet.dtype == torch.bfloat16
    assert pipeline.text_encoder.dtype == torch.bfloat16


def test_the_text_encoders_weights_have_the_names_of_the_hub() -> None:
    """Else older transformers draw random ones in their place, and say nothing."""
    with safe_open(demo_folder("unet") / "text_encoder/model.safetensors", "pt") as file:
        assert all(name.startswith("text_model.") for name in file.keys())  # noqa: SIM118 (it is no mapping)
    first, second = (load_demo("unet").text_encoder.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_prompts_are_distinct_and_include_the_documented_ones() -> None:
    prompts = demo_prompts()
    assert len(set(prompts)) == len(prompts)
    assert {"red apple", "cat face", "rocket"} <= set(prompts)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="'unet' or 'dit'"):
        load_demo("gan")  # type: ignore[arg-type]


def test_agreement_refuses_what_it_cannot_judge() -> None:
    with pytest.raises(ValueError, match="as many images as prompts"):
        prompt_agreement([], ["red apple"])
    image = load_demo("unet")("rocket", num_inference_steps=1).images[0]
    with pytest.raises(ValueError, match="not learnt 'a unicycle'"):
        prompt_agreement([image], ["a unicycle"])
