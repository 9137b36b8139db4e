"""The folder as it lies there: what its page says, its example, its figures for ComfyUI's registry."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from asyncdiff.serving.limits import Limits
from asyncdiff.serving.wire import Service
from tests.docs.test_docs import ROOT, commands
from tests.integrations.comfyui import FOLDER, ComfyUI, loaded
from tests.integrations.hosted import hosted


def example(address: str) -> Any:
    """The one that lies there, but for the address."""
    text = (FOLDER / "example.json").read_text(encoding="utf-8")
    assert text.count("http://127.0.0.1:8000") == 1
    return json.loads(text.replace("http://127.0.0.1:8000", address))


def test_the_example(comfyui: ComfyUI) -> None:
    with hosted(service=Service("demo-unet", 2, {}, 50, Limits())) as own:
        comfyui.run(example(own.address))
        (order,) = own.replica.orders
    assert order.settings == {"components": 2, "warmup": 4, "method": "forecast"}
    assert len(comfyui.saved["4"].pixels) == 2 and comfyui.saved["5"].startswith("2 pictures of ")


def test_linked_as_its_page_says(tmp_path: Path) -> None:
    (command,) = (command for command in commands(FOLDER / "README.md") if command.startswith("ln "))
    custom_nodes, here = tmp_path / "ComfyUI/custom_nodes", tmp_path / "asyncdiff"
    custom_nodes.mkdir(parents=True)
    shutil.copytree(FOLDER, here / "integrations/comfyui", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(command, shell=True, cwd=here, check=True)
    (found,) = custom_nodes.iterdir()
    with loaded(found) as own:
        assert own.titles


def test_it_needs_nothing_but_comfyuis_python(comfyui: ComfyUI) -> None:
    """Its modules are loaded where neither asyncdiff nor anything that it brings along can be imported."""
    code = f"""
import sys
sys.path[:] = [path for path in sys.path if "site-packages" not in path]
sys.path.insert(0, {str(FOLDER.parent)!r})
import types
package = types.ModuleType("comfyui")
package.__path__ = [{str(FOLDER)!r}]
sys.modules["comfyui"] = package
import comfyui.client, comfyui.settings
try:
    comfyui.client.Client(comfyui.client.Address.of("http://127.0.0.1:1")).model()
except comfyui.client.ServiceError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60)
    assert "nobody answers at http://127.0.0.1:1" in done.stdout, done.stderr


def test_its_version_is_that_of_asyncdiff() -> None:
    texts = [(folder / "pyproject.toml").read_text(encoding="utf-8") for folder in (FOLDER, ROOT)]
    (own,), (whole,) = (re.findall(r'^version = "(.+)"', text, re.MULTILINE) for text in texts)
    assert own == whole


@pytest.mark.parametrize("variable", ["ASYNCDIFF_ADDRESS", "ASYNCDIFF_API_KEY", "ASYNCDIFF_KEYS_FILE"])
def test_its_page_names_the_environment(comfyui: ComfyUI, variable: str) -> None:
    keys = comfyui.package.keys
    assert variable in (keys.ADDRESS, keys.KEY, keys.FILE)
    assert f"`{variable}`" in (FOLDER / "README.md").read_text(encoding="utf-8")
