"""The form of a split: N lists of module names, of which none holds another. Pure."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from asyncdiff.errors import SplitError
from asyncdiff.plan.numbers import shown

Split = Sequence[Sequence[str]]


def check_split(split: Any) -> None:
    """Refuse what is no division of modules, whatever the denoiser is.

    Raises:
        SplitError: it is no list of lists of names, one of them is empty, or a module would be in it twice.
    """
    if not _is_list(split) or not split:
        raise SplitError(f"a split is a list of lists of module names, one for each component, not {shown(split)}")
    for number, names in enumerate(split):
        if not _is_list(names) or not names or not all(isinstance(name, str) and name for name in names):
            raise SplitError(
                "every component of a split is a list of at least one module name; "
                f"component {number} is {shown(names)}"
            )
    counts = Counter(name for names in split for name in names)
    for name, count in counts.items():
        if count > 1:
            raise SplitError(f"{name!r} is named twice in the split; a module can be in one component only")
        parts = name.split(".")
        for around in (".".join(parts[:length]) for length in range(1, len(parts))):
            if around in counts:
                raise SplitError(
                    f"{name!r} is named twice in the split: it is in {around!r}, which stands for all that is in it"
                )


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
