"""Every denoiser is measured in a process of its own, which nothing that happens to it outlasts."""

import multiprocessing
import os
import sys
import tempfile
import time
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import diffusers
import torch

from benchmarks.gpu.loop import Setting
from benchmarks.gpu.models import SUBJECTS
from benchmarks.gpu.results import Results
from benchmarks.gpu.stages import measure

SECONDS_TO_END = 5.0  # that a process is given beyond its time before it is stopped
# Libraries that are imported may touch the GPU, which a process that is forked from them cannot use then.
_PROCESSES = multiprocessing.get_context("spawn")


class Processes:
    """Measures denoisers one after the other; the next process imports its libraries while the one before measures."""

    def __init__(self, tiny: bool, results: Results) -> None:
        self._tiny = tiny
        self._results = results
        self._spare: _Process | None = _Process()

    def measure(self, name: str, seconds: float, is_last: bool) -> None:
        """Measure one, in so many seconds; whatever becomes of its process, what it has found is kept."""
        results, process = self._results, self._spare or _Process()
        results.put(["models", name], {})
        begin = time.monotonic()
        process.begin(name, self._tiny, results, time.time() + seconds)
        self._spare = None if is_last else _Process()
        failure = process.end(seconds + SECONDS_TO_END)
        if failure:
            results.put(["models", name, "failures", "process"], failure)
        results.put(["models", name, "seconds", "process"], time.monotonic() - begin)

    def close(self) -> None:
        """No more are measured."""
        if self._spare is not None:
            self._spare.end(0.0)


class _Process:
    """A process that waits to be told what to measure."""

    def __init__(self) -> None:
        own, theirs = _PROCESSES.Pipe()
        # A file and no pipe: compilers that it has started may hold a pipe open after its end.
        self._said = tempfile.NamedTemporaryFile()  # noqa: SIM115  (until its end)
        self._connection = own
        self._process = _PROCESSES.Process(target=_measure_what_is_told, args=(theirs, self._said.name), daemon=False)
        self._process.start()

    def begin(self, *told: Any) -> None:
        self._connection.send(told)

    def end(self, seconds: float) -> str:
        """Wait so long; says what went wrong."""
        begin, failure = time.monotonic(), ""
        self._process.join(seconds)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
            failure = f"stopped after {time.monotonic() - begin:.0f} s"
        elif self._process.exitcode:
            failure = f"ended with {self._process.exitcode}"
        with self._said:
            text = self._said.read().decode(errors="replace").strip()
        return f"{failure}: {text[-800:]}" if failure else ""


def _measure_what_is_told(connection: Connection, said: str) -> None:
    """In the process of its own; what it says goes into a file."""
    with open(said, "wb") as errors:
        os.dup2(errors.fileno(), sys.stderr.fileno())
    name, tiny, results, until = connection.recv()
    diffusers.utils.logging.set_verbosity_error()
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    setting = Setting(device, torch.bfloat16, tiny)
    measure(SUBJECTS[name], setting, partial(_put, results, name), until)


def _put(results: Results, model: str, stage: str, value: Any) -> None:
    results.put(["models", model, stage], value)
