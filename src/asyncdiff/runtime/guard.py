"""How far forecasts are off: every version that arrives is held against what the versions before it let expect."""

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from asyncdiff.exchange.store import EdgeStore
from asyncdiff.plan.division import Division
from asyncdiff.plan.forecast import by_member, forecast
from asyncdiff.plan.method import Method
from asyncdiff.plan.schedule import Version


def forecast_error(
    division: Division, rank: int, versions: Sequence[Version], store: EdgeStore, moment: Callable[[int], float]
) -> float:
    """How far the newest version of what a rank holds is from its forecast, relative to its size.

    The root of the mean over the live edges of |F − F̂|² / |F|², for the member of the batch where it is largest: the
    worst picture decides, and not the average of those that happen to be drawn together.

    Args:
        division: the divided denoiser.
        rank: whose live edges.
        versions: newest first, at least two.
        store: the rank's.
        moment: the place of a step's label in the scheduler's own time.

    Returns:
        0 where the rank holds nothing; not a number where what it holds is none.
    """
    times = [moment(version.label) for version in versions]
    sums: dict[int, Tensor] = {}
    counts: dict[int, int] = {}
    for edge in sorted(division.reads_of(rank)):
        tensors = [store.get(edge, version.step) for version in versions]
        if not tensors[0].is_floating_point():
            continue
        squares = _relative_squares(division.method, tensors, times)
        size = len(squares)
        sums[size] = sums[size] + squares if size in sums else squares
        counts[size] = counts.get(size, 0) + 1
    worst = [float((squares / counts[size]).max()) for size, squares in sums.items()]
    # Python's max would pass over what is not a number.
    return math.nan if any(map(math.isnan, worst)) else math.sqrt(max(worst, default=0.0))


def _relative_squares(method: Method, tensors: Sequence[Tensor], times: Sequence[float]) -> Tensor:
    """|F − F̂|² / |F|² for every member of the batch, or for the whole of a tensor that has none."""
    newest, expected = by_member(tensors[0]), by_member(forecast(method, tensors[1:], times[1:], times[0]))
    return (newest - expected).square().sum(dim=1) / newest.square().sum(dim=1).clamp_min(1e-30)
