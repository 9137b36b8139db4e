"""The same first call for pictures of other sizes, from which it shows what is done for each of a picture's tokens."""

from collections.abc import Callable

from asyncdiff.denoiser.trace import Trace
from asyncdiff.errors import AsyncDiffError, SplitError
from asyncdiff.plan.token_counting import picture_size

# In pixels, those first that most models take. Some are too small for a model, or too large for its table of places.
_SIDES = ((512, 512), (512, 768), (256, 256), (256, 384), (1024, 1024))
_WANTED = 2


def other_sizes(trace: Trace, at: Callable[[int, int], Trace]) -> list[Trace]:
    """Traces of a call for pictures of two sizes that differ from each other and from its own.

    Args:
        trace: the call.
        at: gives it for a height and a width in pixels.

    Raises:
        SplitError: there are no two.
    """
    found: dict[int, Trace] = {}
    why = "its call is the same for pictures of other sizes"
    for height, width in _SIDES:
        try:
            other = at(height, width)
        except AsyncDiffError as error:
            why = str(error)
            continue
        if picture_size(other) != picture_size(trace):
            found[picture_size(other)] = other
        if len(found) == _WANTED:
            return list(found.values())
    raise SplitError(why)
