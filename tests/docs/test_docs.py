"""Every code block and every command of the docs runs as it stands there; every path and link leads somewhere."""

import contextlib
import io
import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import save_file
from sybil.document import Document
from sybil.parsers.markdown import CodeBlockParser
from typer.testing import CliRunner

from asyncdiff import load_demo
from asyncdiff.commands.app import app
from asyncdiff.demo import prompt_agreement
from asyncdiff.model_files import demo_folder
from tests.docs import stand_in
from tests.processes import RankError, run_ranks
from tests.tiny.narrow import save_narrow_demo, save_narrow_demos
from tests.tiny.saved import save, save_pictures
from tests.workers.drawing import save_adapter

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")),
        ROOT / "src/asyncdiff/checkpoints/README.md",
        ROOT / "integrations/comfyui/README.md",
        *ROOT.glob("docs/*.md"),
    ]
)
STAND_IN = Path(__file__).with_name("stand_in.py")
SCRIPTS = Path(sys.executable).parent
SECONDS = 300

# The rest is made by a person: what is shown, not run.
LANGUAGES = {"python", "bash", ""}


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of one language on a page."""
    parser = CodeBlockParser(language, evaluator=lambda example: None)
    return [str(example.parsed) for example in Document.parse(str(page), parser).examples()]


def python_blocks(attaching: bool) -> list[Any]:
    """Those that attach AsyncDiff to a pipeline, for several ranks, or the others.

    What asks a service is run by tests/serving, which has one. What starts a Ray of its own is left to the long run:
    tests/workers has one for all of its tests.
    """
    return [
        pytest.param(
            text,
            id=f"{page.relative_to(ROOT)}-{number}",
            marks=[pytest.mark.whole] if "Workers(" in text else [],
        )
        for page in PAGES
        for number, text in enumerate(blocks(page, "python"))
        if ("AsyncDiff(" in text or "asyncdiff.load(" in text) == attaching and "import OpenAI" not in text
    ]


def commands(page: Path) -> list[str]:
    """The commands in a page's code blocks."""
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    bare = (re.sub(r"\s+#.*|^#.*", "", line).strip() for line in lines)
    return [" ".join(command.split()) for command in bare if command]


def mentions(page: Path) -> list[str]:
    """The commands in a page's text, which may be told without all that they need."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.findall(r"`((?:make|asyncdiff|pip install|python -m (?:benchmarks|training)[\w.]*)(?: [^`\n]+)?)`", text)


EVERY_COMMAND = sorted({command for page in PAGES for command in commands(page)})
EVERY_MENTION = sorted({mention for page in PAGES for mention in mentions(page)} - {*EVERY_COMMAND, "asyncdiff"})
TORCHRUN = re.compile(
    r"torchrun (--nnodes=2 )?--nproc-per-node=\d+( --node-rank=[01] --master-addr=[\d.]+ --master-port=\d+)? script\.py"
)

CURL = re.compile(
    r"curl -s (-N )?http://127\.0\.0\.1:8000/(v1/images/generations -H .+ -d .+|v1/models|health|metrics)"
)
RAY = re.compile(r"ray start (--head --port=6379|--address=[\d.]+:6379)")


def test_there_is_something_to_run() -> None:
    assert python_blocks(attaching=True) and python_blocks(attaching=False)
    assert "asyncdiff models" in EVERY_MENTION
    assert {"make demo", "make test", "torchrun --nproc-per-node=2 script.py", "asyncdiff evaluate"} <= {*EVERY_COMMAND}
    for page in PAGES:
        fences = re.findall(r"^```(\w*)", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert {*fences} <= LANGUAGES, f"{page.name} has blocks that nobody runs"


def run_blocks(texts: Sequence[str], model: Path, ranks: int, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run blocks under torchrun, as a script each."""
    folders = _write_scripts(texts, folder)
    options = [f"--nproc-per-node={ranks}", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    options += ["--local-addr=localhost"]  # several tests may run at the same time
    command = [str(SCRIPTS / "torchrun"), *options, str(STAND_IN), str(model), *map(str, folders)]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=SECONDS)


def _write_scripts(texts: Sequence[str], folder: Path) -> list[Path]:
    """A folder for each text, with the text as a script in it."""
    folders = [folder / str(number) for number in range(len(texts))]
    for text, own in zip(texts, folders, strict=True):
        own.mkdir()
        (own / "script.py").write_text(text, encoding="utf-8")
    return folders


def environment() -> dict[str, str]:
    """That of the tests, with the commands of this environment first, and a terminal wide enough for the reports."""
    return {**os.environ, "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "200"}


WORLDS = [(2, "unet"), (4, "dit"), (4, "unet"), (2, "dit"), (3, "unet")]


def test_all_python_under_torchrun(tmp_path: Path) -> None:
    """On two ranks in one session, with denoisers that are quickly called.

    Of torchrun there is its environment alone, in processes that need not import everything anew; with torchrun itself
    every block is run by the long run.
    """
    texts = [block.values[0] for block in python_blocks(attaching=True)]
    save_narrow_demos(tmp_path)
    folders = _write_scripts(texts, tmp_path)
    for done in run_ranks(2, _on_a_rank, tmp_path / "unet", tmp_path, folders, limit=SECONDS, joined=False):
        assert not isinstance(done, RankError), done
    _check_pictures(tmp_path, 2, len(texts))
    _check_noise((tmp_path / "stdout").read_text(), (tmp_path / "stderr").read_text(), 2, len(texts))


@pytest.mark.whole
@pytest.mark.parametrize(("ranks", "demo"), WORLDS)
@pytest.mark.parametrize("text", python_blocks(attaching=True))
def test_python_under_torchrun(ranks: int, demo: str, text: str, tmp_path: Path) -> None:
    """Without a generator, two calls in a row: all ranks give the same picture, and another one in every call."""
    done = run_blocks([text], demo_folder(demo), ranks, tmp_path)
    assert done.returncode == 0, done.stderr
    _check_pictures(tmp_path, ranks, 1, "a red apple")
    _check_noise(done.stdout, done.stderr, ranks, 1)


def _say_into(folder: Path) -> None:
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)


def _on_a_rank(rank: int, model: Path, folder: Path, scripts: Sequence[Path]) -> None:
    """What torchrun would start; what is said goes to files."""
    _say_into(folder)
    for script in scripts:
        stand_in.main(model, script)
    sys.stdout.flush()


def _alone(rank: int, text: str, folder: Path) -> None:
    """What `python` would start: with nothing in the environment that torchrun sets."""
    _say_into(folder)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]
    os.chdir(folder)
    exec(compile(text, "script.py", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize(
    ("ranks", "is_small"), [(4, True), *(pytest.param(ranks, False, marks=pytest.mark.whole) for ranks in (2, 4))]
)
def test_the_readmes_python(ranks: int, is_small: bool, tmp_path: Path) -> None:
    """Of torchrun there is its environment alone, in processes that need not import everything anew.

    With a small denoiser on two ranks, it is run with the blocks of all pages.
    """
    (text,) = (block.values[0] for block in python_blocks(attaching=True) if block.id.startswith("README"))
    scripts = _write_scripts([text], tmp_path)
    model = save_narrow_demo(tmp_path / "unet") if is_small else demo_folder("unet")
    for done in run_ranks(ranks, _on_a_rank, model, tmp_path, scripts, joined=False):
        assert not isinstance(done, RankError), done
    _check_pictures(tmp_path, ranks, 1, None if is_small else "a red apple")
    _check_noise((tmp_path / "stdout").read_text(), (tmp_path / "stderr").read_text(), ranks, 1)


def _check_pictures(tmp_path: Path, ranks: int, blocks: int, shown: str | None = None) -> None:
    for number in range(blocks):
        own = tmp_path / str(number)
        calls = [[(own / f"rank{rank}-{call}.png").read_bytes() for rank in range(ranks)] for call in (0, 1)]
        for pictures in calls:
            assert len({*pictures}) == 1, "the ranks' pictures differ"
        assert calls[0] != calls[1]
        images = [Image.open(own / f"rank0-{call}.png") for call in (0, 1)]
        assert shown is None or prompt_agreement(images, [shown] * 2) == 100


@pytest.mark.parametrize("text", python_blocks(attaching=False))
def test_python_alone(text: str, tmp_path: Path) -> None:
    """In a process that need not import everything anew."""
    (done,) = run_ranks(1, _alone, text, tmp_path, limit=SECONDS, joined=False)
    assert not isinstance(done, RankError), done


def _check_noise(stdout: str, stderr: str, ranks: int, blocks: int) -> None:
    """One bar for each call, one report for each block, and nothing else."""
    # On a crowded machine rounds may take longer than steps in full, of which a warning tells, and rightly.
    warned = r".*UserWarning: on this device parallel rounds of .* took longer .*\n(?: +advise\(.*\n)?"
    stderr = re.sub(warned, "", stderr)
    # The one thing that diffusers itself says on a machine without torchvision, when it is imported.
    said = [line for line in stderr.splitlines() if "requires torchvision" not in line]
    bars = [line for line in said if re.match(r"\s*\d+%\|", line)]
    assert [line for line in said if line.strip() and line not in bars] == []
    assert [sum(f"| 0/{steps} [" in line for line in bars) for steps in (50, 12)] == [blocks, blocks], stderr
    assert stdout.count("executor distributed") == blocks
    assert stdout.count(f"rank 0 of {ranks}") == blocks


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_a_command_is_understood(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name, its options and its values; what would draw, or measure for hours, is cut short."""
    if command.startswith("asyncdiff "):
        _prepare(tmp_path)
        monkeypatch.chdir(tmp_path)
        _cut_short(monkeypatch)
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, result.output
    elif command.startswith("torchrun "):
        assert TORCHRUN.fullmatch(command), "only scripts made of the page's own code block can be run"
    elif command.startswith("ray "):  # tests/workers has a Ray of two nodes
        assert RAY.fullmatch(command)
    elif command.startswith("ln "):  # tests/integrations links it
        assert "integrations/" in command
    elif command.startswith("curl "):  # tests/serving has a service that is asked so
        assert CURL.fullmatch(command)
    else:
        _check_mention(command, monkeypatch)


@pytest.mark.parametrize("mention", EVERY_MENTION)
def test_a_mention_is_of_something(mention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _check_mention(mention, monkeypatch)


def _check_mention(mention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether there is such a command, with such options."""
    name, *arguments = shlex.split(mention)
    if name == "make":
        done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
    elif name == "asyncdiff":
        shown = CliRunner().invoke(app, [arguments[0], "--help"], env={"COLUMNS": "300"})
        assert shown.exit_code == 0
        assert [word for word in arguments if word.startswith("--") and word not in shown.output] == []
    elif name == "python":
        _check_module(arguments, monkeypatch)
    elif name == "pip":
        extra = re.fullmatch(r"asyncdiff\[(\w+)\]", arguments[1])
        assert arguments[1] == "." or (
            extra and re.search(rf"^{extra[1]} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
        )
    else:
        raise AssertionError(f"nobody knows how to try {mention!r}")


# Folders of the docs' commands: the tiny pipeline that is one, and its class.
SMALL = {
    "my-wan": ("wan", "WanPipeline"),
    "my-svd": ("svd", "StableVideoDiffusionPipeline"),
    "my-img2img": ("img2img", "StableDiffusionImg2ImgPipeline"),
    "my-inpainting": ("inpaint", "StableDiffusionInpaintPipeline"),
    "my-controlnet": ("controlnet", "StableDiffusionControlNetPipeline"),
    "my-stable-audio": ("stable_audio", "StableAudioPipeline"),
}


def _prepare(folder: Path) -> None:
    """What the commands of the docs take for granted."""
    (folder / "keys.txt").write_text("a key that nobody guesses\n", encoding="utf-8")
    save_file({"of.no.pipeline": torch.zeros(1)}, folder / "style.safetensors")
    (folder / "prompts.txt").write_text("rocket\nred apple\n", encoding="utf-8")
    pipeline = folder / "my-pipeline"
    pipeline.mkdir()
    (pipeline / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}', encoding="utf-8")
    save_pictures(folder)
    for name, (_, kind) in SMALL.items():
        (folder / name / "controlnet").mkdir(parents=True)
        index = {"_class_name": kind, **({"controlnet": ["diffusers", "Any"]} if "ControlNet" in kind else {})}
        (folder / name / "model_index.json").write_text(json.dumps(index), encoding="utf-8")


def _cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the commands come as far as the work itself."""

    def done(*given: Any, **named: Any) -> Any:
        raise typer.Exit(0)

    for place in (
        "launch.launch",
        "commands.evaluate._draw_locally",
        "evaluation.study.draw_on_processes",
        "zoo.matrix.examine",
        "planning.planner.plan_for",
        "commands.serve._run",
        "commands.generate.ask",
        "loading.load_pipeline",
    ):
        monkeypatch.setattr(f"asyncdiff.{place}", done)


def _check_module(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of this repository that has the options."""
    flag, module, *given = arguments
    assert flag == "-m"
    options = [word for word in given if word.startswith("--")]
    words = list(itertools.takewhile(lambda word: not word.startswith("--"), given))
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(sys, "argv", [module, *words, "--help"])
    with contextlib.redirect_stdout(io.StringIO()) as written, pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code in (0, None)
    assert [option for option in options if option not in written.getvalue()] == []


LASTING = [command for command in EVERY_COMMAND if command.startswith("asyncdiff serve")]
ENDING = [
    command
    for command in EVERY_COMMAND
    if command.startswith("asyncdiff ") and command not in LASTING and "--server" not in command
]


@pytest.mark.whole
@pytest.mark.parametrize("command", LASTING)
def test_a_service_comes_up_and_ends(command: str, tmp_path: Path) -> None:
    _prepare(tmp_path)
    load_demo("unet").save_pretrained(tmp_path / "my-pipeline")
    save_adapter(tmp_path, load_demo("unet"))
    (tmp_path / "pytorch_lora_weights.safetensors").rename(tmp_path / "style.safetensors")
    with subprocess.Popen(
        shlex.split(command),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as service:
        assert service.stdout is not None
        told = service.stdout.readline()  # an error, if it does not come up
        service.send_signal(signal.SIGINT)
        assert service.wait(SECONDS) == 130, told + service.stdout.read()
        assert "is served at http://" in told


@pytest.mark.whole
@pytest.mark.parametrize("command", ENDING)
def test_a_command_runs(command: str, tmp_path: Path) -> None:
    _prepare(tmp_path)
    load_demo("unet").save_pretrained(tmp_path / "my-pipeline")
    for name, (tiny, _) in SMALL.items():
        if name in command:
            shutil.rmtree(tmp_path / name)
            save(tiny, tmp_path / name)
    small = re.sub(r"--size \d+x\d+", "--size 32x32", re.sub(r"--frames \d+", "--frames 5", command))
    done = subprocess.run(
        small, cwd=tmp_path, env=environment(), shell=True, capture_output=True, text=True, timeout=3600
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.whole
def test_the_demo_is_drawn(tmp_path: Path) -> None:
    done = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, timeout=30)
    command = next(line for line in done.stdout.splitlines() if "generate" in line)
    shown = command.replace(".venv/bin/", f"{SCRIPTS}/")
    assert subprocess.run(shown, cwd=tmp_path, env=environment(), shell=True, timeout=SECONDS).returncode == 0
    assert Image.open(tmp_path / "out.png").width > 512


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    paths = re.findall(r"`((?:tests|docs|src|benchmarks|training|demo_models)/[\w./-]+)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []
