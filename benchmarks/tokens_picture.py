"""A picture of what `benchmarks.tokens` has measured: error against modelled speed-up, and what a doubling is worth."""

import argparse
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

_RESULTS = Path(__file__).parent / "results" / "tokens.json"
_PICTURE = Path(__file__).parents[1] / "docs" / "images" / "tokens.png"
_EQUAL = 58.0  # dB
_DPI = 110


@dataclass(frozen=True)
class Line:
    """Ways that belong together, by the words at their points; colours that differ for the colour-blind too."""

    title: str
    colour: str
    points: dict[str, str]


_BRIDGED = "one device, bridge=2"
LINES = (
    Line("one device, bridge=k", "#777777", {f"k={k}": f"one device, bridge={k}" for k in (2, 3, 4, 6)}),
    Line("components=N", "#d55e00", {f"N={count}": f"components={count}" for count in (2, 4, 8)}),
    Line("components=N, bridge=2", "#e69f00", {f"N={count}": f"components={count}, bridge=2" for count in (2, 4, 8)}),
    Line("tokens=P, fresh=False", "#cc79a7", {f"P={count}": f"tokens={count}, fresh=False" for count in (2, 4, 8)}),
    Line(
        "tokens=P, bridge=2",
        "#0072b2",
        {"P=1": _BRIDGED, **{f"P={count}": f"tokens={count}, bridge=2" for count in (2, 4, 8)}},
    ),
)


def draw(axis: Axes, ways: dict[str, dict[str, Any]]) -> None:
    """All lines: the mean, and below it the worst picture."""
    for line in LINES:
        there = {word: ways[name] for word, name in line.points.items() if name in ways}
        if not there:
            continue
        speed = [way["modelled_speedup"] for way in there.values()]
        mean = [way["mean"] for way in there.values()]
        worst = [way["mean"] - way["worst"] for way in there.values()]
        axis.errorbar(
            speed, mean, [worst, [0] * len(worst)], marker="o", color=line.colour, label=line.title, capsize=2, lw=1
        )
        for word, x, y in zip(there, speed, mean, strict=True):
            beside = (4, 4) if word[0] != "k" else (-22, -10)
            axis.annotate(word, (x, y), beside, textcoords="offset points", fontsize=8, color=line.colour)
    _say_doublings(axis, [ways[name] for name in LINES[-1].points.values() if name in ways])
    axis.axhline(_EQUAL, color="#999999", ls=":", lw=1)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}×")
    axis.set_xlabel("speed-up, modelled without communication")
    axis.set_ylabel("PSNR, dB: mean, and the worst picture")
    axis.grid(alpha=0.25)
    axis.margins(y=0.08)
    axis.legend(fontsize=8, frameon=False, loc="lower left")


def _say_doublings(axis: Axes, ways: Sequence[dict[str, Any]]) -> None:
    for one, other in itertools.pairwise(ways):
        first, second = one["modelled_speedup"], other["modelled_speedup"]
        place = (first * second) ** 0.5, (one["mean"] + other["mean"]) / 2
        axis.annotate(
            f"{second / first:.2f}×",
            place,
            (0, -14),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            weight="bold",
        )


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=_RESULTS)
    parser.add_argument("--out", type=Path, default=_PICTURE)
    given = parser.parse_args()
    mpl.use("Agg")
    measured = json.loads(given.results.read_text(encoding="utf-8"))
    figure, axis = plt.subplots(figsize=(7.6, 5.2), layout="constrained")
    draw(axis, {way["way"]: way for way in measured["ways"]})
    axis.set_title(f"demo DiT, {measured['condition']['steps']} steps, {len(measured['prompts'])} prompts")
    figure.savefig(given.out, dpi=_DPI)


if __name__ == "__main__":
    main()
