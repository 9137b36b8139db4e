"""The command line: processes, exit codes, pictures."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from typer.testing import CliRunner, Result

import asyncdiff
from asyncdiff import launch
from asyncdiff.commands.app import app
from asyncdiff.commands.terminal import BAD_USAGE, WORKER_FAILED
from tests.bad_input import FOLDERS, SPLITS_OF_A_UNET, good_folder
from tests.forked import fork_processes
from tests.tiny.narrow import save_narrow_demo
from tests.tiny.stable_diffusion import tiny_unet

COMMAND = [sys.executable, "-c", "from asyncdiff.commands.app import main; main()"]
LIMIT = 300  # seconds: far more than a run takes, far less than a hang
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


@pytest.fixture
def run_forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command in this process. Those that it starts have all imports behind them; they print into files."""
    fork_processes(monkeypatch, logs_specs=DefaultLogsSpecs(log_dir=str(tmp_path / "logs"), redirects=Std.ERR))
    return lambda *arguments: CliRunner().invoke(app, arguments)


def as_on_a_terminal(function: Any, task: Any, folder: str) -> None:
    """A process that has bars. (Its environment is that of the server that it is forked from.)"""
    os.environ["FORCE_COLOR"] = "1"
    launch._bring_home(function, task, folder)


def said(folder: Path, rank: int) -> str:
    """What a rank of every run has written where its bar is drawn."""
    return "".join(path.read_text() for path in folder.glob(f"logs/**/{rank}/stderr.log"))


def test_generate_compares_two_processes_with_one(
    tmp_path: Path, run_forked: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncdiff.launch._bring_home", as_on_a_terminal)
    out = tmp_path / "out.png"
    model = str(save_narrow_demo(tmp_path / "model"))
    settings = ["--model", model, "--components", "2", "--steps", "4", "--warmup", "2", "--cooldown", "0"]
    done = run_forked("generate", "rocket", *settings, "--compare", "--out", str(out))
    assert done.exit_code == 0, done.stderr
    with Image.open(out) as picture:
        assert picture.width > 2 * 256 and picture.height > 256
    made, what, compared = done.stdout.splitlines()
    assert made.startswith(f"{out}: 4 steps on 2 devices in ")
    assert what.startswith("unet on 2 components: 2 calls in full, 2 rounds; ")
    numbers = re.fullmatch(
        r"against the .* one device, ([\d.]+) s: ([\d.]+)x as fast, PSNR ([\d.]+) dB, SSIM .*", compared
    )
    assert numbers and all(float(number) > 0 for number in numbers.groups())
    assert "4/4" in said(tmp_path, 0) and said(tmp_path, 1) == ""


def test_generate_on_a_device_for_each_guidance_branch(tmp_path: Path, run_forked: Callable[..., Result]) -> None:
    out = tmp_path / "out.png"
    model = str(save_narrow_demo(tmp_path / "model"))
    options = ["--model", model, "--devices", "2", "--steps", "4", "--warmup", "2", "--report", "--out", str(out)]
    done = run_forked("generate", "rocket", *options)
    assert done.exit_code == 0, done.stderr
    assert out.is_file()
    for words in ("asyncdiff G=2 N=1 S=1 w=2", "rank 0 of 2", "4 calls divided along the batch", "on 2 devices"):
        assert words in done.stdout


@pytest.mark.whole
def test_generate_from_outside(tmp_path: Path) -> None:
    """As users start it, everything imported anew."""
    out = tmp_path / "out.png"
    done = run_command("generate", "rocket", "--components", "2", "--steps", "8", "--compare", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert out.is_file()
    assert (len(done.stdout.splitlines()), done.stderr) == (3, "")


def test_a_failing_worker_ends_the_run_with_its_traceback(
    tmp_path: Path, run_forked: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    get_temp_dir()  # of the server of processes, which stays where it is
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    folder = good_folder(tmp_path / "pipeline", unet=tiny_unet(cross_attention_dim=24))  # the text encoder has 16
    done = run_forked("generate", "rocket", "--devices", "2", "--model", str(folder))
    assert done.exit_code == WORKER_FAILED
    assert not list((tmp_path / "temporary").iterdir()), "torch's files of errors are taken away"
    assert "Traceback" in done.stderr and "in call_pipeline" in done.stderr
    assert "shapes cannot be multiplied" in done.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--model", "spoilt"], "weights of another shape than the configuration beside them says"),
        (["--split", "split.json"], "attn1.to_q' in the split lies inside the unit"),
    ],
    ids=str,
)
def test_what_only_a_worker_can_see_is_refused_in_one_line(
    options: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_forked: Callable[..., Result],
) -> None:
    monkeypatch.chdir(tmp_path)
    if "spoilt" in options:
        (late,) = (row for row in FOLDERS if row.name == "weights of another shape")
        late.spoil(good_folder(tmp_path / "spoilt"))
    else:
        Path("split.json").write_text(json.dumps(SPLITS_OF_A_UNET[-1].value), encoding="utf-8")
    done = run_forked("generate", "rocket", "--devices", "2", *options)
    assert done.exit_code == BAD_USAGE
    assert sentence in done.stderr
    said = [line for line in done.stderr.splitlines() if "asyncdiff ━" not in line]  # the bar of the rehearsal
    assert len(said) == 1 and said[0].startswith("Error: ")
    assert not Path("out.png").exists()


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
        time.sleep(2)
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


def test_a_split_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "split.json"
    file.write_text('[["down_blocks", "mid_block"], ["up_blocks"]]', encoding="utf-8")
    model = str(save_narrow_demo(tmp_path / "model"))
    result = CliRunner().invoke(app, ["inspect", "--model", model, "--split", str(file), "--json"])
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)["denoisers"]
    rooms = [{unit.partition(".")[0] for unit in part["units"]} for part in found["components"]]
    assert rooms == [{"down_blocks", "mid_block"}, {"up_blocks"}]
    out = tmp_path / "report.html"
    quick = [
        "--model",
        model,
        "--steps",
        "3",
        "--warmup",
        "2",
        "--cooldown",
        "0",
        "--prompts",
        str(tmp_path / "prompts.txt"),
    ]
    (tmp_path / "prompts.txt").write_text("rocket", encoding="utf-8")
    done = CliRunner().invoke(app, ["evaluate", *quick, "--split", str(file), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "N=2 S=1 w=2" in out.read_text(encoding="utf-8")
