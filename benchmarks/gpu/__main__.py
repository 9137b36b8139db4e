"""Measure real-sized denoisers on one GPU, each in a process of its own.

PYTHONPATH=src python -m benchmarks.gpu                      # all, in ten minutes
PYTHONPATH=src python -m benchmarks.gpu --models sdxl,flux
PYTHONPATH=src python -m benchmarks.gpu --tiny               # only to see that it works, without a GPU too
"""

import argparse
import math
import re
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch

from benchmarks.gpu.loop import Setting
from benchmarks.gpu.measure import failures_noted
from benchmarks.gpu.models import SUBJECTS
from benchmarks.gpu.ranks import two_ranks
from benchmarks.gpu.results import Results, show
from benchmarks.gpu.stages import measure
from benchmarks.machine import machine

RANKS = "ranks"
ORDER = ("sdxl", "flux", "sd15", RANKS, "sd3", "wan", "svd", "pixart", "sd21")
FOLDER = Path(__file__).parent.parent / "results"
SECONDS_OF_RANKS = 30.0
FEWEST_SECONDS = 20.0  # with fewer left, nothing more is begun
SECONDS_TO_END = 5.0  # that a process is given beyond its time before it is stopped


def main() -> None:
    """Measure one denoiser in this process, or all of them in processes of their own."""
    begin = time.monotonic()
    given = _arguments()
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    results = Results(given.output or FOLDER / f"gpu-{_name(device, given.tiny)}.json")
    if given.only is not None:
        diffusers.utils.logging.set_verbosity_error()
        setting = Setting(device, torch.bfloat16, given.tiny)
        measure(SUBJECTS[given.only], setting, partial(_put, results, given.only), given.until)
        return
    if device.type == "cpu" and not given.tiny:
        sys.exit("there is no GPU here; --tiny shows that everything works")
    if not given.more:
        results.path.unlink(missing_ok=True)
    results.put(["machine"], {**machine(), "gpu": _gpu(device)})
    results.put(["settings"], {"tiny": given.tiny, "dtype": "bfloat16", "seconds": given.seconds})
    deadline = begin + given.seconds
    for number, name in enumerate(given.models):
        left = deadline - time.monotonic()
        seconds = left * _needs(name) / sum(map(_needs, given.models[number:])) - SECONDS_TO_END
        if seconds < FEWEST_SECONDS:
            print(f"{name}: left out, {left:.0f} s left", flush=True)
            continue
        print(f"{name} … (at most {seconds:.0f} s of {left:.0f} s)", flush=True)
        if name == RANKS:
            with failures_noted(lambda text: results.put([RANKS], {"failure": text})):
                results.put([RANKS], two_ranks(seconds))
        else:
            _measure_apart(name, given.tiny, results, seconds)
    print(show(results.read()))
    print(f"{results.path}, {time.monotonic() - begin:.0f} s")


def _needs(name: str) -> float:
    """Seconds, roughly."""
    return SECONDS_TO_END + (SECONDS_OF_RANKS if name == RANKS else SUBJECTS[name].seconds)


def _put(results: Results, model: str, stage: str, value: Any) -> None:
    results.put(["models", model, stage], value)


def _measure_apart(name: str, tiny: bool, results: Results, seconds: float) -> None:
    """One denoiser in a process of its own, which nothing that happens to it outlasts."""
    results.put(["models", name], {})
    command = [sys.executable, "-m", "benchmarks.gpu", "--only", name, "--until", str(time.time() + seconds)]
    command += ["--output", str(results.path), *(["--tiny"] if tiny else [])]
    begin, failure = time.monotonic(), ""
    # A file and no pipe: compilers that it has started may hold a pipe open after its end.
    with tempfile.TemporaryFile() as said:
        try:
            done = subprocess.run(command, timeout=seconds + SECONDS_TO_END, stderr=said)
            failure = f"ended with {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            failure = f"stopped after {time.monotonic() - begin:.0f} s"
        said.seek(0)
        text = said.read().decode(errors="replace").strip()
    if failure:
        results.put(["models", name, "failures", "process"], f"{failure}: {text[-800:]}")
    results.put(["models", name, "seconds", "process"], time.monotonic() - begin)


def _gpu(device: torch.device) -> dict[str, Any] | None:
    if device.type != "cuda":
        return None
    found = torch.cuda.get_device_properties(device)
    return {"name": found.name, "bytes": found.total_memory, "cuda": torch.version.cuda}


def _name(device: torch.device, tiny: bool) -> str:
    """For the file: what was measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ("-tiny" if tiny else "")


def _arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=_names, default=list(ORDER), help=f"some of {','.join(ORDER)}")
    parser.add_argument("--seconds", type=float, default=540.0, help="that all may take (540)")
    parser.add_argument("--output", type=Path, default=None, help="the JSON file (benchmarks/results/gpu-<name>.json)")
    parser.add_argument("--more", action="store_true", help="keep what the file has of other models")
    parser.add_argument("--tiny", action="store_true", help="narrow models of the same structure")
    parser.add_argument("--only", choices=list(SUBJECTS), help="measure one in this process; the others call this")
    parser.add_argument("--until", type=float, default=math.inf, help="when --only must be done, in Unix time")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in ORDER]
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no {unknown[0]!r}; there are {', '.join(ORDER)}")
    return names


if __name__ == "__main__":
    main()
