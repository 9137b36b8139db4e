"""A denoiser is measured in a process of its own, which nothing that happens to it outlasts."""

import multiprocessing
import os
import sys
import tempfile
import time
from functools import partial
from typing import Any

import diffusers
import torch

from benchmarks.gpu.loop import Setting
from benchmarks.gpu.models import SUBJECTS
from benchmarks.gpu.results import Results
from benchmarks.gpu.stages import measure

SECONDS_TO_END = 5.0  # that a process is given beyond its time before it is stopped
# Its libraries are imported once, in a process that never touches the GPU.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([__name__])


def measure_apart(name: str, tiny: bool, results: Results, seconds: float) -> None:
    """Measure one denoiser, in so many seconds; whatever becomes of the process, what it has found is kept."""
    results.put(["models", name], {})
    begin, failure = time.monotonic(), ""
    # A file and no pipe: compilers that it has started may hold a pipe open after its end.
    with tempfile.NamedTemporaryFile() as said:
        given = (name, tiny, results, time.time() + seconds, said.name)
        process = _PROCESSES.Process(target=_measure_here, args=given)
        process.start()
        process.join(seconds + SECONDS_TO_END)
        if process.is_alive():
            process.kill()
            process.join()
            failure = f"stopped after {time.monotonic() - begin:.0f} s"
        elif process.exitcode:
            failure = f"ended with {process.exitcode}"
        text = said.read().decode(errors="replace").strip()
    if failure:
        results.put(["models", name, "failures", "process"], f"{failure}: {text[-800:]}")
    results.put(["models", name, "seconds", "process"], time.monotonic() - begin)


def _measure_here(name: str, tiny: bool, results: Results, until: float, said: str) -> None:
    """In the process of its own; what it says goes into a file."""
    with open(said, "wb") as errors:
        os.dup2(errors.fileno(), sys.stderr.fileno())
    diffusers.utils.logging.set_verbosity_error()
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    setting = Setting(device, torch.bfloat16, tiny)
    measure(SUBJECTS[name], setting, partial(_put, results, name), until)


def _put(results: Results, model: str, stage: str, value: Any) -> None:
    results.put(["models", model, stage], value)
