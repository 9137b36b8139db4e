"""Measure real-sized denoisers on one GPU, each in a process of its own.

PYTHONPATH=src python -m benchmarks.gpu                      # all, in ten minutes
PYTHONPATH=src python -m benchmarks.gpu --models sdxl,flux
PYTHONPATH=src python -m benchmarks.gpu --tiny               # only to see that it works, without a GPU too
"""

import argparse
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.apart import SECONDS_TO_END, Processes
from benchmarks.gpu.choice import chosen_way
from benchmarks.gpu.models import SUBJECTS
from benchmarks.gpu.ranks import two_ranks
from benchmarks.gpu.results import Results, show
from benchmarks.machine import machine

RANKS, CHOICE = "ranks", "choice"
ORDER = ("flux", "sdxl", CHOICE, "sd3", "sd15", RANKS, "wan", "pixart", "svd", "sd21")
FOLDER = Path(__file__).parent.parent / "results"
SECONDS = {RANKS: 17.0, CHOICE: 45.0} | {name: subject.seconds for name, subject in SUBJECTS.items()}
FEWEST_SECONDS = 20.0  # with fewer left, nothing more is begun


def main() -> None:
    """Measure all that is asked for."""
    begin = time.monotonic()
    given = _arguments()
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    results = Results(given.output or FOLDER / f"gpu-{_name(device, given.tiny)}.json")
    if device.type == "cpu" and not given.tiny:
        sys.exit("there is no GPU here; --tiny shows that everything works")
    if not given.more:
        results.path.unlink(missing_ok=True)
    results.put(["machine"], {**machine(), "gpu": _gpu(device)})
    results.put(["settings"], {"tiny": given.tiny, "dtype": "bfloat16", "seconds": given.seconds})
    deadline = begin + given.seconds
    denoisers = [name for name in given.models if name in SUBJECTS]
    processes = Processes(given.tiny, results) if denoisers else None
    for number, name in enumerate(given.models):
        left = deadline - time.monotonic()
        seconds = left * _needs(name) / sum(map(_needs, given.models[number:])) - SECONDS_TO_END
        if seconds < FEWEST_SECONDS:
            print(f"{name}: left out, {left:.0f} s left", flush=True)
            continue
        print(f"{name} … (at most {seconds:.0f} s of {left:.0f} s)", flush=True)
        if name == RANKS:
            results.put([RANKS], two_ranks(seconds))
        elif name == CHOICE:
            results.put([CHOICE], chosen_way(seconds, given.tiny))
        elif processes is not None:
            processes.measure(name, seconds, is_last=name == denoisers[-1])
    if processes is not None:
        processes.close()
    print(show(results.read()))
    print(f"{results.path}, {time.monotonic() - begin:.0f} s")


def _needs(name: str) -> float:
    """Seconds, roughly."""
    return SECONDS_TO_END + SECONDS[name]


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
    parser.add_argument("--seconds", type=float, default=585.0, help="that all may take (585)")
    parser.add_argument("--output", type=Path, default=None, help="the JSON file (benchmarks/results/gpu-<name>.json)")
    parser.add_argument("--more", action="store_true", help="keep what the file has of other models")
    parser.add_argument("--tiny", action="store_true", help="narrow models of the same structure")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in ORDER]
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no {unknown[0]!r}; there are {', '.join(ORDER)}")
    return names


if __name__ == "__main__":
    main()
