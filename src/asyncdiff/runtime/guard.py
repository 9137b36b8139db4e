"""How far forecasts are off: every version that arrives is held against what the versions before it let expect."""

import math
from collections.abc import Callable, Sequence

from asyncdiff.exchange.store import EdgeStore
from asyncdiff.plan.method import Method
from asyncdiff.plan.schedule import Version


def forecast_error(
    method: Method, versions: Sequence[Version], store: EdgeStore, moment: Callable[[int], float]
) -> float:
    """How far the newest version of what a rank holds is from its forecast, relative to its size.

    The root of the mean over the live edges of |F − F̂|² / |F|², for the member of the batch where it is largest: the
    worst picture decides, and not the average of those that happen to be drawn together.

    Args:
        method: how forecasts are made.
        versions: newest first, at least two.
        store: what the rank holds.
        moment: the place of a step's label in the scheduler's own time.

    Returns:
        0 where the rank holds nothing; not a number where what it holds is none.
    """
    times = tuple(moment(version.label) for version in versions)
    errors = iter(store.errors([version.step for version in versions], method, times).tolist())
    edges: dict[int, list[list[float]]] = {}  # by how many members they have
    for members in store.members():
        edges.setdefault(members, []).append([next(errors) for _ in range(members)])
    worst = [sum(squares) / len(squares) for alike in edges.values() for squares in zip(*alike, strict=True)]
    # Python's max would pass over what is not a number.
    return math.nan if any(map(math.isnan, worst)) else math.sqrt(max(worst, default=0.0))
