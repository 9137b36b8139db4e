"""Of which kind the steps of a pipeline were, as its denoisers have counted them."""

from collections.abc import Callable, Mapping

from asyncdiff.plan.schedule import StepKind
from asyncdiff.report import Counts

# The costliest first, as a step of several calls is called.
_ORDER = tuple(StepKind)


class Kinds:
    """Says of which kind each step was that is over.

    Args:
        counts: what each denoiser counts; another record in each generation.
    """

    def __init__(self, counts: Callable[[], Mapping[str, Counts]]) -> None:
        self._counts = counts
        self._seen: dict[str, tuple[Counts, int]] = {}

    def begin(self) -> None:
        """What was counted before is of other calls of the pipeline."""
        self._take()

    def of_steps(self, steps: int) -> list[str | None]:
        """The kinds of so many steps, which are all that have ended since this was asked before.

        A step of several calls, as with second-order schedulers, is called after the costliest of them; where several
        steps are asked for at once, and have not a call each, all of them are. None where no denoiser was called.
        """
        if steps <= 0:
            return []
        kinds = self._take()
        if len(kinds) == steps:
            return [kind.value for kind in kinds]
        return [min(kinds, key=_ORDER.index).value if kinds else None] * steps

    def _take(self) -> list[StepKind]:
        """The kinds of all calls since this was asked before."""
        found: list[StepKind] = []
        for name, counts in self._counts().items():
            before, count = self._seen.get(name, (None, 0))
            found += counts.kinds[count if before is counts else 0 :]
            self._seen[name] = counts, len(counts.kinds)
        return found
