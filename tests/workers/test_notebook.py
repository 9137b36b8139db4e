"""The notebook in examples/ runs as it stands there, in a kernel of Jupyter's, and leaves no process behind."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples/workers.ipynb"
SECONDS = 300


def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install_kernel(tmp_path)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    assert KernelSpecManager().find_kernel_specs()["python3"].startswith(str(tmp_path))
    before = _ray_processes()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    _, drawn, report, told, _ = cells
    assert "image/png" in _results(drawn)[0]
    assert [text for text in _streams(drawn) if "50/50" in text], "no bar was shown"
    assert "executor distributed, rank 0 of 2" in "".join(_streams(report))
    assert "".join(_streams(told)) == "step 10 of 30\nstep 20 of 30\nstep 30 of 30\n"
    assert _ray_processes() <= before


def _install_kernel(folder: Path) -> None:
    """A kernel of this Python, whatever others there are."""
    place = folder / "kernels/python3"
    place.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "Python 3", "language": "python"}
    (place / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")


def _results(cell: Any) -> list[Any]:
    return [output.data for output in cell.outputs if output.output_type == "execute_result"]


def _streams(cell: Any) -> list[str]:
    return [output.text for output in cell.outputs if output.output_type == "stream"]


def _ray_processes() -> set[int]:
    """Those of this user that belong to a Ray, whoever started it."""
    names = ("raylet", "gcs_server", "ray::")
    mine = (each for each in psutil.process_iter(["pid", "name", "cmdline", "uids"]) if each.info["uids"])
    own = [each for each in mine if each.info["uids"].real == os.getuid()]
    return {each.pid for each in own if any(name in " ".join(each.info["cmdline"] or [])[:200] for name in names)}
