"""What a plan counts is what a run counts."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from asyncdiff import AsyncDiff, plan
from asyncdiff.loading import load_pipeline
from asyncdiff.model_files import DEMO_MODELS
from asyncdiff.planning.candidates import Candidate, Way
from asyncdiff.report import Report
from tests.tiny.narrow import save_narrow_demos

STEPS, WARMUP = 10, 3
BRIDGED, THREE = {"components": 2, "bridge": 2}, {"components": 3}
TOKENS = {"tokens": 2, "fresh": False}
FRESH = {"tokens": 2, "fresh": True, "bridge": 2}
HELD = 7 / 8  # of the versions that are counted: the report leaves out what is forecast


@functools.cache
def every_way(model: str) -> tuple[Candidate, ...]:
    return plan(model, 4, device="cpu", steps=STEPS, warmup=WARMUP).candidates


def planned(model: str, **way: Any) -> Candidate:
    plain = Way(guidance=1, components=1, stride=1, bridge=1, shard=False, warmup=WARMUP)
    return next(candidate for candidate in every_way(model) if candidate.way == replace(plain, **way))


def ran(model: str, **way: Any) -> Report:
    pipe: Any = load_pipeline(model, None, torch.device("cpu"))
    pipe.set_progress_bar_config(disable=True)
    with AsyncDiff(pipe, executor="local", warmup=WARMUP, **way) as async_diff:
        pipe("a picture", num_inference_steps=STEPS, output_type="latent", generator=torch.Generator().manual_seed(0))
    return async_diff.report()


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("narrow")
    save_narrow_demos(folder)
    return folder


def place_of(model: str, narrow: Path) -> str:
    """A demo model, or the folder of a narrow one."""
    return model if model in DEMO_MODELS else str(narrow / model)


@pytest.mark.parametrize("model", ["dit", *(pytest.param(name, marks=pytest.mark.whole) for name in DEMO_MODELS)])
def test_what_one_device_holds(model: str, narrow: Path) -> None:
    """With one device there is no other that could hold more or less."""
    model = place_of(model, narrow)
    report = ran(model, components=1, bridge=2)
    assert planned(model, bridge=2).memory.history * HELD == report.denoisers[0].held_bytes


@pytest.mark.parametrize(
    ("model", "way"),
    [
        ("unet", BRIDGED),
        ("dit", THREE),
        pytest.param("demo-unet", BRIDGED, marks=pytest.mark.whole),
        pytest.param("demo-unet", THREE, marks=pytest.mark.whole),
        pytest.param("demo-dit", BRIDGED, marks=pytest.mark.whole),
        pytest.param("demo-dit", THREE, marks=pytest.mark.whole),
    ],
    ids=str,
)
def test_what_is_sent(model: str, way: dict[str, int], narrow: Path) -> None:
    """Live edges as in the run's report, and a prediction to every other device in every step."""
    model = place_of(model, narrow)
    candidate, report = planned(model, **way), ran(model, **way)
    calls = report.denoisers[0].counts.steps // STEPS  # of a step: the DiT's guidance branches are calls of their own
    assert candidate.bytes_per_round == calls * report.denoisers[0].bytes_per_round
    prediction = 2 * 12 * 16 * 16 * 4  # two branches, twelve channels
    others = way["components"] - 1
    assert candidate.bytes_per_picture == report.bytes_sent + STEPS * others * prediction


@pytest.mark.parametrize(("way", "held"), [(TOKENS, 1), pytest.param(FRESH, HELD, marks=pytest.mark.whole)], ids=str)
def test_divided_tokens(way: dict[str, Any], held: float, narrow: Path) -> None:
    """What a device sends in a round, and what it holds; of keys that are held as differences all is in the report."""
    model = place_of("dit", narrow)
    candidate, report = planned(model, **way), ran(model, **way)
    (denoiser,) = report.denoisers
    calls = denoiser.counts.steps // STEPS
    assert candidate.bytes_per_round == calls * denoiser.bytes_per_round
    assert candidate.speedup <= 1.01 * denoiser.modelled_speedup
    # In one process both devices hold what they hold; among several, each also holds what others have of its own.
    assert candidate.memory.history * 2 * held == pytest.approx(denoiser.held_bytes, rel=0.05)
