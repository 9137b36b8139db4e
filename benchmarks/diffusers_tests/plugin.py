"""The pytest plugin: every test begins alike, and what its pipelines did is written down.

pytest -p benchmarks.diffusers_tests.plugin --asyncdiff-mode full --asyncdiff-records full.jsonl …
"""

import random
import socket
from collections.abc import Generator
from pathlib import Path
from typing import Any

# Before the tests' conftest.py puts the checkout's own source first: the installed one is what is tested.
import diffusers
import numpy as np
import pytest
import torch

import asyncdiff
from benchmarks.diffusers_tests.attach import MODES, Watch
from benchmarks.diffusers_tests.records import Failure, Record, read, to_line

NO_NETWORK = "no network while diffusers' tests are run"
_FOLDERS = {"asyncdiff": asyncdiff.__file__, "diffusers": diffusers.__file__}


def pytest_addoption(parser: pytest.Parser) -> None:
    """How AsyncDiff is attached, and where it is written down what happened."""
    parser.addoption("--asyncdiff-mode", choices=MODES, default="plain")
    parser.addoption("--asyncdiff-records", type=Path, default=Path("records.jsonl"))
    parser.addoption("--asyncdiff-like", type=Path, help="records: only tests that called a pipeline there are run")


def pytest_configure(config: pytest.Config) -> None:
    """In this process or, with pytest-xdist, in each worker and in the process that hears of all."""
    socket.getaddrinfo = _no_address
    config.pluginmanager.register(_Recorder(config), "asyncdiff-recorder")


def _no_address(*args: Any, **kwargs: Any) -> Any:
    raise socket.gaierror(NO_NETWORK)


class _Recorder:
    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._watch = Watch(MODES[config.getoption("asyncdiff_mode")])
        self._path: Path = config.getoption("asyncdiff_records")
        self._seconds = 0.0

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """What called no pipeline without AsyncDiff has nothing to say about it."""
        like: Path | None = self._config.getoption("asyncdiff_like")
        if like is not None:
            before = read(like)
            items[:] = [item for item in items if item.nodeid in before and before[item.nodeid].calls]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Tests that draw without a seed have the same numbers in every run."""
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        self._watch.begin()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
        """The record goes with the report, from a worker to where it is written."""
        report = (yield).get_result()
        self._seconds = report.duration + (self._seconds if report.when == "call" else 0.0)
        if report.when != "call" and (report.when != "setup" or report.passed):
            return
        report.asyncdiff = to_line(
            Record(
                test=item.nodeid,
                outcome=report.outcome,
                calls=tuple(self._watch.calls),
                failure=_failure(call.excinfo, Path(item.config.rootpath)) if report.failed else None,
                skipped=_reason(report) if report.skipped else "",
                seconds=self._seconds,
            )
        )

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be imported is one failed test."""
        if report.failed:
            told = [line.removeprefix("E ").strip() for line in str(report.longrepr).splitlines() if line[:2] == "E "]
            kind, _, text = (told[-1] if told else "Unknown").partition(": ")
            self._write(to_line(Record(report.nodeid, "failed", failure=Failure((kind,), text))))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Of every phase of every test; that of a process that ended has a phase of its own."""
        line = getattr(report, "asyncdiff", None)
        if line is None and report.when not in ("setup", "call", "teardown"):
            line = to_line(Record(report.nodeid, "crashed", failure=Failure(("Crash",), str(report.longrepr))))
        if line is not None:
            self._write(line)

    def _write(self, line: str) -> None:
        if not hasattr(self._config, "workerinput"):  # of several processes, the one that hears of all
            with self._path.open("a", encoding="utf-8") as lines:
                lines.write(line)

    def pytest_unconfigure(self) -> None:
        """The classes are as they were."""
        self._watch.end()


def _failure(raised: pytest.ExceptionInfo[BaseException] | None, checkout: Path) -> Failure:
    if raised is None:
        return Failure(("Unknown",), "")
    error = raised.value
    causes: list[str] = []
    cause = error.__cause__ or error.__context__
    while cause is not None:
        causes.append(type(cause).__name__)
        cause = cause.__cause__ or cause.__context__
    kinds = tuple(kind.__name__ for kind in type(error).__mro__ if kind is not object)
    return Failure(kinds, str(error).replace(f"{checkout}/", "")[:2000], tuple(causes), _origin(raised, checkout))


def _origin(raised: pytest.ExceptionInfo[BaseException], checkout: Path) -> str:
    """Whose the innermost frame is, of those of the tests, asyncdiff and diffusers."""
    places = {"tests": checkout / "tests"} | {name: Path(file).parent for name, file in _FOLDERS.items()}
    for entry in reversed(raised.traceback):
        for name, folder in places.items():
            if Path(entry.path).is_relative_to(folder):
                return name
    return ""


def _reason(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return f"expected to fail: {report.wasxfail}"
    told = report.longrepr
    return str(told[2]).removeprefix("Skipped: ") if isinstance(told, tuple) else str(told)
