"""What a plan counts is what a run counts."""

import functools
from typing import Any

import pytest
import torch

from asyncdiff import AsyncDiff, load_demo, plan
from asyncdiff.model_files import DEMO_MODELS
from asyncdiff.planning.candidates import Candidate
from asyncdiff.report import Report

STEPS, WARMUP = 10, 3
BRIDGED, THREE = {"components": 2, "bridge": 2}, {"components": 3}
HELD = 7 / 8  # of the versions that are counted: the report leaves out what is forecast


@functools.cache
def every_way(model: str) -> tuple[Candidate, ...]:
    return plan(model, 4, device="cpu", steps=STEPS, warmup=WARMUP).candidates


def planned(model: str, **way: Any) -> Candidate:
    told = {"guidance": 1, "components": 1, "stride": 1, "bridge": 1, "shard": False, "warmup": WARMUP, **way}
    return next(candidate for candidate in every_way(model) if vars(candidate.way) == told)


def ran(model: str, **way: Any) -> Report:
    pipe = load_demo("unet" if model == "demo-unet" else "dit")
    pipe.set_progress_bar_config(disable=True)
    with AsyncDiff(pipe, executor="local", warmup=WARMUP, **way) as async_diff:
        pipe("a picture", num_inference_steps=STEPS, output_type="latent", generator=torch.Generator().manual_seed(0))
    return async_diff.report()


@pytest.mark.parametrize("model", [pytest.param(DEMO_MODELS[0], marks=pytest.mark.whole), *DEMO_MODELS[1:]])
def test_what_one_device_holds(model: str) -> None:
    """With one device there is no other that could hold more or less."""
    report = ran(model, components=1, bridge=2)
    assert planned(model, bridge=2).memory.history * HELD == report.denoisers[0].held_bytes


@pytest.mark.parametrize(
    ("model", "way"),
    [
        ("demo-unet", BRIDGED),
        pytest.param("demo-unet", THREE, marks=pytest.mark.whole),
        pytest.param("demo-dit", BRIDGED, marks=pytest.mark.whole),
        ("demo-dit", THREE),
    ],
    ids=str,
)
def test_what_is_sent(model: str, way: dict[str, int]) -> None:
    """Live edges as in the run's report, and a prediction to every other device in every step."""
    candidate, report = planned(model, **way), ran(model, **way)
    calls = report.denoisers[0].counts.steps // STEPS  # of a step: the DiT's guidance branches are calls of their own
    assert candidate.bytes_per_round == calls * report.denoisers[0].bytes_per_round
    prediction = 2 * 12 * 16 * 16 * 4  # two branches, twelve channels
    others = way["components"] - 1
    assert candidate.bytes_per_picture == report.bytes_sent + STEPS * others * prediction
