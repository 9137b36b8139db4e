"""The matrix of denoiser classes: every one that diffusers exports, checked now."""

from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from torch import nn

from asyncdiff.denoiser.find import find_denoisers
from asyncdiff.errors import AsyncDiffError
from asyncdiff.zoo import specimens
from asyncdiff.zoo.catalogue import denoiser_classes
from asyncdiff.zoo.check import COMPONENTS, Finding, Pipeline, check
from asyncdiff.zoo.specimen import Specimen

COLUMNS = (
    "class",
    "works",
    "units",
    "live edges",
    *(f"N={components}" for components in COMPONENTS),
    "tokens",
    "why not",
)

_HEAD = """# Denoiser classes

Made by `make models` with diffusers {diffusers} and torch {torch}; not written by hand.

{works} of the {every} denoiser classes that diffusers exports work. Each was built small, with random weights, and
checked:

- the live edges are all that the components need of each other, and each of them is needed;
- the division into N = 2, 3, 4 components is as balanced as the units allow, to 3 %;
- as long as the warm-up lasts, the output is the plain model's, bit for bit;
- the rounds, with stride 1 and 2, are bit for bit what the paper's recurrence gives, written down once more on its own.

*units*: unit calls of one pass. *live edges*: tensors that cross in a round of two components. *N=2*, *N=3*, *N=4*: the
heaviest component's share of the cost of a call; of a small model, whose parts differ more than those of a real one.
*tokens*: whether the picture's tokens can be divided (`tokens=P`): with fresh keys, each of two and of three ranks'
tokens become what they are in the plain model. {tokens} classes can.

"""


class UnknownClassError(AsyncDiffError, ValueError):
    """The installed diffusers exports no denoiser of this name."""


def subjects(names: Sequence[str] = ()) -> list[Specimen | str]:
    """What there is to check: the specimens of the classes, and the names of classes without any.

    Args:
        names: the classes to check; all by default.

    Raises:
        UnknownClassError: one of them is no denoiser class of the installed diffusers.
    """
    known = denoiser_classes()
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UnknownClassError(f"{unknown[0]} is no denoiser class that diffusers {diffusers.__version__} exports")
    found: list[Specimen | str] = []
    every = list(specimens())
    for name in names or known:
        found += [specimen for specimen in every if specimen.kind == name] or [name]
    return found


def examine(subject: Specimen | str) -> Finding:
    """Check a specimen, or find out why there is none."""
    if isinstance(subject, str):
        return Finding(subject, ok=False, reason=_why_no_specimen(denoiser_classes()[subject]))
    try:
        return check(subject)
    except AsyncDiffError as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong with a class is what its row says
        reason = f"{type(error).__name__}: {error}"
    return Finding(subject.kind, subject.variant, ok=False, reason=reason)


def as_object(finding: Finding) -> dict[str, Any]:
    """A finding in plain data."""
    return {
        "class": finding.kind,
        "variant": finding.variant,
        "ok": finding.ok,
        "reason": finding.reason,
        "units": finding.units,
        "live_edges": finding.live_edges,
        "tokens": None if finding.whole_tokens is None else not finding.whole_tokens,
        "why_no_tokens": finding.whole_tokens,
        "balance": {str(components): finding.balance.get(components) for components in COMPONENTS},
    }


def as_row(finding: Finding) -> tuple[str, ...]:
    """A finding as the cells of a table, in the order of `COLUMNS`."""
    shares = (finding.balance.get(components) for components in COMPONENTS)
    return (
        f"{finding.kind} ({finding.variant})" if finding.variant else finding.kind,
        "yes" if finding.ok else "no",
        "" if finding.units is None else str(finding.units),
        "" if finding.live_edges is None else str(finding.live_edges),
        *("" if share is None else f"{share:.1%}" for share in shares),
        {None: "", "": "yes"}.get(finding.whole_tokens, f"no: {finding.whole_tokens}"),
        finding.reason,
    )


def as_page(findings: Sequence[Finding]) -> str:
    """The matrix as a page of the documentation."""
    every = {finding.kind for finding in findings}
    works = every - {finding.kind for finding in findings if not finding.ok}
    by_tokens = {finding.kind for finding in findings if finding.whole_tokens == ""}
    head = _HEAD.format(
        diffusers=diffusers.__version__,
        torch=torch.__version__.split("+")[0],
        works=len(works),
        every=len(every),
        tokens=len(by_tokens),
    )
    rows = [COLUMNS, tuple("---" for _ in COLUMNS), *map(as_row, findings)]
    return head + "".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |\n" for row in rows)


def _why_no_specimen(kind: type[nn.Module]) -> str:
    bare = kind.__new__(kind)
    nn.Module.__init__(bare)
    try:
        find_denoisers(Pipeline(components={"transformer": bare}, transformer=bare))
    except AsyncDiffError as error:
        return str(error)
    return "not checked: there is no small model of it yet"
