"""Weights of a variant ("fp16") in files of their own are read part by part, like any."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import asyncdiff
from asyncdiff.denoiser.elsewhere import Elsewhere
from asyncdiff.errors import ModelError
from asyncdiff.loading import hollow_parts, load_pipeline
from tests.processes import run_ranks
from tests.tiny.narrow import load_narrow_demo


def _saved(folder: Path, shard_size: str) -> Path:
    """A pipeline whose denoiser has a variant with other weights, and whose other parts have none."""
    pipe = load_narrow_demo()
    pipe.save_pretrained(folder)
    with torch.no_grad():
        for weight in pipe.unet.parameters():
            weight.mul_(1.5)
    pipe.unet.save_pretrained(folder / "unet", variant="fp16", max_shard_size=shard_size)
    return folder


def _drawn(pipe: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    picture = pipe("a red apple", num_inference_steps=2, generator=torch.manual_seed(0)).images[0]
    return np.asarray(picture)


def _generate(rank: int, folder: str) -> tuple[np.ndarray, float]:
    with asyncdiff.load(folder, variant="fp16", components=2, warmup=1000) as async_diff:
        assert all(isinstance(weight, Elsewhere) for weight in async_diff.pipe.unet.parameters()), "nothing is read"
        picture = _drawn(async_diff.pipe)
        weights: list[nn.Parameter] = list(async_diff.pipe.unet.parameters())
    here = sum(weight.nbytes for weight in weights if not isinstance(weight, Elsewhere))
    return picture, here / sum(weight.nbytes for weight in weights)


@pytest.mark.parametrize("shard_size", ["10GB", "20KB"])
def test_what_is_not_read_yet_is_that_of_the_variant(shard_size: str, tmp_path: Path) -> None:
    folder = _saved(tmp_path, shard_size)
    expected = load_pipeline(str(folder), None, torch.device("cpu"), variant="fp16").unet.state_dict()
    hollow = hollow_parts(folder, torch.float32, "fp16")["unet"]
    assert all(torch.equal(weight.read(), expected[name]) for name, weight in hollow.named_parameters())


@pytest.mark.whole
@pytest.mark.parametrize("shard_size", ["10GB", "20KB"])
def test_the_files_of_a_variant_are_read_by_parts(shard_size: str, tmp_path: Path) -> None:
    folder = _saved(tmp_path, shard_size)
    names = {path.name for path in (folder / "unet").glob("*fp16*")}
    assert (len(names) > 2) == (shard_size == "20KB"), "there is an index then"
    plain = _drawn(load_pipeline(str(folder), None, torch.device("cpu"), variant="fp16"))
    ordinary = _drawn(load_pipeline(str(folder), None, torch.device("cpu")))
    assert not np.array_equal(plain, ordinary)
    for picture, share in run_ranks(2, _generate, str(folder)):
        assert np.array_equal(picture, plain)
        assert share < 0.6


def test_a_variant_of_all_parts_and_nothing_else(tmp_path: Path) -> None:
    load_narrow_demo().save_pretrained(tmp_path, variant="fp16")
    assert not (tmp_path / "unet/diffusion_pytorch_model.safetensors").exists()
    (tmp_path / "unet/diffusion_pytorch_model.bin").write_bytes(b"a pickle that is not looked at")
    expected = load_narrow_demo().unet.state_dict()
    with asyncdiff.load(str(tmp_path), variant="fp16", components=2, executor="local") as async_diff:
        found = async_diff.pipe.unet.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize("model", ["demo-unet", "saved"])
def test_a_variant_that_no_part_has(model: str, tmp_path: Path) -> None:
    name = str(_saved(tmp_path, "10GB")) if model == "saved" else model
    with pytest.raises(ModelError, match=r"no weights of the variant 'ema': no part of it has a file like .*\.ema\."):
        asyncdiff.load(name, variant="ema", executor="local")


def test_a_file_of_a_variant_that_is_broken_is_named(tmp_path: Path) -> None:
    folder = _saved(tmp_path, "10GB")
    (folder / "unet/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match=r"diffusion_pytorch_model\.fp16\.safetensors is no safetensors file"):
        asyncdiff.load(str(folder), variant="fp16", executor="local")
