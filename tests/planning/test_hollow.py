"""A pipeline without weights is the real one in all else, and asks the same of its denoiser in its first step."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from asyncdiff import ConfigurationError, ModelError, TraceError, load_demo
from asyncdiff.call import Call
from asyncdiff.denoiser.form import CallForm
from asyncdiff.denoiser.trace import Trace, record
from asyncdiff.hooks import intercept_call
from asyncdiff.model_files import DEMO_MODELS
from asyncdiff.planning.first_step import first_step
from asyncdiff.planning.hollow import hollow_pipeline
from tests.bad_input import good_folder
from tests.tiny import PIPELINES, every, run

QUICK = ("sd3", "flux", "wan21_i2v")

# Saved, they are no whole pipelines: modular ones have no parts of their own, Cosmos asks for a guard that is not
# installed, some name classes that are not diffusers', and some are built with what is not saved with them.
NOT_SAVED = (
    *("modular", "cosmos", "cascade_decoder", "longcat_image", "qwen_image_21"),
    *("sd15_perturbed_attention", "sana_pag", "kandinsky5_t2i"),
)
# The experts that a token goes to depend on what the router makes of it.
TO_EXPERTS = ("hidream",)


def name_of(param: Any) -> str:
    """The pipeline's name in a parameter of a test."""
    return param if isinstance(param, str) else param.values[0]


def without_weights(pipe: Any, folder: Path) -> str:
    """Save a pipeline, and take its weights away."""
    pipe.save_pretrained(folder)
    for path in folder.rglob("*"):
        if path.suffix in (".safetensors", ".bin"):
            path.unlink()
    return str(folder)


def first_call(pipe: Any, denoiser: str, call: Any) -> Trace:
    """The trace of the first call of a real denoiser."""
    module, traces = getattr(pipe, denoiser), []

    def look(made: Call) -> Any:
        result, trace = record(module, made, CallForm(module).batch(made))
        traces.append(trace)
        return result

    undo = intercept_call(module, look)
    call()
    undo()
    return traces[0]


def forms(trace: Trace) -> list[Any]:
    return [(call.name, call.input_forms, [leaf.shape for leaf in call.outputs]) for call in trace.calls]


@pytest.mark.parametrize(
    "name", [param for param in every(*QUICK) if not name_of(param).startswith(NOT_SAVED + TO_EXPERTS)]
)
def test_the_first_call_is_that_of_the_real_pipeline(name: str, tmp_path: Path) -> None:
    tiny = PIPELINES[name]
    if tiny.missing():
        pytest.skip(f"diffusers has no {tiny.missing()[0]}")
    pipe = tiny.build()
    found = first_step(hollow_pipeline(without_weights(pipe, tmp_path), torch.float32), tiny.inputs(pipe))
    real = first_call(pipe, found.denoiser, lambda: run(pipe, tiny))
    assert forms(found.trace) == forms(real)
    assert found.trace.batch == real.batch


@pytest.mark.parametrize("model", DEMO_MODELS)
def test_all_but_the_weights_is_there(model: str) -> None:
    hollow = hollow_pipeline(model, torch.float32)
    real = load_demo("unet" if model == "demo-unet" else "dit")
    assert type(hollow) is type(real)
    for name, part in real.components.items():
        own = hollow.components[name]
        assert type(own) is type(part)
        if isinstance(part, nn.Module):
            assert [(key, weight.shape, weight.dtype) for key, weight in own.named_parameters()] == [
                (key, weight.shape, weight.dtype) for key, weight in part.named_parameters()
            ]
            assert all(weight.untyped_storage().nbytes() <= 8 for weight in own.parameters()), "takes memory"
            for buffer, expected in zip(own.buffers(), part.buffers(), strict=True):
                assert torch.allclose(buffer, expected, atol=1e-3)  # some are saved, in half precision


def test_a_tokenizer_without_words_allows_as_many_as_it_would(tmp_path: Path) -> None:
    folder = Path(without_weights(load_demo("unet"), tmp_path))
    (folder / "tokenizer" / "tokenizer.json").unlink()
    found = first_step(hollow_pipeline(str(folder), torch.float32), {})
    whole = first_step(hollow_pipeline("demo-unet", torch.float32), {})
    assert forms(found.trace) == forms(whole.trace)


def test_size_and_batch() -> None:
    found = first_step(hollow_pipeline("demo-dit", torch.float16), {"height": 128, "width": 64, "batch": 3})
    (leaf,) = found.trace.calls[0].outputs
    assert (leaf.shape[0], leaf.shape[2:], leaf.dtype) == (3, (16, 8), torch.float16)
    assert found.calls == 2


def test_a_branch_that_is_a_call_of_its_own(tmp_path: Path) -> None:
    tiny = PIPELINES["wan21"]
    pipe = tiny.build()
    found = first_step(hollow_pipeline(without_weights(pipe, tmp_path), torch.float32), tiny.inputs(pipe))
    assert (found.calls, found.trace.batch) == (2, 1)


def test_what_a_pipeline_does_not_take() -> None:
    with pytest.raises(ConfigurationError, match="StableDiffusionPipeline takes no 'num_frames': leave it out"):
        first_step(hollow_pipeline("demo-unet", torch.float32), {"num_frames": 3})


@pytest.mark.parametrize("name", TO_EXPERTS)
def test_a_denoiser_that_decides_by_its_weights(name: str, tmp_path: Path) -> None:
    tiny = PIPELINES[name]
    pipe = tiny.build()
    with pytest.raises(TraceError, match="reads numbers that depend on its weights to decide what it computes"):
        first_step(hollow_pipeline(without_weights(pipe, tmp_path), torch.float32), tiny.inputs(pipe))


def test_what_a_pipeline_needs_beside_a_prompt(tmp_path: Path) -> None:
    pipe = PIPELINES["sd15_img2img"].build()
    with pytest.raises(ConfigurationError, match="inputs="):
        first_step(hollow_pipeline(without_weights(pipe, tmp_path), torch.float32), {})


@pytest.mark.parametrize(
    ("name", "changed", "sentence"),
    [
        ("model_index.json", {"_class_name": "Painter"}, "is a Painter, which diffusers"),
        ("model_index.json", {"unet": ["diffusers", "Net"]}, "is a diffusers.Net, which is not installed"),
        ("model_index.json", {"unet": ["nets", "Net"]}, "is a nets.Net, which is not installed"),
        ("unet/config.json", {"block_out_channels": [4]}, "unet cannot be built from its configuration"),
    ],
)
def test_folders_that_cannot_be_built(name: str, changed: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    folder = good_folder(tmp_path / "pipeline")
    told = json.loads((folder / name).read_text(encoding="utf-8"))
    (folder / name).write_text(json.dumps(told | changed), encoding="utf-8")
    with pytest.raises(ModelError) as raised:
        hollow_pipeline(str(folder), torch.float32)
    assert sentence in str(raised.value) and "\n" not in str(raised.value)


def test_a_model_of_the_hub_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def offline(model: str, allow_patterns: list[str]) -> str:
        asked.append((model, allow_patterns))
        raise OSError("no network")

    monkeypatch.setattr("asyncdiff.planning.hollow.snapshot_download", offline)
    with pytest.raises(ModelError, match="configuration of some/model cannot be fetched from the hub: no network"):
        hollow_pipeline("some/model", torch.float32)
    assert asked == [("some/model", ["*.json", "*.txt", "*.model"])], "no weights are fetched"
