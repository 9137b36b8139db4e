"""One description of a request, and the arguments that each pipeline has for it."""

from typing import Any

import diffusers
import pytest
from diffusers import DiffusionPipeline
from PIL import Image

from asyncdiff import ConfigurationError
from asyncdiff.request.signature import Signature
from asyncdiff.request.words import GOVERNED, Request, Size

DOG, EDGES = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), "white")


def signature(name: str, *parts: str) -> Signature:
    return Signature.of_class(getattr(diffusers, name), parts)


@pytest.mark.parametrize(
    ("pipeline", "request_", "expected"),
    [
        (
            "StableDiffusionPipeline",
            Request("a fox", "a cat", size=Size(64, 32), count=2, guidance=5.0, steps=4),
            {
                "prompt": "a fox",
                "height": 32,
                "width": 64,
                "num_inference_steps": 4,
                "guidance_scale": 5.0,
                "negative_prompt": "a cat",
                "num_images_per_prompt": 2,
            },
        ),
        (
            "StableVideoDiffusionPipeline",
            Request(image=(DOG,), frames=3, arguments={"fps": 5}),
            {"image": DOG, "num_frames": 3, "fps": 5},
        ),
        ("WanPipeline", Request("a", count=2, frames=5), {"prompt": "a", "num_frames": 5, "num_videos_per_prompt": 2}),
        ("StableAudioPipeline", Request("a", count=2), {"prompt": "a", "num_waveforms_per_prompt": 2}),
        ("DDPMPipeline", Request(count=2), {"batch_size": 2}),
        ("QwenImageEditPlusPipeline", Request("a", image=(DOG, EDGES)), {"image": [DOG, EDGES], "prompt": "a"}),
        (
            "StableDiffusionControlNetImg2ImgPipeline",
            Request("a", image=(DOG,), control_image=(EDGES,)),
            {"prompt": "a", "image": DOG, "control_image": EDGES},
        ),
        (
            "AnimateDiffControlNetPipeline",
            Request("a", control_image=(EDGES,)),
            {"prompt": "a", "conditioning_frames": [EDGES]},
        ),
        (
            "StableDiffusionInpaintPipeline",
            Request("a", image=(DOG,), mask=EDGES, arguments={"strength": 0.5}),
            {"prompt": "a", "image": DOG, "mask_image": EDGES, "strength": 0.5},
        ),
        ("WanVideoToVideoPipeline", Request("a", video=(DOG,)), {"video": [DOG], "prompt": "a"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_words_become_the_pipelines_arguments(pipeline: str, request_: Request, expected: dict[str, Any]) -> None:
    assert request_.arguments_for(signature(pipeline)) == expected


def test_what_controls_is_the_image_of_a_pipeline_that_has_a_controlnet_and_no_other() -> None:
    asked = Request("a", control_image=(EDGES,))
    assert asked.arguments_for(signature("StableDiffusionControlNetPipeline", "unet", "controlnet"))["image"] is EDGES
    assert asked.arguments_for(signature("StableDiffusionAdapterPipeline", "adapter"))["image"] is EDGES
    with pytest.raises(ConfigurationError, match="StableDiffusionImg2ImgPipeline takes no control image; it takes "):
        asked.arguments_for(signature("StableDiffusionImg2ImgPipeline", "unet"))
    with pytest.raises(ConfigurationError, match="takes one picture as 'image', not 'control_image' as well"):
        Request("a", image=(DOG,), control_image=(EDGES,)).arguments_for(
            signature("StableDiffusionControlNetPipeline", "controlnet")
        )


@pytest.mark.parametrize(
    ("pipeline", "request_", "sentence"),
    [
        (
            "StableVideoDiffusionPipeline",
            Request("a"),
            "StableVideoDiffusionPipeline takes no prompt; it takes image, ",
        ),
        ("StableVideoDiffusionPipeline", Request(), "StableVideoDiffusionPipeline needs 'image'"),
        ("FluxPipeline", Request("a", frames=4), "FluxPipeline takes no frames; it takes "),
        ("FluxPipeline", Request("a", arguments={"promt_2": "b"}), "takes no 'promt_2'; is 'prompt_2' meant?"),
        ("FluxPipeline", Request("a", arguments={"prompt": "b"}), "'prompt' is what 'prompt' says; give that alone"),
        ("FluxPipeline", Request("a", arguments={"generator": 5}), "'generator' is given by asyncdiff itself"),
        ("FluxPipeline", Request("a", steps=3, arguments={"num_inference_steps": 3}), "is what 'steps' says"),
        ("FluxPipeline", Request("a", mask=DOG), "FluxPipeline takes no mask"),
        # It takes any name, and does nothing with most.
        ("StableDiffusionPipeline", Request("a", arguments={"strenth": 0.5}), "takes no 'strenth'"),
        ("StableDiffusionPipeline", Request("a", frames=4), "StableDiffusionPipeline takes no frames"),
    ],
)
def test_what_a_pipeline_does_not_take(pipeline: str, request_: Request, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        request_.arguments_for(signature(pipeline))
    assert sentence in str(raised.value)


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ({"frames": 0}, "frames must be a whole number of at least 1, not 0"),
        ({"count": 1.5}, "count must be a whole number"),
        ({"steps": -1}, "steps must be a whole number"),
        ({"guidance": float("nan")}, "guidance must be a finite number, not nan"),
    ],
)
def test_numbers_that_cannot_work(numbers: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        Request(**numbers)


def test_every_pipeline_of_diffusers_can_be_asked() -> None:
    """Whatever its class: each has at most one name for a word, and a signature that travels."""
    kinds = {name: getattr(diffusers, name, None) for name in dir(diffusers) if name.endswith("Pipeline")}
    found = 0
    for kind in kinds.values():
        if not (isinstance(kind, type) and issubclass(kind, DiffusionPipeline)) or not callable(kind):
            continue
        own = Signature.of_class(kind, ())
        named = {name: None for name in own.required if name not in GOVERNED}
        asked = {name: (DOG,) if name in ("image", "images", "video") else None for name in own.required}
        request = Request(
            prompt="a" if "prompt" in own.names else None,
            image=(DOG,) if {"image", "images"} & asked.keys() else (),
            video=(DOG,) if "video" in asked else (),
            mask=DOG if {"mask", "mask_image"} & asked.keys() else None,
            control_image=(DOG,) if {"control_image", "conditioning_frames", "control_video"} & asked.keys() else (),
            arguments=named,
        )
        assert request.arguments_for(own).keys() >= set(own.required)
        found += 1
    assert found > 150
