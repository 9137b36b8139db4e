"""Nothing that comes from another rank is unpickled, so that no rank can run code in another."""

import ast
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from asyncdiff import AsyncDiff
from asyncdiff.launch import run_processes
from tests.processes import RankError, run_ranks
from tests.tiny import PIPELINES, run

SOURCES = Path(__file__).parents[1] / "src/asyncdiff"
# What is planned has no weights: it loads words and schedulers, and makes modules of their configurations.
CONFIGURATIONS_ONLY = SOURCES / "planning" / "hollow.py"

# Modules whose readers run what they read, or which bring objects from other processes by way of such.
_MODULES = {
    *("pickle", "_pickle", "cPickle", "pickletools", "dill", "cloudpickle", "joblib", "shelve", "marshal"),
    *("multiprocessing", "concurrent.futures", "torch.multiprocessing", "torch.distributed.rpc"),
}
# A class of weak references that happens to lie there.
_ALLOWED = {"torch.multiprocessing.reductions.StorageWeakRef"}

# Readers of pickles, and torch.distributed's functions for objects (all_gather_object, broadcast_object_list, …).
_READERS = {"torch.load", "torch.jit.load", "torch.package", "numpy.load", "np.load", "eval", "exec"}
_METHODS = {"recv", "recv_bytes", "Unpickler"}


def _dotted(node: ast.expr) -> str:
    """A name with what it is an attribute of."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def findings(source: str) -> Iterator[str]:
    """What in a module reads, or could read, a pickle."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name.name}" for name in node.names]
        elif isinstance(node, (ast.Attribute, ast.Name)):
            name = _dotted(node)
            last = name.rpartition(".")[2]
            if name in _READERS or last in _METHODS or last.endswith(("_object", "_object_list")):
                yield f"line {node.lineno}: {name}"
            continue
        else:
            continue
        for name in names:
            inside = any(name == module or name.startswith(f"{module}.") for module in _MODULES)
            by_name = name in _READERS or name.endswith(("_object", "_object_list"))
            if (inside or by_name) and name not in _ALLOWED:
                yield f"line {node.lineno}: import of {name}"


@pytest.mark.parametrize("path", sorted(SOURCES.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCES)))
def test_no_module_reads_pickles(path: Path) -> None:
    found = [finding for finding in findings(path.read_text(encoding="utf-8")) if "matrix.as_object" not in finding]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import multiprocessing.connection",
        "from multiprocessing import Pipe",
        "from torch.multiprocessing import Queue",
        "import torch\ntorch.load(path)",
        "from torch import load",
        "import torch.distributed as dist\ndist.all_gather_object(found, mine)",
        "from torch.distributed import broadcast_object_list",
        "dist.gather_object",
        "connection.recv()",
        "numpy.load(path, allow_pickle=True)",
        "eval(text)",
    ],
)
def test_one_that_did_would_be_found(source: str) -> None:
    assert list(findings(source))


def loaders(source: str) -> Iterator[tuple[int, bool]]:
    """The calls that load models, and whether they say what format weights may be of."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and _dotted(node.func).endswith(".from_pretrained"):
            if _dotted(node.func).endswith("Processor.from_pretrained"):
                continue  # it has no weights
            yield node.lineno, any(keyword.arg == "use_safetensors" for keyword in node.keywords)


def test_whoever_loads_a_model_says_what_format_weights_may_be_of() -> None:
    calls = {
        f"{path.relative_to(SOURCES)}:{line}": told
        for path in sorted(SOURCES.rglob("*.py"))
        if path != CONFIGURATIONS_ONLY
        for line, told in loaders(path.read_text(encoding="utf-8"))
    }
    assert len(calls) >= 3
    assert [place for place, told in calls.items() if not told] == []


class _OpenedError(Exception):
    pass


def _refuse(*given: Any, **named: Any) -> Any:
    raise _OpenedError("a pickle was opened")


def _run_without_pickles(rank: int, opened: bool, arguments: dict[str, Any]) -> torch.Tensor:
    """A generation, in which nothing can be unpickled."""
    tiny = PIPELINES["sd3"]
    pipe = tiny.build()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("pickle.loads", "pickle.load", "pickle.Unpickler", "torch.load"):
            patch.setattr(name, _refuse)
        patch.setattr("torch.distributed.distributed_c10d._unpickler", _refuse)
        if opened:
            found: list[Any] = [None, None]
            torch.distributed.all_gather_object(found, rank)
        with AsyncDiff(pipe, executor="distributed", timeout=30, **arguments):
            return run(pipe, tiny)


@pytest.mark.parametrize("arguments", [{"components": 2}, {"guidance": 2}, {"bridge": 2, "max_error": 0.1}], ids=str)
def test_ranks_run_where_nothing_can_be_unpickled(arguments: dict[str, Any]) -> None:
    first, second = run_ranks(2, _run_without_pickles, False, arguments)
    assert torch.equal(first, second)


def test_and_would_notice_if_it_were_tried() -> None:
    with pytest.raises(RankError, match="a pickle was opened"):
        run_ranks(2, _run_without_pickles, True, {})


def _square(number: int) -> tuple[int, ...]:
    return (int(os.environ["RANK"]), number**2)


def test_processes_bring_home_plain_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher's own channel, in which whatever a function returns is pickled, is not read."""

    def elastic_launch(config: Any, entry: Callable[..., Any]) -> Callable[..., Any]:
        def start(*task: Any) -> dict[int, Any]:
            returned = []
            for rank in range(config.nproc_per_node):
                monkeypatch.setenv("RANK", str(rank))
                returned.append(entry(*task))
            assert returned == [None, None]
            return {0: "by the launcher", 1: "by the launcher"}

        return start

    monkeypatch.setattr("asyncdiff.launch.elastic_launch", elastic_launch)
    assert run_processes(2, _square, 3) == [(0, 9), (1, 9)]
