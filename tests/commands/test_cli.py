"""The command line, from outside: processes, exit codes, pictures; and the measures of likeness by hand."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import asyncdiff
from asyncdiff.commands.app import app
from asyncdiff.commands.terminal import BAD_USAGE, WORKER_FAILED
from asyncdiff.evaluation.compare import psnr, side_by_side, ssim

COMMAND = [sys.executable, "-c", "from asyncdiff.commands.app import main; main()"]
LIMIT = 150  # seconds: far more than a run takes, far less than a hang
WIDE = {**os.environ, "COLUMNS": "160"}


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=LIMIT, env=WIDE)


def processes_of_session(session: int) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            state, _, _, owner = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(owner) == session and state != "Z":
            found.append(int(folder.name))
    return found


def test_generate_compares_two_processes_with_one(tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    done = run_command(
        "generate",
        "rocket",
        "--components",
        "2",
        "--steps",
        "8",
        "--warmup",
        "2",
        "--compare",
        "--out",
        str(out),
    )
    assert done.returncode == 0, done.stderr
    with Image.open(out) as picture:
        assert picture.width > 2 * 256 and picture.height > 256
    for words in ("seconds of the pipeline call", "speed-up", "PSNR", "SSIM", "4 parallel rounds", "rank 0 of 2"):
        assert words in done.stdout
    row = next(line for line in done.stdout.splitlines() if "seconds of the pipeline call" in line)
    assert all(float(cell) > 0 for cell in row.split("│")[2:4])
    assert done.stderr.count("8/8") == 2  # one bar for each of the two runs, none for the second rank


def test_generate_on_a_device_for_each_guidance_branch(tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    done = run_command("generate", "rocket", "--devices", "2", "--steps", "4", "--warmup", "2", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert out.is_file()
    for words in ("asyncdiff G=2 N=1 S=1 w=2", "rank 0 of 2", "4 calls divided along the batch", "on 2 devices"):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--devices", "2", "--components", "3"], "use --devices 3, or --components 2"),
        (["--devices", "2", "--components", "2", "--stride", "2"], "use --devices 3, or --components 1, or --stride 1"),
        (["--devices", "2", "--stride", "3"], "use --devices 4 or more"),
        (["--devices", "3", "--guidance-devices", "2"], "use --devices 4"),
        (
            ["--devices", "6", "--guidance-devices", "2", "--components", "2"],
            "2 guidance-devices * (components + stride - 1) = 4 devices: use --devices 4, or --components 3",
        ),
        (["--out", "picture.nonsense"], "is no picture format"),
        (["--max-error", "0"], "--max-error must be a number above 0"),
        (["--bridge", "2", "--target-speedup", "3"], "give one of them"),
        (["--timeout", "0"], "--timeout must be a number above 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_starts(
    arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncdiff.commands.generate.launch", lambda job: pytest.fail("a process was started"))
    result = CliRunner().invoke(app, ["generate", "rocket", *arguments])
    assert result.exit_code == BAD_USAGE
    assert sentence in result.stderr


def test_a_failing_worker_ends_the_run_with_its_traceback(tmp_path: Path) -> None:
    done = run_command("generate", "rocket", "--devices", "2", "--model", str(tmp_path))
    assert done.returncode == WORKER_FAILED
    assert "it has no model_index.json" in done.stderr
    assert "Traceback" in done.stderr and "load_pipeline" in done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_interrupting_leaves_no_process(tmp_path: Path) -> None:
    arguments = ["generate", "rocket", "--devices", "2", "--steps", "1000", "--out", str(tmp_path / "out.png")]
    command = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True, env=WIDE
    )
    try:
        until = time.monotonic() + LIMIT
        while len(processes_of_session(command.pid)) < 4:  # itself, two workers and their resource tracker
            assert time.monotonic() < until and command.poll() is None
            time.sleep(0.2)
        time.sleep(4)
        command.send_signal(signal.SIGINT)
        _, errors = command.communicate(timeout=20)
        assert command.returncode == 130
        assert b"Interrupted (SIGINT)" in errors
        until = time.monotonic() + 5
        while processes_of_session(command.pid):
            assert time.monotonic() < until, "processes remain"
            time.sleep(0.1)
    finally:
        for process in processes_of_session(command.pid):
            os.kill(process, signal.SIGKILL)


def test_inspect_prints_json_that_agrees_with_the_report() -> None:
    result = CliRunner().invoke(app, ["inspect", "--components", "3", "--json"])
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)["denoisers"]
    assert found["denoiser"] == "unet"
    assert 0.9 < sum(unit["share"] for unit in found["units"]) <= 1
    assert found["components"][1]["reads"] and found["components"][1]["reads"][0]["bytes"] > 0
    assert [forecast["devices"] for forecast in found["forecasts"]] == [3, 4, 5]

    pipe = asyncdiff.load_demo("unet")
    with asyncdiff.AsyncDiff(pipe, components=3, warmup=1, executor="local", method="paper") as attached:
        pipe("rocket", num_inference_steps=2)
        (denoiser,) = attached.report().denoisers
    assert [part["units"] for part in found["components"]] == [list(units) for units in denoiser.components]
    assert [part["share"] for part in found["components"]] == pytest.approx(denoiser.shares)
    assert found["forecasts"][0]["bytes_per_round"] == denoiser.bytes_per_round


def test_inspect_refuses_more_components_than_units() -> None:
    result = CliRunner().invoke(app, ["inspect", "--components", "500"])
    assert result.exit_code == BAD_USAGE
    assert "too few for components=500" in result.stderr


def test_inspect_names_what_cannot_be_loaded(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["inspect", "--model", str(tmp_path)])
    assert result.exit_code == WORKER_FAILED
    assert "no model_index.json" in result.stderr.replace("\n", "")


def test_identical_pictures() -> None:
    picture = np.random.default_rng(0).random((20, 30, 3))
    assert psnr(picture, picture) == math.inf
    assert ssim(picture, picture) == pytest.approx(1)


def test_a_constant_offset() -> None:
    dark, light = np.full((16, 16, 3), 0.25), np.full((16, 16, 3), 0.75)
    assert psnr(dark, light) == pytest.approx(20 * math.log10(1 / 0.5))
    c1 = 0.01**2  # without variance only the luminance term is left
    assert ssim(dark, light) == pytest.approx((2 * 0.25 * 0.75 + c1) / (0.25**2 + 0.75**2 + c1))


def test_ssim_is_the_papers_formula() -> None:
    generator = np.random.default_rng(1)
    first = generator.random((17, 14, 3))
    second = np.clip(first + 0.2 * generator.standard_normal(first.shape), 0, 1)
    y, x = np.mgrid[-5:6, -5:6]
    weights = np.exp(-(x**2 + y**2) / (2 * 1.5**2))
    weights /= weights.sum()
    values = []
    for channel in range(3):
        for top in range(17 - 10):
            for left in range(14 - 10):
                window = np.s_[top : top + 11, left : left + 11, channel]
                a, b = first[window], second[window]
                mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
                variance_a = (weights * (a - mean_a) ** 2).sum()
                variance_b = (weights * (b - mean_b) ** 2).sum()
                covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
                luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
                structure = (2 * covariance + 0.03**2) / (variance_a + variance_b + 0.03**2)
                values.append(luminance * structure)
    assert ssim(first, second) == pytest.approx(np.mean(values), abs=1e-9)


def test_pictures_that_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="differ in size"):
        psnr(np.zeros((16, 16, 3)), np.zeros((16, 17, 3)))
    with pytest.raises(ValueError, match="at least 11x11"):
        ssim(np.zeros((16, 8, 3)), np.zeros((16, 8, 3)))


def test_small_pictures_are_enlarged_side_by_side() -> None:
    red, blue = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    sheet = side_by_side([red, blue], ["sequential", "asyncdiff"])
    assert sheet.getpixel((sheet.width // 4, 100)) == (255, 0, 0)
    assert sheet.getpixel((3 * sheet.width // 4, 100)) == (0, 0, 255)
    assert sheet.width > 512 and sheet.height > 256
