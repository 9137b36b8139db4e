"""Forecasts of one tensor as the definition reads: what the product's, of whole buffers, are held against."""

from collections.abc import Sequence

import torch
from torch import Tensor

from asyncdiff.plan.method import Method

_FARTHEST = 1.5  # step ratio up to which more than a line is trusted
_LONGEST_MOVE = 1.5  # of the line's: now and then the fitted factors are far off for a round (docs/quality.md)
_ORDER = 3  # of the polynomial whose terms are weighted
_FORECASTS = 2  # that the factors are fitted to
_WEIGHT_OF_EARLIER = 0.5
_RIDGE = 0.02  # of the terms' own squares
_PRIOR = (1.0, 1.0, 0.0)
_SMALLEST = 1e-30


def step_ratio(times: Sequence[float], target: float) -> float:
    """r: how far `target` lies beyond the newest version, in units of the last step between versions.

    Args:
        times: the newest versions' places in the scheduler's own time, newest first; at least one.
        target: the place to forecast for.

    Returns:
        r; negative between the last two versions, 0 where there is no last step to measure by.
    """
    if len(times) < 2 or times[0] == times[1]:
        return 0.0
    return (target - times[0]) / (times[0] - times[1])


def forecast(method: Method, versions: Sequence[Tensor], times: Sequence[float], target: float) -> Tensor:
    """The value of a tensor at `target`, from its newest versions.

    "linear" is F + α·r·(F − F'). "fitted" is F + Σ cᵢ·pᵢ, where F + Σ pᵢ is the polynomial through the versions, in
    Newton's form, and the factors cᵢ are those with which the newest versions would have been forecast best from those
    before them; far beyond the last step between versions it is the line, and it never moves much farther from F than
    the line does. Exact where the tensor is a linear function of the time and α is 1, however uneven the steps are.
    Between versions both are the line through them.

    Args:
        method: how to forecast.
        versions: newest first, of one shape; as many as there are, at most `method.versions`.
        times: the versions' places in the scheduler's own time.
        target: the place to forecast for.
    """
    newest = versions[0]
    ratio = step_ratio(times, target)
    if method.forecast == "reuse" or ratio == 0 or not newest.is_floating_point():
        return newest
    if ratio < 0:
        return torch.add(newest, newest - versions[1], alpha=ratio)
    order = _order(versions, times) if ratio <= _FARTHEST else 0
    if method.forecast == "linear" or order == 0:
        damping = method.damping if method.forecast == "linear" else 1.0
        return torch.add(newest, newest - versions[1], alpha=damping * ratio)
    differences = divided_differences(versions, times, order)
    factors = best_factors(differences, times).to(newest.dtype)
    line, *others = _terms(differences, times, 0, target)
    move = line * factors[0]
    for term, factor in zip(others, factors[1:], strict=True):
        move = torch.addcmul(move, term, factor)
    return torch.addcmul(newest, move, _restraint(move, line))


def by_member(tensor: Tensor) -> Tensor:
    """A row for every member of the batch, the first axis of what has three or more; one row for what has fewer."""
    return tensor.float().reshape(len(tensor) if tensor.ndim >= 3 else 1, -1)


def _for_members(numbers: Tensor, tensor: Tensor) -> Tensor:
    """A number for each row of `by_member`, along the last axis, in a form that broadcasts against the tensor."""
    axes = [-1, *[1] * (tensor.ndim - 1)] if tensor.ndim >= 3 else [1] * tensor.ndim
    return numbers.reshape(*numbers.shape[:-1], *axes)


def divided_differences(versions: Sequence[Tensor], times: Sequence[float], order: int) -> list[list[Tensor]]:
    """Newton's table: the versions themselves, then their divided differences, degree by degree up to `order`."""
    table = [list(versions)]
    for degree in range(1, order + 1):
        above = table[-1]
        table.append(
            [
                (above[number] - above[number + 1]) / (times[number] - times[number + degree])
                for number in range(len(above) - 1)
            ]
        )
    return table


def best_factors(differences: Sequence[Sequence[Tensor]], times: Sequence[float]) -> Tensor:
    """The factors with which the newest versions would have been forecast best from those before them.

    Least squares over the last forecasts, the newest weighing most, for every member of the batch on its own: a picture
    must not depend on the pictures beside it. A little is added to the diagonal, which pulls the factors to those of
    the parabola through the last versions: where the versions say nothing of a factor, that is what it is.

    Args:
        differences: of the versions, newest first, two more than the order; there are as many factors as that.
        times: the versions' places in the scheduler's own time.

    Returns:
        Shape (order, …), each of which broadcasts against the versions.
    """
    versions, order = differences[0], len(differences) - 1
    rows, device = len(by_member(versions[0])), versions[0].device
    products, goals = torch.zeros(rows, order, order, device=device), torch.zeros(rows, order, device=device)
    weight = 1.0
    for number in range(min(_FORECASTS, len(versions) - order - 1)):
        flat = torch.stack([by_member(term) for term in _terms(differences, times, number + 1, times[number])], dim=1)
        happened = by_member(versions[number] - versions[number + 1])
        products += weight * flat @ flat.mT
        goals += weight * (flat @ happened.unsqueeze(-1)).squeeze(-1)
        weight *= _WEIGHT_OF_EARLIER
    # Higher terms are smaller by orders of magnitude: scaled to one length, they are solved for in single precision.
    lengths = products.diagonal(dim1=1, dim2=2).clamp_min(_SMALLEST).sqrt()
    scaled = products / (lengths.unsqueeze(1) * lengths.unsqueeze(2))
    pull = _RIDGE * torch.eye(order, device=device)
    sides = goals / lengths + _RIDGE * torch.tensor(_PRIOR[:order], device=device) * lengths
    found: Tensor = torch.linalg.solve_ex(scaled + pull, sides.unsqueeze(-1)).result.squeeze(-1) / lengths
    return _for_members(found.mT, versions[0])


def _restraint(move: Tensor, line: Tensor) -> Tensor:
    """For each member of the batch, what a forecast's move is multiplied by, not to be much longer than the line's.

    One round's wrong factors would be fed back by the other components, and be wronger in the next.
    """
    lengths, bounds = by_member(move).norm(dim=1), _LONGEST_MOVE * by_member(line).norm(dim=1)
    return _for_members((bounds / lengths.clamp_min(_SMALLEST)).clamp(max=1), move).to(move.dtype)


def _order(versions: Sequence[Tensor], times: Sequence[float]) -> int:
    """How many factors can be found: a forecast with so many terms needs one version more, and one to compare with.

    A second-order scheduler repeats its timesteps: no polynomial goes through two versions of one time.
    """
    different = len(set(times)) == len(times)
    return min(_ORDER, len(versions) - 2) if different else 0


def _terms(differences: Sequence[Sequence[Tensor]], times: Sequence[float], first: int, target: float) -> list[Tensor]:
    """What the polynomial through the versions from `first` on adds to that one at `target`, degree by degree."""
    terms, product = [], 1.0
    for degree in range(1, len(differences)):
        product *= target - times[first + degree - 1]
        terms.append(differences[degree][first] * product)
    return terms
