"""The value to take for tensors whose newest version is not there yet. Pure arithmetic.

A forecast is V₀ + Σ wₖ·Dₖ, with V₀ the newest version and Dₖ = Vₖ − Vₖ₊₁ the differences between neighbouring versions.
The weights follow from the times of the versions alone, or from these and from the inner products of the differences:
then each row of a buffer (a tensor's part for one picture) has weights of its own.
"""

import functools
import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass

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
_ROUNDING = {torch.float64: 1e-13}  # of the inner products, relative to those that cancel each other in a term
_ROUNDING_ELSE = 1e-6

Vector = tuple[float, ...]
"""Weights of differences, those of the newest first."""


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


@dataclass(frozen=True, eq=False)
class Fit:
    """Factors that are found row by row: those with which the newest versions would have been forecast best.

    Least squares over the last forecasts, the newest weighing most; a little is added to the diagonal, which pulls the
    factors to those of the parabola through the last versions: where the versions say nothing of a factor, that is what
    it is.

    Attributes:
        order: how many factors there are.
        count: of how many differences there are weights.
        numbers: what is linear in the inner products ⟨Dᵢ, Dⱼ⟩, as weights of all of them, row by row: the matrix of the
            equations, their right sides, the inner products of the terms, and the square of the longest move.
        terms: what the polynomial through the versions adds to V₀ at the target, degree by degree, as weights of the
            differences.
    """

    order: int
    count: int
    numbers: tuple[Vector, ...]
    terms: tuple[Vector, ...]

    @functools.cached_property
    def _spread(self) -> dict[tuple[tuple[int, ...], int], "Fit"]:
        return {}

    @functools.cached_property
    def _constants(self) -> dict[tuple[torch.dtype, bool], Tensor]:
        return {}

    def spread(self, places: Sequence[int], count: int) -> "Fit":
        """The same for `count` differences that lie in any order: the newest at the first of the places, and so on."""
        key = tuple(places), count
        if key not in self._spread:
            self._spread[key] = self._spread_over(*key)
        return self._spread[key]

    def constants(self, like: Tensor) -> Tensor:
        """All its numbers and terms in one tensor where another one is, of its format.

        Every copy to a device takes time. What is kept for the next generation of so many steps lies on the host.
        """
        key = like.dtype, like.is_cuda
        if key not in self._constants:
            numbers = [*itertools.chain(*self.numbers, *self.terms)]
            self._constants[key] = torch.tensor(numbers, dtype=like.dtype, pin_memory=like.is_cuda)
        return self._constants[key].to(like.device, non_blocking=True)

    def _spread_over(self, places: tuple[int, ...], count: int) -> "Fit":
        source: list[int | None] = [None] * count
        for number, place in enumerate(places[: self.count]):
            source[place] = number
        pairs = [None if i is None or j is None else i * self.count + j for i in source for j in source]
        return Fit(self.order, count, _picked(self.numbers, pairs), _picked(self.terms, source))


@dataclass(frozen=True)
class Formula:
    """How to forecast: V₀ + line·D₀, or with weights that are fitted.

    Attributes:
        line: 0 for the newest version itself.
        fit: None for the line.
    """

    line: float
    fit: Fit | None = None


@functools.lru_cache(maxsize=256)
def formula(method: Method, times: tuple[float, ...], target: float, rounding: float) -> Formula:
    """How to forecast what lies at `target`.

    "linear" is F + α·r·(F − F'). "fitted" is F + Σ cᵢ·pᵢ, where F + Σ pᵢ is the polynomial through the versions, in
    Newton's form, and the factors cᵢ are those with which the newest versions would have been forecast best from those
    before them; far beyond the last step between versions it is the line, and it never moves much farther from F than
    the line does. Exact where the tensor is a linear function of the time and α is 1, however uneven the steps are.
    Between versions both are the line through them; before the last two the older one.

    Args:
        method: how to forecast.
        times: the versions' places in the scheduler's own time, newest first; as many as there are, at most
            `method.versions`.
        target: the place to forecast for.
        rounding: how exact the inner products are that the weights will be found from (`rounding_of`).
    """
    ratio = step_ratio(times, target)
    if method.forecast == "reuse" or ratio <= 0:
        return Formula(0.0 if method.forecast == "reuse" else max(ratio, -1.0))
    order = _order(times) if ratio <= _FARTHEST and method.forecast == "fitted" else 0
    if order == 0:
        return Formula(ratio * (method.damping if method.forecast == "linear" else 1.0))
    return Formula(ratio, _fit(times, target, order, rounding))


def rounding_of(dtype: torch.dtype) -> float:
    """How exact inner products of tensors of a number format are found, relative to their factors' lengths."""
    return _ROUNDING.get(dtype, _ROUNDING_ELSE)


def fitted_weights(fit: Fit, products: Tensor) -> Tensor:
    """The weights of the differences.

    Args:
        fit: what to find.
        products: ⟨Dᵢ, Dⱼ⟩ of every row, newest first, shape (differences, differences, rows), double precision.

    Returns:
        Shape (rows, differences).
    """
    order, rows = fit.order, products.shape[-1]
    count = order * order
    constants = fit.constants(products)
    terms = constants[-order * fit.count :].view(order, fit.count)
    numbers = (constants[: -order * fit.count].view(len(fit.numbers), -1) @ products.view(-1, rows)).T
    matrix, sides = numbers[:, :count].view(rows, order, order), numbers[:, count : count + order]
    squares, longest = numbers[:, count + order : -1].view(rows, order, order), numbers[:, -1]
    # Where nothing has changed at all there is no solution, and nothing to add.
    factors = torch.linalg.solve_ex(matrix, sides.unsqueeze(-1)).result.nan_to_num(0.0, 0.0, 0.0)
    # One round's wrong factors would be fed back by the other components, and be wronger in the next.
    length = (factors.mT @ squares @ factors).view(rows).clamp_min(_SMALLEST)
    kept = (longest / length).sqrt().clamp(max=1)
    weights: Tensor = (factors.squeeze(-1) * kept.unsqueeze(-1)) @ terms
    return weights


def _fit(times: Sequence[float], target: float, order: int, rounding: float) -> Fit:
    differences = _divided_differences(times, order)
    count = len(times) - 1
    matrix = [[[0.0] * count * count for _ in range(order)] for _ in range(order)]
    sides = [[0.0] * count * count for _ in range(order)]
    weight = 1.0
    for number in range(min(_FORECASTS, count - order)):
        terms = _terms(differences, times, number + 1, times[number])
        happened = [1.0 if place == number else 0.0 for place in range(count)]
        for row, term in enumerate(terms):
            _add_product(sides[row], term, happened, weight)
            for column, other in enumerate(terms):
                _add_product(matrix[row][column], term, other, weight)
            for place, coefficient in enumerate(term):
                matrix[row][row][place * count + place] += weight * rounding * coefficient**2
        weight *= _WEIGHT_OF_EARLIER
    for row in range(order):
        pull = [_RIDGE * value for value in matrix[row][row]]
        sides[row] = [value + _PRIOR[row] * pulled for value, pulled in zip(sides[row], pull, strict=True)]
        matrix[row][row] = [value + pulled for value, pulled in zip(matrix[row][row], pull, strict=True)]
    terms = _terms(differences, times, 0, target)
    squares = [_product(one, other) for one in terms for other in terms]
    longest = [_LONGEST_MOVE**2 * value for value in squares[0]]
    rows = [*(value for row in matrix for value in row), *sides, *squares, longest]
    return Fit(order, count, tuple(map(tuple, rows)), tuple(map(tuple, terms)))


def _order(times: Sequence[float]) -> int:
    """How many factors can be found: a forecast with so many terms needs one version more, and one to compare with.

    A second-order scheduler repeats its timesteps: no polynomial goes through two versions of one time.
    """
    different = len(set(times)) == len(times)
    return max(min(_ORDER, len(times) - 2), 0) if different else 0


def _divided_differences(times: Sequence[float], order: int) -> list[list[list[float]]]:
    """Newton's table from the first degree on, every entry as weights of the differences."""
    count = len(times) - 1
    table = [
        [
            [1 / (times[first] - times[first + 1]) if place == first else 0.0 for place in range(count)]
            for first in range(count)
        ]
    ]
    for degree in range(2, order + 1):
        above = table[-1]
        table.append(
            [
                [
                    (one - other) / (times[first] - times[first + degree])
                    for one, other in zip(above[first], above[first + 1], strict=True)
                ]
                for first in range(len(above) - 1)
            ]
        )
    return table


def _terms(
    differences: Sequence[Sequence[Sequence[float]]], times: Sequence[float], first: int, target: float
) -> list[list[float]]:
    """What the polynomial through the versions from `first` on adds to that one at `target`, degree by degree."""
    terms, product = [], 1.0
    for degree, row in enumerate(differences):
        product *= target - times[first + degree]
        terms.append([product * weight for weight in row[first]])
    return terms


def _product(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """⟨Σ aᵢ·Dᵢ, Σ bⱼ·Dⱼ⟩ as weights of the inner products."""
    return [a * b for a in one for b in other]


def _add_product(total: list[float], one: Sequence[float], other: Sequence[float], weight: float) -> None:
    for place, value in enumerate(_product(one, other)):
        total[place] += weight * value


def _picked(vectors: Sequence[Vector], places: Sequence[int | None]) -> tuple[Vector, ...]:
    """Each vector's numbers at some places, 0 where there is none."""
    pick = operator.itemgetter(*(-1 if place is None else place for place in places))
    if len(places) == 1:
        return tuple((pick((*vector, 0.0)),) for vector in vectors)
    return tuple(pick((*vector, 0.0)) for vector in vectors)
