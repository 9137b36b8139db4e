"""Parts of a pipeline that one rank has, and shares of a denoiser that are read from files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import asyncdiff
from asyncdiff.denoiser.elsewhere import Elsewhere
from asyncdiff.errors import ConfigurationError
from asyncdiff.loading import load_pipeline
from asyncdiff.plan.places import check_places, places_of
from tests.processes import run_ranks
from tests.tiny.narrow import load_narrow_demo, save_narrow_demo


def _drawn(pipe: Any, prompt: str = "a red apple") -> Any:
    generator = torch.Generator().manual_seed(0)
    return np.asarray(pipe(prompt, num_inference_steps=2, generator=generator).images[0])


def _held(module: nn.Module) -> tuple[int, int]:
    """Bytes that are here, and of all."""
    weights = list(module.parameters())
    return sum(each.nbytes for each in weights if not isinstance(each, Elsewhere)), sum(each.nbytes for each in weights)


def _generate(rank: int, model: str, settings: dict[str, Any]) -> dict[str, Any]:
    with asyncdiff.load(model, dtype="float32", **settings) as async_diff:
        pipe = async_diff.pipe
        pipe.set_progress_bar_config(disable=True)
        found: dict[str, Any] = {"pictures": [_drawn(pipe), _drawn(pipe)]}
        parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
        found["held"] = {name: _held(part) for name, part in parts.items()}
        async_diff.gather()
    found["after"] = _drawn(pipe)
    return found


@pytest.mark.parametrize(
    "model", ["narrow", *(pytest.param(name, marks=pytest.mark.whole) for name in ("demo-unet", "demo-dit"))]
)
def test_a_loaded_share_draws_the_plain_picture(model: str, tmp_path: Path) -> None:
    if model == "narrow":
        model = str(save_narrow_demo(tmp_path / "unet"))
    pipe: Any = load_pipeline(model, None, torch.device("cpu"))
    pipe.set_progress_bar_config(disable=True)
    plain = _drawn(pipe)
    found = run_ranks(2, _generate, model, {"components": 2, "warmup": 1000})
    for outcome in found:
        assert all(np.array_equal(picture, plain) for picture in (*outcome["pictures"], outcome["after"]))
    denoiser = "unet" if "unet" in found[0]["held"] else "transformer"
    for name, (_, whole) in found[0]["held"].items():
        here = [outcome["held"][name][0] for outcome in found]
        if name == denoiser:
            assert max(here) <= 0.56 * whole, "half of it, and what every device has"
        else:
            assert sorted(here) == [0, whole], f"{name} is on one rank"


def _misplaced(rank: int) -> str:
    pipe = load_narrow_demo()
    with pytest.raises(ConfigurationError) as caught:
        asyncdiff.AsyncDiff(pipe, components=2, shard=True, place={"vea": 0})
    assert _drawn(pipe).any(), "and the pipeline is what it was"
    return str(caught.value)


def test_a_part_that_is_not_there() -> None:
    for sentence in run_ranks(2, _misplaced):
        assert "the pipeline has no part 'vea'" in sentence
        assert "'vae'" in sentence


def _broken(rank: int) -> list[str]:
    """The VAE fails on its rank once the loop is over; the next picture is drawn all the same."""
    pipe = load_narrow_demo()
    pipe.set_progress_bar_config(disable=True)
    place = {"vae": 0, "text_encoder": 1}
    with asyncdiff.AsyncDiff(pipe, components=2, shard=True, place=place, timeout=20):
        _drawn(pipe)
        if rank == 0:
            pipe.vae.decoder.forward, plain = lambda *given, **named: 1 / 0, pipe.vae.decoder.forward
        with pytest.raises((ZeroDivisionError, asyncdiff.StoppedError)) as caught:
            _drawn(pipe)
        if rank == 0:
            pipe.vae.decoder.forward = plain
        return [str(caught.value), str(_drawn(pipe).shape)]


def test_a_part_that_fails_ends_the_generation_on_all_ranks() -> None:
    first, second = run_ranks(2, _broken, limit=60)
    assert first == ["division by zero", "(128, 128, 3)"]
    assert "rank 0: ZeroDivisionError" in second[0]
    assert second[1] == "(128, 128, 3)"


def _different(rank: int) -> tuple[str, Any]:
    """Prompts that differ, a part that the pipeline converts, and a pipeline that is left before its first use."""
    pipe = load_narrow_demo()
    pipe.set_progress_bar_config(disable=True)
    plain = _drawn(pipe)
    with asyncdiff.AsyncDiff(pipe, components=2, shard=True):
        pass
    assert np.array_equal(_drawn(pipe), plain), "nothing was let go yet"
    with asyncdiff.AsyncDiff(pipe, components=2, warmup=1000, shard=True, place={"vae": 0}, timeout=20):
        with pytest.raises((asyncdiff.RankMismatchError, asyncdiff.StoppedError)) as caught:
            _drawn(pipe, ["a red apple", "a rocket"][rank])
        pipe.vae.to(torch.float64).to(torch.float32)
        return str(caught.value), np.array_equal(_drawn(pipe), plain)


def test_ranks_that_use_a_part_differently_are_told() -> None:
    for sentence, is_plain in run_ranks(2, _different, limit=90):
        assert "text_encoder" in sentence
        assert is_plain


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 100)), st.integers(1, 4))
def test_parts_are_dealt_out_evenly(sizes: dict[str, int], ranks: int) -> None:
    found = places_of(sizes, ranks)
    assert found.keys() == sizes.keys()
    held = [sum(sizes[name] for name, place in found.items() if place == rank) for rank in range(ranks)]
    assert max(held) - min(held) <= max(sizes.values(), default=0)
    assert places_of(sizes, ranks, dict.fromkeys(sizes, None)) == {}


def test_places_that_are_none() -> None:
    for told in ([], {"vae": -1}, {"vae": 1.5}, {1: 1}):
        with pytest.raises(ConfigurationError, match="place"):
            check_places(told)
    with pytest.raises(ConfigurationError, match="no rank 2 in a group of 2"):
        places_of({"vae": 1}, 2, {"vae": 2})
