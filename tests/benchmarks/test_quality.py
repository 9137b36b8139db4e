"""The quality study: its points, its measures, what it keeps and how it judges."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from asyncdiff.plan.method import PAPER
from benchmarks.quality import __main__ as study
from benchmarks.quality import claims, measuring, table
from benchmarks.quality.drawing import SCHEDULERS as BUILT
from benchmarks.quality.drawing import draw_sequentially, load, prompt_numbers
from benchmarks.quality.measuring import Record, measure
from benchmarks.quality.settings import (
    MODELS,
    OURS,
    PAPER_SETTINGS,
    PARTS,
    SCHEDULERS,
    STEPS,
    Setting,
    base,
    both,
    points,
)
from benchmarks.quality.statistics import gain
from benchmarks.quality.store import Store
from demo_models.classifier import captions, load_classifier, truth

SMALL = base("unet", method=PAPER, steps=4, warmup=2, prompts=2)


def record(setting: Setting, decibels: float, spread: float = 1.0, agreement: float = 100.0, seed: int = 0) -> Record:
    """A made-up result whose PSNR scatters around a mean."""
    values = decibels + spread * np.random.default_rng(seed).standard_normal(setting.prompts)
    return Record(
        setting=setting,
        modelled_speedup=float(setting.devices * setting.bridge),
        full_steps={"warm-up": setting.warmup},
        squared_error=(10 ** (-values / 10)).tolist(),
        latent_error=[0.1] * setting.prompts,
        similarity=[0.9] * setting.prompts,
        distance=[0.1] * setting.prompts,
        agreement=agreement,
        agreement_sequential=100.0,
        frechet=0.1,
        frechet_sequential=0.1,
        step_error=[0.0, 0.1],
        seconds=1.0,
        machine={},
    )


def filled(folder: Path, ours: float, paper: float, **others: float) -> Store:
    """Results of the paper's five settings with both methods."""
    store = Store(folder)
    for n, s in PAPER_SETTINGS:
        theirs, own = both(base("unet", components=n, stride=s, prompts=32))
        store.add(record(theirs, paper))
        store.add(record(own, ours, seed=1, **others))
    return store


def verdicts(store: Store, words: str) -> set[str]:
    return {claim.verdict for claim in claims.check(store, ["unet"]) if words in claim.text}


def test_every_point_is_there_once() -> None:
    every = points(MODELS, PARTS, 128)
    assert len({setting.regardless_of_prompts for setting in every}) == len(every)
    assert {setting.prompts for setting in every} == {32, 64, 128}


@pytest.mark.parametrize("model", MODELS)
def test_factors_are_those_of_the_study(model: str) -> None:
    every = points([model], PARTS, 128)  # type: ignore[list-item]
    start = base(model)  # type: ignore[arg-type]
    for method in (PAPER, OURS):
        own = [setting for setting in every if setting.method == method and not setting.taylorseer]
        sampled = {(s.steps, s.scheduler) for s in own if s.warmup == start.warmup}
        assert sampled >= {(steps, name) for steps in STEPS for name in SCHEDULERS[start.model]}
        assert {s.guidance_scale for s in own} == {1.0, 3.0, 7.5}
        assert {s.components for s in own} >= {2, 3, 4, 8}
        assert {s.stride for s in own} == {1, 2, 3}
        assert {s.warmup for s in own} >= {2, 3, 5, 9}
    assert {s.bridge for s in every} >= {1, 2, 3, 4}
    assert {s.guidance for s in every} == {1, 2}
    assert any(s.components == 1 and s.bridge > 1 for s in every)
    assert all((s.warmup - 1) % s.stride == 0 for s in every)
    assert {s.taylorseer is not None for s in every} == ({True, False} if model == "dit" else {False})


def test_one_factor_at_a_time() -> None:
    start = base("unet")
    for setting in points(["unet"], ["factors"], 128):
        changed = {name for name in ("steps", "scheduler", "guidance_scale", "components", "stride", "warmup", "bridge")
                   if getattr(setting, name) != getattr(start, name)}  # fmt: skip
        assert len(changed - {"steps"}) <= 1 or changed in ({"stride", "warmup"}, {"components", "bridge"})


def test_settings_survive_being_written() -> None:
    for setting in points(MODELS, PARTS, 128):
        assert Setting.read(setting.written()) == setting


def test_fewer_prompts_are_some_of_the_many() -> None:
    assert set(prompt_numbers(32)) <= set(prompt_numbers(128))
    assert len(set(prompt_numbers(128))) == 128


@pytest.mark.parametrize("model", MODELS)
def test_every_sampler_can_be_built(model: str) -> None:
    for name in SCHEDULERS[model]:  # type: ignore[index]
        pipe = load(model, name)  # type: ignore[arg-type]
        pipe.scheduler.set_timesteps(4)
    assert {name for names in SCHEDULERS.values() for name in names} == BUILT.keys()


def test_a_picture_does_not_depend_on_its_batch() -> None:
    together, alone = draw_sequentially(SMALL), draw_sequentially(replace(SMALL, batch=1))
    torch.testing.assert_close(together.pictures, alone.pictures, rtol=0, atol=1e-4)
    torch.testing.assert_close(together.traced[-1], together.latents, rtol=0, atol=0)


def test_a_point_is_measured_kept_and_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = measure(SMALL, tmp_path / "references")
    assert measured.step_error[:2] == [0.0, 0.0]
    assert measured.step_error[2] > 0
    assert all(0 < error < 0.1 for error in measured.squared_error)
    assert measured.full_steps == {"warm-up": 2}
    assert measured.modelled_speedup > 1
    store = Store(tmp_path)
    store.add(measured)
    store.add(measured)
    assert len((tmp_path / "unet.jsonl").read_text().splitlines()) == 1
    assert Store(tmp_path).records[0].decibels == pytest.approx(measured.decibels, abs=0.01)

    runs: list[list[Setting]] = []
    other = replace(SMALL, components=3)
    monkeypatch.setattr(study, "points", lambda *_: [SMALL, other])
    monkeypatch.setattr(study, "run", lambda missing, *_: runs.append(missing) or [])
    for arguments in ((), ("--again",)):
        monkeypatch.setattr(sys, "argv", ["quality", "--results", str(tmp_path), *arguments])
        assert study.main() == 0
    assert runs == [[other], [SMALL, other]]
    assert "2 points, 1 to measure" in capsys.readouterr().out


def test_the_classifier_knows_the_pictures() -> None:
    predicted = load_classifier()(truth()).argmax(dim=1)
    assert predicted.tolist() == list(range(len(captions())))


def test_worse_pictures_are_farther_away() -> None:
    pictures = truth()[::4].repeat_interleave(2, -1).repeat_interleave(2, -2)
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    seen = measuring.features(pictures)
    levels = [pictures, *((pictures + level * noise).clamp(0, 1) for level in (0.05, 0.2))]
    distances = [np.mean(measuring.distances(measuring.features(level), seen)) for level in levels]
    frechet = [measuring.frechet(measuring.features(level), seen) for level in levels]
    similarity = [np.mean(measuring.similarities(level[:4], pictures[:4])) for level in levels]
    assert distances[0] == 0 < distances[1] < distances[2] < 1
    assert frechet[0] == pytest.approx(0, abs=1e-6)
    assert frechet[0] < frechet[1] < frechet[2]
    assert similarity[0] == pytest.approx(1) and similarity[0] > similarity[1] > similarity[2]


def test_frechet_distance_of_known_distributions() -> None:
    draws = np.random.default_rng(0).standard_normal((4000, 3))
    draws = (draws - draws.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(draws, rowvar=False))).T
    offset = np.array([1.0, 2.0, 0.0])
    # |offset|² + Σ (σ₁ − σ₂)², for deviations of 1 and 3 in three directions
    assert measuring.frechet(draws, 3 * draws + offset) == pytest.approx(5 + 3 * 4)


def test_gain_is_paired() -> None:
    theirs, ours = both(base("unet", prompts=32))
    found = gain(record(ours, 50, spread=10), record(theirs, 43, spread=10))
    assert found.paired.value == pytest.approx(7)
    assert found.paired.high - found.paired.low < 1e-9
    assert found.pooled == pytest.approx(7)
    noisy = gain(record(ours, 50, seed=1), record(theirs, 43)).paired
    assert noisy.low < noisy.value < noisy.high
    fewer = gain(record(replace(ours, prompts=16), 50), record(theirs, 43))
    assert fewer.pictures == 16


@pytest.mark.parametrize(("ours", "verdict"), [(50, claims.SHOWN), (45, claims.NOT_SHOWN), (46, claims.NOT_SHOWN)])
def test_six_decibels_are_shown_or_not(tmp_path: Path, ours: float, verdict: str) -> None:
    assert verdicts(filled(tmp_path, ours, 40), "at least 6 dB") == {verdict}


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    judged = claims.check(Store(tmp_path), MODELS)
    assert {claim.verdict for claim in judged} == {claims.NOT_MEASURED}


def test_lost_agreement_is_seen(tmp_path: Path) -> None:
    words = "prompt agreement"
    assert verdicts(filled(tmp_path / "kept", 50, 40, agreement=99.6), words) == {claims.SHOWN}
    assert verdicts(filled(tmp_path / "lost", 50, 40, agreement=99.0), words) == {claims.NOT_SHOWN}


def test_tables_take_the_place_of_older_ones(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- claims -->\nold\n<!-- /claims -->\nafter\n")
    store = filled(tmp_path, 50, 40)
    judged = claims.markdown(claims.check(store, ["unet"]))
    for _ in range(2):
        table.insert(page, {"claims": judged, "points": table.markdown(store)})
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("before\n<!-- claims -->\n| model |")
    assert text.count("<!-- points -->") == text.count("after") == 1
    assert len(text.split("<!-- points -->")[1].strip().splitlines()) == 2 + len(store.records) + 1


@pytest.mark.whole
def test_plots_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.quality import plots

    monkeypatch.setattr(plots, "grid", lambda model: plots.sheet([("row", truth()[:2])], ["one", "two"]))
    plots.draw_all(filled(tmp_path, 50, 40), ["unet", "dit"], tmp_path)
    names = ("speedup", "steps", "knobs-unet", "knobs-dit", "grid-unet", "grid-dit")
    for name in names:
        with Image.open(tmp_path / f"quality-{name}.png") as picture:
            assert picture.width > 200


def test_one_device_is_compared_where_it_is_as_fast(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for setting, decibels, speedup in (
        (base("unet", components=1, bridge=2, prompts=32), 55, 1.8),
        (base("unet", components=1, bridge=4, prompts=32), 40, 2.9),
        (base("unet", components=2, prompts=32), 50, 1.85),
        (base("unet", components=4, prompts=32), 50, 2.9),
        (base("unet", components=8, prompts=32), 50, 5.0),
    ):
        store.add(replace(record(setting, decibels), modelled_speedup=speedup))
    figures = next(claim.figures for claim in claims.check(store, ["unet"]) if "one device" in claim.text)
    closer, not_closer, beyond = figures.split(". ")
    assert "ours N=4" in closer and "ours N=2" in not_closer and "ours N=8" in beyond
