"""What cannot work is refused before any process is started."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import asyncdiff
from asyncdiff import AsyncDiff, ConfigurationError, Workers
from tests.tiny.narrow import load_narrow_demo, save_narrow_demo
from tests.workers.drawing import draw, save_adapter


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


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "asyncdiff.workers.cluster", raising=False)
    monkeypatch.delattr(asyncdiff.workers, "cluster", raising=False)
    with pytest.raises(ConfigurationError, match=r"pip install asyncdiff\[serve\]"):
        Workers("demo-unet")


@pytest.mark.whole
def test_asyncdiff_is_imported_without_ray() -> None:
    code = "import sys; sys.modules['ray'] = None; import asyncdiff; print(asyncdiff.Workers)"
    subprocess.run([sys.executable, "-c", code], timeout=120, check=True)


@pytest.mark.whole
def test_adapters_on_divided_weights(tmp_path: Path) -> None:
    """On a Ray of this machine's own: put on before the weights are divided, refused afterwards."""
    pictures = []
    adapter, model = tmp_path / "adapter", save_narrow_demo(tmp_path / "model")
    save_adapter(adapter)
    arguments: dict[str, Any] = {"components": 2, "shard": True}
    with Workers(str(model), 2, **arguments) as pipe:
        pipe.load_lora_weights(adapter, adapter_name="one")
        pictures.append(draw(pipe))
        with pytest.raises(ConfigurationError, match=r"load_lora_weights: with shard=True .* open other Workers"):
            pipe.load_lora_weights(adapter, adapter_name="two")
        pictures.append(draw(pipe))
    plain = load_narrow_demo()
    plain.load_lora_weights(adapter, adapter_name="one")
    with AsyncDiff(plain, **arguments):
        pictures.append(draw(plain))
    assert pictures[0].tobytes() == pictures[1].tobytes() == pictures[2].tobytes()
