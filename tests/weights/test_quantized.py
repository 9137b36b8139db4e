"""Quantized weights, and those in half precision, divided among ranks: the same picture, and the form that they had."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from asyncdiff import AsyncDiff
from asyncdiff.denoiser.elsewhere import Elsewhere
from asyncdiff.errors import ConfigurationError, RankMismatchError
from asyncdiff.weights.sharing import Sharing
from tests.processes import run_ranks
from tests.runtime.test_chain import STEPS, split_of
from tests.tiny import PIPELINES, run
from tests.tiny.adapters import SMALL
from tests.tiny.narrow import load_narrow_demo
from tests.weights.quantizing import KINDS

TINY = {"sd3": PIPELINES["sd3"], "flux": PIPELINES["flux"], "unet": SMALL}
QUICK = [("sd3", "torchao int8"), ("unet", "gguf Q8_0")]
# Its last layers are dear enough to be one device's where they are known to be quantized, and all devices' where not.
OTHER_END = ("flux", "torchao int8 and inputs")


def _cases(*quick: tuple[str, str]) -> list[Any]:
    cases = [(name, kind) for name in TINY for kind in KINDS]
    return [case if case in quick else pytest.param(*case, marks=pytest.mark.whole) for case in cases]


def _quantized(name: str, kind: str) -> DiffusionPipeline:
    pipe = TINY[name].build()
    KINDS[kind](getattr(pipe, TINY[name].denoiser))
    return pipe


def _drawn(pipe: DiffusionPipeline, name: str) -> Tensor:
    inputs = TINY[name].inputs(pipe)
    dtype = pipe.dtype
    return run(
        pipe,
        TINY[name],
        **{
            key: value.to(dtype)
            for key, value in inputs.items()
            if isinstance(value, Tensor) and value.is_floating_point()
        },
    )


def _within(thing: Any, seen: set[int]) -> Iterator[Tensor]:
    """All tensors that can be reached from a module."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
    if isinstance(thing, dict):
        parts = list(thing.values())
    elif isinstance(thing, (list, tuple)):
        parts = list(thing)
    elif isinstance(thing, (Tensor, nn.Module)) or not (callable(thing) or isinstance(thing, type)):
        parts = list(getattr(thing, "__dict__", {}).values())
    else:
        parts = []
    for part in parts:
        yield from _within(part, seen)


def _bytes(module: nn.Module) -> int:
    """Of all memory that it holds on to."""
    found = (each for each in _within(module, set()) if not isinstance(each, Elsewhere))
    plain = [each for each in found if not hasattr(each, "__tensor_flatten__") and not each.is_meta]
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in plain}.values())


def _forms(module: nn.Module) -> dict[str, tuple[str, torch.dtype, torch.Size]]:
    """Of the weights that are here."""
    here = {name: weight for name, weight in module.named_parameters() if not isinstance(weight, Elsewhere)}
    return {name: (type(weight).__name__, weight.dtype, weight.shape) for name, weight in here.items()}


def _generate(rank: int, name: str, kind: str, settings: dict[str, Any], is_called_before: bool) -> dict[str, Any]:
    pipe = _quantized(name, kind)
    denoiser = getattr(pipe, TINY[name].denoiser)
    found: dict[str, Any] = {"forms before": _forms(denoiser)}
    if is_called_before:
        _drawn(pipe, name)
    found["bytes before"] = _bytes(denoiser)
    with AsyncDiff(pipe, components=2, shard=True, **settings) as async_diff:
        found["pictures"] = [_drawn(pipe, name), _drawn(pipe, name)]
        found["forms"], found["bytes"] = _forms(denoiser), _bytes(denoiser)
        async_diff.gather()
    found["forms after"], found["bytes after"] = _forms(denoiser), _bytes(denoiser)
    found["after"] = _drawn(pipe, name)
    return found


@pytest.mark.parametrize("is_called_before", [False, pytest.param(True, marks=pytest.mark.whole)])
@pytest.mark.parametrize(("name", "kind"), _cases(*QUICK))
def test_divided_weights_keep_their_form_and_draw_the_same(name: str, kind: str, is_called_before: bool) -> None:
    plain = _drawn(_quantized(name, kind), name)
    outcomes = run_ranks(2, _generate, name, kind, {"warmup": STEPS}, is_called_before)
    before = outcomes[0]["forms before"]
    assert {name for outcome in outcomes for name in outcome["forms"]} == before.keys()
    for outcome in outcomes:
        assert all(torch.equal(picture, plain) for picture in (*outcome["pictures"], outcome["after"]))
        assert outcome["bytes"] < 0.67 * outcome["bytes before"], "half of it, and what every device has"
        assert outcome["bytes after"] == outcome["bytes before"]
        if "nf4" not in kind:  # processors that compute with bfloat16 have it packed otherwise once it was used
            assert all(before[name] == form for name, form in outcome["forms"].items())
            assert outcome["forms after"] == before


@pytest.mark.parametrize(("name", "kind"), _cases())
def test_rounds_are_those_of_the_same_division_with_all_weights_everywhere(name: str, kind: str) -> None:
    pipe = _quantized(name, kind)
    settings = {"warmup": 1}
    with AsyncDiff(pipe, components=2, shard=True, executor="local", **settings) as async_diff:
        chained = _drawn(pipe, name)
        split = split_of(async_diff)
    with AsyncDiff(pipe, split=split, executor="local", **settings):
        assert torch.equal(_drawn(pipe, name), chained) or (name, kind) == OTHER_END
    assert not torch.equal(_drawn(pipe, name), chained), "there were rounds"
    for outcome in run_ranks(2, _generate, name, kind, settings, False):
        assert all(torch.equal(picture, chained) for picture in outcome["pictures"])


def _with_words(rank: int, is_divided: bool) -> np.ndarray:
    pipe: Any = load_narrow_demo()
    pipe.set_progress_bar_config(disable=True)
    KINDS["torchao int8"](pipe.text_encoder)
    settings: dict[str, Any] = {"components": 2, "warmup": STEPS, "place": {"text_encoder": 1}} if is_divided else {}
    with AsyncDiff(pipe, shard=is_divided, **settings) if is_divided else contextlib.nullcontext():
        return np.asarray(pipe("a red apple", num_inference_steps=2, generator=torch.manual_seed(0)).images[0])


@pytest.mark.whole
def test_a_quantized_text_encoder_is_on_one_rank() -> None:
    pytest.importorskip("torchao")
    plain = _with_words(0, False)
    assert all(np.array_equal(picture, plain) for picture in run_ranks(2, _with_words, True))


class _Odd(nn.Parameter):
    """Only its module knows what its numbers are."""


def test_what_was_quantized_on_a_gpu_is_to_be_moved_first() -> None:
    pipe = PIPELINES["sd3"].build()
    layer = pipe.transformer.transformer_blocks[0].attn.to_q
    layer.weight = torch.Tensor._make_subclass(_Odd, torch.empty(4, dtype=torch.int8, device="meta"))
    with pytest.raises(
        ConfigurationError, match=r"on the CPU, .* is on meta; what bitsandbytes has quantized on a GPU"
    ):
        Sharing(pipe, {"transformer": pipe.transformer}, torch.device("cpu"))


def _refused(rank: int) -> str:
    pipe = PIPELINES["sd3"].build()
    projection = pipe.transformer.pos_embed.proj
    projection.weight = torch.Tensor._make_subclass(_Odd, torch.ones(projection.weight.shape, dtype=torch.int8))
    with AsyncDiff(pipe, components=2, shard=True, timeout=20), pytest.raises(ConfigurationError) as caught:
        run(pipe, PIPELINES["sd3"])
    return str(caught.value)


def test_other_layers_with_weights_that_only_they_can_read_are_refused() -> None:
    for sentence in run_ranks(2, _refused):
        assert sentence.startswith("the weight 'pos_embed.proj.weight' is quantized (Conv2d)")
        assert "modules_to_not_convert" in sentence


def _different(rank: int) -> str:
    pipe = PIPELINES["sd3"].build()
    with torch.no_grad():
        pipe.transformer.transformer_blocks[0].attn.to_q.weight.add_(rank)
    KINDS["torchao int8"](pipe.transformer)
    with AsyncDiff(pipe, components=2, shard=True, timeout=20), pytest.raises(RankMismatchError) as caught:
        run(pipe, PIPELINES["sd3"])
    return str(caught.value)


def test_quantized_weights_that_differ_are_told() -> None:
    pytest.importorskip("torchao")
    for sentence in run_ranks(2, _different):
        assert "transformer_blocks.0.attn.to_q" in sentence
