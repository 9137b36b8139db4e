"""docs/reliability.md: the matrix with what came of every cell."""

import os
from collections.abc import Mapping
from pathlib import Path

from asyncdiff.evaluation.machine import cpu_model
from tests.faults.cell import Outcome
from tests.faults.matrix import LAYOUTS, MARGIN, TIMEOUT, Cell, Fault, Moment, cells

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"

_HEAD = f"""# What happens when something goes wrong on one rank

Every combination of a fault, a moment and a layout of ranks was run with processes on one machine (gloo), twice a
generation of 14 steps, with `timeout={TIMEOUT:g}`. Each must end within {TIMEOUT:g} + {MARGIN:g} seconds on every rank
that has no fault: in an error that names the rank that has it, or, where that rank is only slow, in the right picture.
None may hang. The table is made by `python -m tests.faults`; `make test-all` runs all of it, `make test` a part.

What each cell says is what the ranks without a fault came to:

- `StoppedError`: the rank with the fault could still say why it ends the generation. The next call works, without
  attaching again.
- `RankMismatchError`: what has to be the same on all ranks was compared, and differs: weights and settings at the
  beginning and at the end of a generation, inputs at its first and last step and after the first round.
- `ExchangeError`: a rank is gone, or does not answer within the time limit.
- right picture: nothing was wrong but the pace.
- –: cannot be (there is no callback while attaching, for instance).

"""


def page(outcomes: Mapping[Cell, Outcome]) -> str:
    """The whole page."""
    lines = ["| fault | moment | " + " | ".join(f"{layout} ranks" for layout in LAYOUTS) + " |"]
    lines.append("| --- | --- |" + " --- |" * len(LAYOUTS))
    possible = set(cells())
    for fault in Fault:
        for moment in Moment:
            own = [Cell(fault, moment, layout) for layout in LAYOUTS]
            texts = [_text(outcomes[cell]) if cell in possible else "–" for cell in own]
            lines.append(f"| {fault.value} | {moment.value} | {' | '.join(texts)} |")
    slowest = max((outcome.seconds for cell, outcome in outcomes.items() if cell.fault is not Fault.SLOW), default=0.0)
    lines.append(
        f"\nThe slowest cell but the slow ones took {slowest:.1f} s from the fault to the end of the last rank, on "
        f"{os.cpu_count()} cores of {cpu_model()}.\n"
    )
    return _HEAD + "\n".join(lines)


def _text(outcome: Outcome) -> str:
    return f"**{outcome.wrong}**" if outcome.wrong else outcome.text
