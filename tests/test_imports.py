"""The contracts that `make check` holds imports to would notice an import that is turned round."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("benchmarks", "demo_models", "integrations", "training")


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code and its settings, to be spoilt."""
    folder = tmp_path_factory.mktemp("copied")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.safetensors", "results", "work"))
    shutil.copytree(ROOT / "src/asyncdiff", folder / "src/asyncdiff", ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": f"{folder / 'src'}:{folder}", "PATH": str(Path(sys.executable).parent)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def contracts(folder: Path) -> subprocess.CompletedProcess[str]:
    return run(folder, "lint-imports", "--no-cache")


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("src/asyncdiff/plan/mesh.py", "import asyncdiff.runtime.clock", "asyncdiff.plan.mesh -> asyncdiff.runtime"),
        ("src/asyncdiff/api.py", "import asyncdiff.commands.app", "asyncdiff.api -> asyncdiff.commands.app"),
        ("src/asyncdiff/planning/memory.py", "import asyncdiff.loading", "planning.memory is not allowed to import"),
        ("src/asyncdiff/runtime/stream.py", "import asyncdiff.runtime.lane", "asyncdiff.runtime.stream -> asyncdiff"),
        ("benchmarks/attach.py", "import training.loop", "benchmarks.attach -> training.loop"),
        ("integrations/comfyui/nodes.py", "import asyncdiff.api", "integrations.comfyui.nodes -> asyncdiff.api"),
    ],
)
def test_an_import_that_is_turned_round_is_noticed(copied: Path, module: str, line: str, broken: str) -> None:
    path = copied / module
    before = path.read_text(encoding="utf-8")
    path.write_text(f"{before}\n{line}\n", encoding="utf-8")
    try:
        done = contracts(copied)
    finally:
        path.write_text(before, encoding="utf-8")
    assert done.returncode == 1, done.stdout + done.stderr
    assert broken in done.stdout


def test_as_they_are_they_hold(copied: Path) -> None:
    done = contracts(copied)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 kept, 0 broken" in done.stdout


def test_what_is_decided_knows_nothing_of_processes(copied: Path) -> None:
    for room, returns in (("plan", 1), ("denoiser", 1), ("runtime", 1), ("exchange", 0)):
        path = copied / "src/asyncdiff" / room / "wrong.py"
        path.write_text("import torch.distributed\n\nprint(torch.distributed)\n", encoding="utf-8")
        done = run(copied, "ruff", "check", "--no-cache", "--select", "TID251", str(path))
        path.unlink()
        assert done.returncode == returns, done.stdout + done.stderr
