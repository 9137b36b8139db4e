"""The evaluation: its settings and metrics, the command in one process, a series on two, the page."""

import base64
import inspect
import io
import math
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPConfig, CLIPModel
from typer.testing import CliRunner, Result

from asyncdiff import AsyncDiff, Method
from asyncdiff.commands.app import app
from asyncdiff.commands.terminal import BAD_USAGE, WORKER_FAILED
from asyncdiff.errors import ConfigurationError
from asyncdiff.evaluation.compare import likeness, pixels, psnr, ssim
from asyncdiff.evaluation.metrics import ClipFeatures, Metric, mean_and_half_interval
from asyncdiff.evaluation.page import describe, difference, render, summary
from asyncdiff.evaluation.study import (
    Account,
    Evaluation,
    Picture,
    Series,
    Study,
    draw_locally,
    draw_setting_on_processes,
    judge,
)
from asyncdiff.evaluation.written import compared, devices_of, parse_settings, title_of
from asyncdiff.loading import load_pipeline
from asyncdiff.made.media import Made
from asyncdiff.request.words import Request
from asyncdiff.settings import Settings
from tests.processes import run_ranks
from tests.tiny.narrow import save_narrow_demo

CPU = torch.device("cpu")
TWO = Settings(components=2, warmup=2, cooldown=0, timeout=60)
QUICK = ["--steps", "4", "--warmup", "2", "--cooldown", "0"]

settings = st.builds(
    Settings,
    components=st.integers(1, 9),
    stride=st.integers(1, 9),
    warmup=st.integers(1, 99),
    bridge=st.none() | st.integers(1, 9),
    max_error=st.none() | st.floats(0.001, 9),
    cooldown=st.none() | st.integers(0, 9),
    resync_every=st.none() | st.integers(1, 9),
    guidance=st.none() | st.integers(1, 9),
    method=st.sampled_from(["paper", "forecast"]),
    time_shift=st.booleans(),
)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["evaluate", *arguments], env={"COLUMNS": "200"})


def pictures_in(page: str) -> list[Image.Image]:
    return [
        Image.open(io.BytesIO(base64.b64decode(data)))
        for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    ]


@given(settings, settings)
def test_a_setting_written_out_is_read_again(setting: Settings, base: Settings) -> None:
    text = ", ".join(f"{option}={str(getattr(setting, knob.name)).lower()}" for option, knob in compared().items())
    assert parse_settings(text, base) == setting


def test_what_is_not_named_is_as_in_the_chosen_setting() -> None:
    base = Settings(components=3, warmup=7, time_shift=True)
    assert parse_settings("method=paper,stride=2", base) == Settings(3, 2, 7, method="paper", time_shift=True)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is no NAME=VALUE"),
        ("components", "'components' is no NAME=VALUE"),
        ("parts=2", "among components, stride, warmup, guidance-devices, tokens, fresh, time-shift, bridge, "),
        ("components=two", "must be a whole number, not 'two'"),
        ("components=-1", "must be a whole number, not '-1'"),
        ("guidance-devices=0", "guidance-devices must be a whole number of at least 1, not 0"),
        ("max-error=little", "max-error must be a number, not 'little'"),
        ("max-error=0", "max-error must be a number above 0, not 0"),
        ("bridge=2,target-speedup=3", "give one of them"),
        ("method=magic", "method must be 'paper' or 'forecast' or a Method, not 'magic'"),
        ("time-shift=1", "must be true or false, not '1'"),
        ("stride=2,stride=3", "stride is given twice"),
    ],
)
def test_settings_that_cannot_be_read(text: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(sentence)):
        parse_settings(text, TWO)


def test_arguments_are_those_of_asyncdiff() -> None:
    taken = inspect.signature(AsyncDiff).parameters
    asked = Settings(bridge=2, guidance=2, max_error=0.2).arguments()
    assert asked.keys() == taken.keys() - {"pipe"}
    assert asked["bridge"] == 2 and asked["guidance"] == 2 and asked["method"] == "forecast"
    assert devices_of(Settings(components=3, stride=2, guidance=2)) == 8


def test_tokens_and_components_are_both_told() -> None:
    both, alone = Settings(tokens=2, components=3, guidance=2), Settings(tokens=2)
    assert (devices_of(both), devices_of(alone)) == (12, 2)
    assert "P=2 N=3 w=3" in title_of(both) and "P=2 w=3" in title_of(alone)
    assert "2 parts of the tokens, 3 components, 3 warm-up" in describe(both) and "component" not in describe(alone)
    assert title_of(Settings(tokens=2, method=Method(bits=8))) == "fitted 8 bits P=2 w=3 fresh"


def test_the_interval_is_students() -> None:
    assert mean_and_half_interval([3.0]) == (3.0, None)
    mean, half = mean_and_half_interval([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.303 / math.sqrt(3)))
    many = [float(number % 2) for number in range(32)]  # 31 degrees of freedom: 2.0395
    assert mean_and_half_interval(many)[1] == pytest.approx(2.0395 * statistics.stdev(many) / math.sqrt(32), rel=1e-4)


def test_psnr_and_ssim_are_those_of_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional.image")
    generator = np.random.default_rng(0)
    first = generator.random((40, 33, 3))
    second = np.clip(first + 0.1 * generator.standard_normal(first.shape), 0, 1)
    tensors = [torch.from_numpy(values).permute(2, 0, 1)[None] for values in (first, second)]
    expected = functional.peak_signal_noise_ratio(*tensors, data_range=1.0)
    assert psnr(first, second) == pytest.approx(float(expected), abs=1e-4)
    expected = functional.structural_similarity_index_measure(*tensors, data_range=1.0)
    assert ssim(first, second) == pytest.approx(float(expected), abs=1e-4)


def test_clip_features_are_what_torchmetrics_takes() -> None:
    clip_score = pytest.importorskip("torchmetrics.multimodal.clip_score")
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**small, "image_size": 16, "patch_size": 8}
    text = {**small, "vocab_size": 9, "bos_token_id": 0, "eos_token_id": 1, "max_position_embeddings": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=4)).eval()

    def processor(**given: object) -> dict[str, torch.Tensor]:
        if "images" in given:
            return {"pixel_values": torch.full((1, 3, 16, 16), 0.5)}
        return {"input_ids": torch.tensor([[0, 3, 1]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}

    score = clip_score.CLIPScore(model_name_or_path=lambda: (ClipFeatures(model), processor))
    score.update(torch.zeros(1, 3, 16, 16, dtype=torch.uint8), ["a fox"])
    assert 0 <= float(score.compute()) <= 100


def test_a_report_is_written_in_one_process(tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "report.html"
    prompts.write_text("red apple\n\n  rocket \n", encoding="utf-8")
    quick = [*QUICK, "--model", str(save_narrow_demo(tmp_path / "model"))]
    done = run(*quick, "--prompts", str(prompts), "--compare-with", "warmup=4", "--out", str(out))
    assert done.exit_code == 0, done.output
    page = out.read_text(encoding="utf-8")
    found = [pixels(picture) for picture in pictures_in(page)]
    assert len(found) == 2 * (1 + 2 * 2)  # of each prompt: the sequential one; two settings, each with a difference
    sequential, other, changes, same, nothing = found[:5]
    assert sequential.shape == (128, 128, 3)
    assert (sequential == same).all() and not nothing.any()
    assert math.isfinite(psnr(sequential, other)) and changes.any()
    for words in (
        "forecast N=2 S=1 w=2 cooldown 0",
        "2 full, 2 rounds",
        "4 full",
        "identical",
        "measure no speed-up",
        "red apple",
    ):
        assert words in page
    assert "speed-up, measured" not in page and "accelerates nothing" in page
    row = next(line for line in done.stdout.splitlines() if "forecast N=2 S=1 w=2 cooldown 0" in line)
    assert len(re.findall(r"\d+\.\d+", row)) == 6  # PSNR, interval, worst, SSIM, seconds, modelled speed-up


def test_missing_packages_and_weights_are_told_before_anything_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_package(device: torch.device) -> Metric:
        raise ModuleNotFoundError("No module named 'torchvision'")

    def no_network(device: torch.device) -> Metric:
        raise OSError("Name or service not known")

    monkeypatch.setattr("asyncdiff.evaluation.metrics.METRICS", {"lpips": no_package, "clip": no_network})
    monkeypatch.setattr("asyncdiff.launch.open_pipeline", lambda *given: pytest.fail("work was begun"))
    for name, sentence in (("lpips", "pip install 'asyncdiff[evaluate]'"), ("clip", "is there a network?")):
        done = run("--metrics", name)
        assert done.exit_code == BAD_USAGE
        assert sentence in done.stderr


def test_a_setting_that_fails_leaves_the_others(tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "report.html"
    prompts.write_text("rocket\n", encoding="utf-8")
    quick = [*QUICK, "--model", str(save_narrow_demo(tmp_path / "model"))]
    done = run(*quick, "--prompts", str(prompts), "--compare-with", "components=500", "--out", str(out))
    assert done.exit_code == WORKER_FAILED
    assert "1 of 2 settings failed" in done.stderr and "too few for components=500" in done.stderr
    page = out.read_text(encoding="utf-8")
    assert "failed:" in page and "too few for components=500" in page
    assert len(pictures_in(page)) == 3


def test_an_interrupt_ends_with_130_and_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("asyncdiff.evaluation.study.draw", interrupted)
    done = run("--out", str(tmp_path / "report.html"))
    assert done.exit_code == 130 and "Interrupted (SIGINT)" in done.stderr
    assert not list(tmp_path.iterdir())


def on_rank(rank: int, function: Any, task: Any) -> Any:
    return function(task)


@pytest.mark.whole
def test_two_processes_draw_what_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    # The launcher itself is tested with `generate`; these processes start much faster.
    monkeypatch.setattr(
        "asyncdiff.evaluation.study.run_processes",
        lambda count, function, task: run_ranks(count, on_rank, function, task, joined=False),
    )
    study = Study("demo-unet", None, ("rocket", "red apple"), (0,), Request(steps=4), (TWO,))
    series = draw_setting_on_processes(study, study.settings[0])
    sequential, local = draw_locally(load_pipeline(study.model, None, CPU), study, CPU)
    assert len(series.pictures) == len(local.pictures) == 2
    for there, here, plain in zip(series.pictures, local.pictures, sequential.pictures, strict=True):
        assert likeness(there.made, here.made).decibels > 60
        assert there.account and here.account and there.seconds > 0
        assert there.account.calls == here.account.calls
        assert (here.account.calls["full"], here.account.calls["rounds"]) == (2, 2)
        assert there.account.bytes_sent >= here.account.bytes_sent > 0
        assert plain.account is None
    (_, row) = summary(judge(study, False, CPU, [sequential, series], []))
    assert row.speedup.endswith("×")


def made_up(prompt: str, size: int) -> Evaluation:
    grey = Image.new("RGB", (size, size), (100, 100, 100))
    light = Image.new("RGB", (size, size), (104, 100, 100))
    account = Account({"full": 3, "rounds": 1, "stored": 0}, {"unet": 1.5}, 3 * 2**20)
    study = Study("some/model", "float16", (prompt,), (0, 1), Request(steps=4, guidance=7.5), (TWO,))
    metric = Metric("size", "Size", "bigger is bigger", True, lambda originals, pictures, prompts: len(prompts))
    sequential = Series(None, (Picture(Made((grey,)), 2.0, None), Picture(Made((grey,)), 2.0, None)))
    series = Series(
        TWO, (Picture(Made((light,)), 1.0, account), Picture(Made((grey,)), 1.0, account)), ("asyncdiff warns",)
    )
    return judge(study, False, CPU, [sequential, series], [metric])


def test_the_page_says_what_was_measured() -> None:
    page = render(made_up('<b>"fox" & co', 64))
    assert "<b>&#34;" not in page and "&lt;b&gt;&#34;fox&#34; &amp; co" in page
    for words in (
        "2.00×",
        "1.50×",
        "(1 of 2 identical)",
        "asyncdiff warns",
        "Size",
        "7.5",
        "float16",
        "3 full, 1 rounds",
    ):
        assert words in page
    assert "multiplied by 32" in page  # 4 of 255, as much as is not cut off
    assert "http" not in page  # nothing is loaded from elsewhere


def test_large_pictures_are_compressed() -> None:
    page = render(made_up("fox", 300))
    assert "data:image/jpeg" in page and "data:image/png" not in page


def test_the_difference_is_amplified() -> None:
    first, second = Image.new("RGB", (4, 4), (10, 20, 200)), Image.new("RGB", (4, 4), (12, 20, 100))
    assert difference(first, second, 4).getpixel((0, 0)) == (8, 0, 255)
