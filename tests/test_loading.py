"""Weights are read from safetensors; from pickles only where that is allowed, with a warning."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from typer.testing import CliRunner

from asyncdiff.commands.app import app
from asyncdiff.commands.terminal import BAD_USAGE
from asyncdiff.errors import ModelError
from asyncdiff.loading import load_pipeline
from tests.bad_input import UNET_WEIGHTS, WORDS_WEIGHTS, good_folder, pickle_weights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def safe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return good_folder(tmp_path_factory.mktemp("safe") / "pipeline")


@pytest.fixture(scope="module")
def old(safe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as diffusers wrote it once: `safe_serialization=False`, and a text encoder of that time."""
    folder = tmp_path_factory.mktemp("old") / "pipeline"
    DiffusionPipeline.from_pretrained(safe).save_pretrained(folder, safe_serialization=False)
    if (folder / WORDS_WEIGHTS).is_file():  # transformers 5 writes nothing else
        pickle_weights(folder / WORDS_WEIGHTS)
    assert not list(folder.rglob("*.safetensors"))
    assert len(list(folder.rglob("*.bin"))) == 3
    return folder


class _Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self._trace,)


@pytest.fixture
def trapped(safe: Path, tmp_path: Path) -> Path:
    """A folder of safetensors, and beside them pickles that run code."""
    folder = Path(shutil.copytree(safe, tmp_path / "trapped"))
    for name in (UNET_WEIGHTS, "vae/diffusion_pytorch_model.safetensors"):
        (folder / name).with_suffix(".bin").write_bytes(pickle.dumps(_Trap(tmp_path / "sprung")))
    (folder / "text_encoder/pytorch_model.bin").write_bytes(pickle.dumps(_Trap(tmp_path / "sprung")))
    return folder


def weights(folder: Path, **given: Any) -> dict[str, torch.Tensor]:
    pipe = load_pipeline(str(folder), None, CPU, **given)
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}.{key}": value for name, part in modules.items() for key, value in part.state_dict().items()}


def test_old_checkpoints_are_read_where_it_is_allowed(safe: Path, old: Path) -> None:
    expected = weights(safe)
    found = weights(old, allow_pickle=True)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_and_refused_where_it_is_not(old: Path) -> None:
    with pytest.raises(ModelError, match=r"as a pickle only .* can run code .* --allow-pickle"):
        load_pipeline(str(old), None, CPU)


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_a_pickle_beside_safetensors_is_not_opened(trapped: Path, allow_pickle: bool) -> None:
    weights(trapped, allow_pickle=allow_pickle)
    assert not (trapped.parent / "sprung").exists()
    pickle.loads((trapped / UNET_WEIGHTS).with_suffix(".bin").read_bytes())
    assert (trapped.parent / "sprung").exists()  # it was a trap


@pytest.mark.parametrize("part", [UNET_WEIGHTS, WORDS_WEIGHTS])
def test_no_pickle_is_opened_unasked_even_if_the_folder_is_not_looked_at(
    part: str, safe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models from the hub are looked at by diffusers and transformers alone."""
    folder = Path(shutil.copytree(safe, tmp_path / "old"))
    pickle_weights(folder / part)
    monkeypatch.setattr("asyncdiff.loading.check_model", lambda *given: None)
    monkeypatch.setattr("torch.load", lambda *given, **named: pytest.fail("a pickle was opened"))
    with pytest.raises(ModelError, match="--allow-pickle"):
        load_pipeline(str(folder), None, CPU)


def test_the_demo_models_are_safetensors(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    real = DiffusionPipeline.from_pretrained

    def from_pretrained(*given: Any, **named: Any) -> Any:
        asked.append(named.get("use_safetensors"))
        return real(*given, **named)

    monkeypatch.setattr("asyncdiff.demo.DiffusionPipeline.from_pretrained", from_pretrained)
    load_pipeline("demo-unet", None, CPU)
    assert asked == [True]


def test_the_commands_say_why_it_is_dangerous(old: Path) -> None:
    refused = CliRunner().invoke(app, ["inspect", "--model", str(old)])
    assert refused.exit_code == BAD_USAGE
    assert "--allow-pickle" in refused.stderr and refused.stdout == ""
    done = CliRunner().invoke(app, ["inspect", "--model", str(old), "--allow-pickle", "--json"])
    assert done.exit_code == 0, done.output
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("Warning: --allow-pickle: weights in .bin files are pickles")
    assert "can run code that the file brings" in warning
    assert done.stdout.startswith("{")


@pytest.mark.parametrize("command", [["generate", "rocket"], ["evaluate", "--prompts", "prompts.txt"]])
def test_the_other_commands_pass_it_on(
    command: list[str], old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("rocket\n", encoding="utf-8")
    seen = []

    class StopError(Exception):
        pass

    def load(model: str, dtype: Any, device: Any, allow_pickle: bool, is_shared: bool) -> None:
        seen.append(allow_pickle)
        raise StopError

    def launch(job: Any) -> None:
        seen.append(job.allow_pickle)
        raise StopError

    monkeypatch.setattr("asyncdiff.launch.load_pipeline", load)
    monkeypatch.setattr("asyncdiff.launch.launch", launch)
    done = CliRunner().invoke(app, [*command, "--model", str(old), "--allow-pickle"])
    assert isinstance(done.exception, StopError)
    assert seen == [True]
    assert done.stderr.count("Warning: --allow-pickle") == 1
