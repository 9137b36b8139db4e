"""Every row of the table of bad input, given to the commands: exit code, one line, and nothing loaded or written."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from asyncdiff.commands.app import app
from asyncdiff.commands.terminal import BAD_USAGE
from tests.bad_input import (
    COMMANDS,
    DIRECTORIES,
    FILES,
    FILES_OF_SPLITS,
    FOLDERS,
    SPLITS,
    SPLITS_OF_A_UNET,
    UNREADABLE,
    UNWRITABLE,
    Folder,
    Split,
    Typed,
    good_folder,
)

IS_ROOT = os.geteuid() == 0
WITH_SPLIT = ("generate rocket", "evaluate", "inspect", "serve")
WITH_MODEL = ("serve", "generate rocket", "evaluate --prompts one.txt", "inspect")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return good_folder(tmp_path_factory.mktemp("good") / "pipeline")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which commands are typed."""
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        Path(name).write_bytes(content)
    for name in DIRECTORIES:
        Path(name).mkdir()
    Path(UNREADABLE).write_bytes(b"rocket\n")
    Path(UNREADABLE).chmod(0)
    Path(UNWRITABLE).mkdir(mode=0o500)
    return tmp_path


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a pipeline nor a metric is loaded, and no process is started."""

    def fail(*given: Any, **named: Any) -> None:
        pytest.fail("work was begun")

    for name in ("DiffusionPipeline.from_pretrained", "load_demo"):
        monkeypatch.setattr(f"asyncdiff.loading.{name}", fail)
    for name in (
        "launch.elastic_launch",
        "evaluation.metrics._load",
        "zoo.matrix.examine",
        "planning.planner.plan_for",
        "commands.serve._run",
    ):
        monkeypatch.setattr(f"asyncdiff.{name}", fail)


def written(place: Path) -> dict[str, bytes | None]:
    """All that lies in a folder."""
    found = sorted(place.rglob("*"))
    return {str(path): path.read_bytes() if path.is_file() and os.access(path, os.R_OK) else None for path in found}


def check_refused(typed: str, sentence: str, place: Path, by_typer: bool = False) -> Result:
    """That a command ends with the code of bad usage and one line that says why, and writes nothing."""
    before = written(place)
    done = CliRunner().invoke(app, shlex.split(typed))
    said = done.stderr
    if by_typer:  # in a box, broken into lines; before typer 0.17 with other marks
        said, sentence = (re.sub("[│:']", " ", text) for text in (said, sentence))
        said, sentence = (" ".join(text.split()) for text in (said, sentence))
    assert done.exit_code == BAD_USAGE, done.output
    assert sentence in said
    assert done.stdout == ""
    if not by_typer:
        assert done.stderr.count("\n") == 1 and done.stderr.startswith("Error: ")
    assert "Traceback" not in said
    assert written(place) == before
    return done


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize("row", COMMANDS, ids=str)
def test_commands(row: Typed, place: Path) -> None:
    if IS_ROOT and not row.as_root:
        pytest.skip("root may read and write everything")
    check_refused(row.command, row.sentence, place, row.by_typer)


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize("command", WITH_SPLIT)
@pytest.mark.parametrize("row", SPLITS, ids=str)
def test_files_with_splits(command: str, row: Split, place: Path) -> None:
    Path("split.json").write_text(json.dumps(row.value), encoding="utf-8")
    check_refused(f"{command} --split split.json", f"--split split.json: {row.sentence}", place)


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize("command", WITH_SPLIT)
@pytest.mark.parametrize("name", FILES_OF_SPLITS)
def test_files_that_hold_no_split(command: str, name: str, place: Path) -> None:
    content, sentence = FILES_OF_SPLITS[name]
    Path("split.json").write_bytes(content)
    check_refused(f"{command} --split split.json", f"--split split.json {sentence}", place)


@pytest.mark.parametrize("row", SPLITS_OF_A_UNET, ids=str)
def test_splits_of_another_denoiser(row: Split, place: Path) -> None:
    Path("split.json").write_text(json.dumps(row.value), encoding="utf-8")
    check_refused("inspect --split split.json", row.sentence, place)


def test_a_split_of_another_denoiser_is_refused_before_anything_is_drawn(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncdiff.evaluation.study.draw", lambda *given: pytest.fail("something was drawn"))
    Path("split.json").write_text('[["down_blocks"], ["blocks"]]', encoding="utf-8")
    check_refused("evaluate --split split.json", "'blocks' in the split is no module of the pipeline's 'unet'", place)


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize("command", WITH_MODEL)
@pytest.mark.parametrize("row", [row for row in FOLDERS if row.shows_early], ids=str)
def test_folders(command: str, row: Folder, place: Path, good: Path) -> None:
    row.spoil(Path(shutil.copytree(good, place / "spoilt")))
    check_refused(f"{command} --model spoilt", row.sentence, place)


@pytest.mark.parametrize("command", WITH_MODEL[2:])
@pytest.mark.parametrize("row", [row for row in FOLDERS if not row.shows_early], ids=str)
def test_folders_that_must_be_loaded_to_see(command: str, row: Folder, place: Path, good: Path) -> None:
    row.spoil(Path(shutil.copytree(good, place / "spoilt")))
    check_refused(f"{command} --model spoilt", row.sentence, place)
