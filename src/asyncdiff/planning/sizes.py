"""The same first call for pictures of other sizes.

From these it shows what is done for each of a picture's tokens, and which size would do in place of one that does not.
"""

from collections.abc import Callable, Mapping

from asyncdiff.denoiser.trace import Trace
from asyncdiff.errors import AsyncDiffError, SplitError
from asyncdiff.plan.token_counting import picture_size

# In pixels, those first that most models take. Some are too small for a model, or too large for its table of places.
_SIDES = ((512, 512), (512, 768), (256, 256), (256, 384), (1024, 1024), (64, 64), (64, 96), (32, 32), (16, 32))
_WANTED = 2
# Models want multiples of something like these: of their VAE's factor, and of their patches in it.
_MULTIPLES = (2, 4, 8, 16, 32, 64)


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
    raise SplitError(f"by pictures of other sizes it cannot be counted: {why}")


def possible_size(told: Mapping[str, int], works: Callable[[Mapping[str, int]], bool]) -> Mapping[str, int] | None:
    """A size that a model can have in place of one that it cannot: the nearest, or else its own, which is empty.

    Args:
        told: height and width, or one of these.
        works: whether it can have a size.

    Returns:
        None where its own does not do either: then it is not the size.
    """
    tried = [dict(told)]
    for multiple in _MULTIPLES:
        rounded = {name: max(1, round(pixels / multiple)) * multiple for name, pixels in told.items()}
        if rounded in tried:
            continue
        if works(rounded):
            return rounded
        tried.append(rounded)
    return {} if works({}) else None
