"""Writes what the package's `asyncdiff plan` knows of the demo models' decibels, from the results of the study.

python -m benchmarks.quality.indication
"""

import argparse
import itertools
import json
from pathlib import Path

import asyncdiff
from benchmarks.quality.settings import BRIDGES, MOST_COMPONENTS, OURS, SCHEDULERS, Setting
from benchmarks.quality.store import Store

_RESULTS = Path(__file__).parents[1] / "results" / "quality"
_OUT = Path(asyncdiff.__file__).parent / "planning" / "indication.json"
_STRIDES = (1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=_RESULTS)
    parser.add_argument("--out", type=Path, default=_OUT)
    arguments = parser.parse_args()
    store = Store(arguments.results)
    points = []
    for components, stride, bridge in itertools.product(range(1, MOST_COMPONENTS + 1), _STRIDES, BRIDGES):
        found: dict[str, float] = {}
        for model, schedulers in SCHEDULERS.items():
            point = Setting(model, schedulers[0], components=components, stride=stride, bridge=bridge, method=OURS)
            record = store.find(point)
            if record is not None:
                found[model] = round(float(record.decibels.mean()), 1)
        if found.keys() == SCHEDULERS.keys():
            points.append({"components": components, "stride": stride, "bridge": bridge, **found})
    told = {
        "what": "mean PSNR in dB of the demo models' pictures against the ordinary ones; 50 steps, w=5, guidance 3",
        "made by": "python -m benchmarks.quality.indication",
        "points": points,
    }
    arguments.out.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    print(f"{len(points)} points in {arguments.out}")


if __name__ == "__main__":
    main()
