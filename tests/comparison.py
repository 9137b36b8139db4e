"""How far results are from each other."""

from torch import Tensor


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference, as a part of that of what was expected."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())
