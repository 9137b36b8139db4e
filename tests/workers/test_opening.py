"""What cannot work is refused before any process is started."""

import subprocess
import sys
from typing import Any

import pytest

import asyncdiff
from asyncdiff import ConfigurationError, Workers


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"devices": 0}, "devices must be a whole number of at least 1, not 0"),
        ({"devices": 2, "components": 3}, "= 3 devices, not devices=2; use devices=3"),
        ({"devices": 3, "guidance": 2}, "devices=3 cannot be shared out among guidance=2"),
        ({"devices": 1, "stride": 2}, "= 2 devices, not devices=1"),
        ({"component": 2}, "there is no setting 'component'; is 'components' meant?"),
        ({"executor": "local"}, "Workers have processes of their own"),
        ({"warmup": 0}, "warmup must be a whole number of at least 1, not 0"),
        ({"dtype": "float"}, None),
        ({"dtype": "half-precise"}, "dtype must be the name of a number format"),
        ({"backend": "pigeon"}, "torch.distributed knows no 'pigeon' here"),
        ({"address": "127.0.0.1:1"}, "no Ray answers at address='127.0.0.1:1'"),
        ({"address": "nowhere.invalid:6379"}, "no Ray answers at address='nowhere.invalid:6379'"),
    ],
    ids=str,
)
def test_bad_settings(arguments: dict[str, Any], sentence: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if "address" not in arguments:
        monkeypatch.setattr("asyncdiff.workers.workers._ray", _never)
    with pytest.raises((ConfigurationError, _ReachedError)) as raised:
        Workers("demo-unet", **arguments)
    if sentence is None:
        assert isinstance(raised.value, _ReachedError)
    else:
        assert sentence in str(raised.value) and "\n" not in str(raised.value)


class _ReachedError(Exception):
    pass


def _never() -> Any:
    raise _ReachedError


@pytest.mark.parametrize("model", ["nowhere/at/all", 3, "./tests"], ids=str)
def test_bad_models(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncdiff.workers.workers._ray", _never)
    with pytest.raises(asyncdiff.AsyncDiffError):
        Workers(model)


def test_ray_is_imported_by_workers_alone() -> None:
    code = (
        "import sys; sys.modules['ray'] = None; import asyncdiff\n"
        "try: asyncdiff.Workers('demo-unet')\n"
        "except asyncdiff.ConfigurationError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert "pip install asyncdiff[serve]" in done.stdout
