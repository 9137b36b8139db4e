"""Every row of the table of bad input, given to Python: the right error, in one sentence, and nothing changed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from asyncdiff import AsyncDiff, ConfigurationError, Method, ModelError, SplitError
from asyncdiff.errors import AsyncDiffError
from asyncdiff.loading import load_pipeline
from asyncdiff.settings import Settings
from tests.bad_input import (
    ENVIRONMENTS,
    FOLDERS,
    INDIVISIBLE,
    PIPES,
    SETTINGS,
    SPLITS,
    SPLITS_IN_PYTHON,
    SPLITS_OF_A_UNET,
    Folder,
    Setting,
    Split,
    good_folder,
)
from tests.tiny import PIPELINES, run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipe() -> Any:
    return PIPELINES["sd3"].build()


@pytest.fixture(scope="module")
def unet_pipe() -> Any:
    return PIPELINES["sd15"].build()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return good_folder(tmp_path_factory.mktemp("good") / "pipeline")


def attributes(pipe: Any) -> list[Any]:
    """What hooks would leave on a pipeline."""
    parts = [part for part in pipe.components.values() if part is not None]
    modules = [module for part in parts if isinstance(part, nn.Module) for module in part.modules()]
    return [{name: id(value) for name, value in vars(owner).items()} for owner in (pipe, *parts, *modules)]


def check_refused(error: type[Exception], sentence: str, call: Callable[[], Any]) -> None:
    """That a call ends in exactly this kind of error, in one line."""
    with pytest.raises(AsyncDiffError) as raised:
        call()
    assert type(raised.value) is error
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("row", SETTINGS, ids=str)
def test_settings(row: Setting, pipe: Any) -> None:
    before = attributes(pipe)
    check_refused(row.error, row.sentence, lambda: Settings(**row.arguments))
    check_refused(row.error, row.sentence, lambda: AsyncDiff(pipe, **row.arguments))
    assert attributes(pipe) == before


def test_a_name_that_is_no_setting(pipe: Any) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'model_n'"):
        AsyncDiff(pipe, model_n=2)


@pytest.mark.parametrize("row", [*SPLITS, *SPLITS_IN_PYTHON], ids=str)
def test_splits(row: Split, pipe: Any) -> None:
    before = attributes(pipe)
    check_refused(SplitError, row.sentence, lambda: Settings(split=row.value))
    check_refused(SplitError, row.sentence, lambda: AsyncDiff(pipe, split=row.value))
    assert attributes(pipe) == before


def test_a_split_and_another_number_of_components(pipe: Any) -> None:
    sentence = "the split has 2 lists of module names, but components=3"
    check_refused(SplitError, sentence, lambda: AsyncDiff(pipe, components=3, split=[["a"], ["b"]]))


@pytest.mark.parametrize("row", SPLITS_OF_A_UNET, ids=str)
def test_splits_of_another_denoiser(row: Split, unet_pipe: Any) -> None:
    tiny = PIPELINES["sd15"]
    plain = run(unet_pipe, tiny)

    def attach_and_run() -> None:
        with AsyncDiff(unet_pipe, split=row.value, executor="local"):
            run(unet_pipe, tiny)

    check_refused(SplitError, row.sentence, attach_and_run)
    assert torch.equal(run(unet_pipe, tiny), plain)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"forecast": "magic"}, "forecast must be one of 'reuse', 'linear', 'fitted', not 'magic'"),
        ({"forecast": []}, "forecast must be one of"),
        ({"damping": 2}, "damping must be a number from 0 to 1, not 2"),
        ({"damping": float("nan")}, "damping must be a number from 0 to 1, not nan"),
        ({"damping": "1"}, "damping must be a number from 0 to 1, not '1'"),
        ({"damping": None}, "damping must be a number from 0 to 1, not None"),
        ({"damping": True}, "damping must be a number from 0 to 1, not True"),
        ({"residual": 1}, "residual must be True or False, not 1"),
        ({"fresh_sum": "no"}, "fresh_sum must be True or False, not 'no'"),
        ({"residual": False}, "fresh_sum=True needs residual=True"),
    ],
    ids=str,
)
def test_methods(arguments: dict[str, Any], sentence: str) -> None:
    check_refused(ConfigurationError, sentence, lambda: Method(**arguments))


@pytest.mark.parametrize("name", PIPES)
def test_pipelines(name: str) -> None:
    build, sentence = PIPES[name]
    pipe = build()
    check_refused(ConfigurationError, sentence, lambda: AsyncDiff(pipe, executor="local"))


@pytest.mark.parametrize("name", INDIVISIBLE)
def test_models_that_cannot_be_divided(name: str) -> None:
    build, arguments, sentence = INDIVISIBLE[name]
    pipe = build()
    sample, time = torch.ones(1, 4), torch.tensor(1.0)
    with torch.no_grad():
        plain = pipe.unet(sample, time)[0]

    def attach_and_call() -> None:
        with AsyncDiff(pipe, executor="local", method="paper", **arguments), torch.no_grad():
            pipe.scheduler.set_timesteps(5)
            pipe.unet(sample, time)

    check_refused(SplitError, sentence, attach_and_call)
    with torch.no_grad():
        assert torch.equal(pipe.unet(sample, time)[0], plain)


@pytest.mark.parametrize(("told", "arguments", "error", "sentence"), ENVIRONMENTS, ids=str)
def test_environments(
    told: dict[str, str],
    arguments: dict[str, Any],
    error: type[Exception],
    sentence: str,
    pipe: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    before = attributes(pipe)
    check_refused(error, sentence, lambda: AsyncDiff(pipe, executor="distributed", **arguments))
    assert attributes(pipe) == before


@pytest.mark.parametrize("row", FOLDERS, ids=str)
def test_folders(row: Folder, folder: Path, tmp_path: Path) -> None:
    spoilt = Path(shutil.copytree(folder, tmp_path / "spoilt"))
    row.spoil(spoilt)
    check_refused(ModelError, row.sentence, lambda: load_pipeline(str(spoilt), None, CPU))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["model_index.json", "unet", "unet/diffusion_pytorch_model.safetensors"])
def test_a_folder_that_may_not_be_read(name: str, folder: Path, tmp_path: Path) -> None:
    spoilt = Path(shutil.copytree(folder, tmp_path / "spoilt"))
    (spoilt / name).chmod(0)
    try:
        check_refused(ModelError, "Permission denied", lambda: load_pipeline(str(spoilt), None, CPU))
    finally:
        (spoilt / name).chmod(0o700)


def test_the_folder_that_was_spoilt_was_good(folder: Path) -> None:
    assert load_pipeline(str(folder), None, CPU).unet.dtype == torch.float32
