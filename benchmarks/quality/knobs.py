"""A picture of what each knob does: a panel for every factor, with everything else as at the base point."""

from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from asyncdiff.demo import DemoName
from benchmarks.quality.settings import Factor, factors
from benchmarks.quality.statistics import mean
from benchmarks.quality.store import Store

_SIZE = (13, 8.5)
_COLUMNS = 4
_DPI = 100
_COLORS = {"paper": "#d55e00", "ours": "#0072b2", "N=1": "#777777", "N=2": "#56b4e9", "N=4": "#0072b2"}
_LONGEST_WORD = 3  # that is written upright


def draw(store: Store, model: DemoName, title: str, path: Path) -> None:
    """Write the picture of a model's factors."""
    varied = factors(model)
    figure, axes = plt.subplots(-(-len(varied) // _COLUMNS), _COLUMNS, figsize=_SIZE, layout="constrained")
    for axis, factor in zip(axes.flat, varied, strict=True):
        _panel(axis, store, factor)
    figure.suptitle(f"{title}: PSNR to the plain pipeline's picture in dB, one factor at a time")
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)


def _panel(axis: Axes, store: Store, factor: Factor) -> None:
    """Means with their intervals; numbers are joined by lines."""
    values = list(dict.fromkeys(map(factor.value, factor.points)))
    is_number = all(not isinstance(value, str) for value in values)
    if is_number:
        values.sort()
    for name in dict.fromkeys(map(factor.series, factor.points)):
        own = {factor.value(point): store.find(point) for point in factor.points if factor.series(point) == name}
        means = {place: mean(record.decibels) for place, value in enumerate(values) if (record := own.get(value))}
        centers = [each.value for each in means.values()]
        below = [each.value - each.low for each in means.values()]
        above = [each.high - each.value for each in means.values()]
        axis.errorbar(
            list(means),
            centers,
            yerr=[below, above],
            color=_COLORS[name],
            marker="o",
            markersize=4,
            linestyle="-" if is_number else "",
            label=name,
        )
    words = [value if isinstance(value, str) else f"{value:g}" for value in values]
    axis.set_xticks(range(len(words)), words, fontsize=7, rotation=0 if max(map(len, words)) <= _LONGEST_WORD else 90)
    axis.set_title(factor.name, fontsize=10)
    axis.legend(fontsize=7, frameon=False)
    axis.grid(alpha=0.25)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
