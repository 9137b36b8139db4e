"""The notebook in examples/ runs as it stands there, in a kernel of Jupyter's, and leaves no process behind."""

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples/workers.ipynb"
SECONDS = 300
SECONDS_TO_END = 10  # the kernel, which ends after its last cell


@pytest.mark.whole
def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install_kernel(tmp_path)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    assert KernelSpecManager().find_kernel_specs()["python3"].startswith(str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(tmp_path)}})
    seen: set[str] = set()
    client.on_cell_executed = lambda **given: seen.update(_processes_of(tmp_path))
    client.execute()
    assert "raylet" in seen, "processes are not recognised"
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    _, drawn, report, told, _ = cells
    assert "image/png" in _results(drawn)[0]
    assert [text for text in _streams(drawn) if "50/50" in text], "no bar was shown"
    assert "executor distributed, rank 0 of 2" in "".join(_streams(report))
    assert "".join(_streams(told)) == "step 10 of 30\nstep 20 of 30\nstep 30 of 30\n"
    end = time.monotonic() + SECONDS_TO_END
    while _processes_of(tmp_path) and time.monotonic() < end:
        time.sleep(0.1)
    assert _processes_of(tmp_path) == []


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


def _processes_of(folder: Path) -> list[str]:
    """The kernel, and whatever it has started: they have its environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("IPYTHONDIR") == str(folder / "ipython"):
                found.append(process.name())
    return found
