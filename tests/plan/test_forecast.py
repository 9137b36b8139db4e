"""Forecasting against lines written out by hand, and the forms in which it must not depend on anything else."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from asyncdiff import ConfigurationError, Method
from asyncdiff.exchange import buffer
from asyncdiff.plan.forecast import step_ratio
from tests import textbook
from tests.textbook import best_factors, divided_differences
from tests.versions import forecast

LINEAR = Method("linear", residual=False, fresh_sum=False)
FITTED = Method(residual=False, fresh_sum=False)


def falling(smallest_gap: int) -> st.SearchStrategy[list[float]]:
    """Times as schedulers give them: falling, with uneven gaps."""
    gaps = st.lists(st.integers(smallest_gap, 400), min_size=7, max_size=7)
    return gaps.map(lambda gaps: [2000.0 - sum(gaps[: number + 1]) / 2 for number in range(7)])


# The factors are found in single precision: gaps that differ by more than this magnify its rounding.
gentle_times = falling(100)


@given(falling(1), st.integers(0, 2**31))
def test_the_line_is_exact_however_uneven_the_gaps_are(times: list[float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    offset, slope = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    middle, newest, target = times[:3]
    found = forecast(LINEAR, [offset + slope * newest, offset + slope * middle], [newest, middle], target)
    assert torch.allclose(found, offset + slope * target, atol=1e-6)


@given(gentle_times, st.integers(2, 6), st.integers(0, 2**31))
def test_exact_on_a_linear_series_with_uneven_gaps(times: list[float], count: int, seed: int) -> None:
    """Whatever is a linear function of the time is forecast to rounding, between and beyond the versions."""
    generator = torch.Generator().manual_seed(seed)
    offset, slope = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    *earlier, target = times
    at = earlier[::-1][:count]
    versions = [offset + slope * time for time in at]
    scale = float(max(tensor.abs().max() for tensor in versions)) * (1 + abs(target - at[0]) / abs(at[0] - at[1]))
    for method in (LINEAR, FITTED):
        found = forecast(method, versions[: method.versions], at[: method.versions], target)
        assert torch.allclose(found, offset + slope * target, atol=1e-5 * scale)
    between = (at[0] + at[1]) / 2
    assert torch.allclose(forecast(FITTED, versions, at, between), offset + slope * between, atol=1e-9 * scale)


@given(gentle_times, st.integers(0, 2**31))
def test_exact_on_a_parabola(times: list[float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    offset, slope, bend = torch.randn(3, 3, 4, 5, generator=generator, dtype=torch.float64)

    def series(time: float) -> Tensor:
        return offset + slope * time / 1000 + bend * (time / 1000) ** 2

    *earlier, target = times
    at = earlier[::-1]
    found = forecast(FITTED, [series(time) for time in at], at, target)
    ratio = step_ratio(at, target)
    newest, line, move = series(at[0]), ratio * (series(at[0]) - series(at[1])), series(target) - series(at[0])
    if ratio <= 1.5:
        longest = 1.5 * line.flatten(1).norm(dim=1)
        kept = (longest / move.flatten(1).norm(dim=1)).clamp(max=1)
        assert torch.allclose(found, newest + kept[:, None, None] * move, atol=2.5e-4)
    else:
        assert torch.allclose(found, newest + line), "so far only the line"


def test_no_forecast_moves_far_beyond_the_line() -> None:
    """The first member has turned back, where a parabola runs away from the line; the second has not."""
    at = [5.0, 6.0, 7.0, 8.0, 9.0, 10.0]
    turning = torch.stack([torch.full((3, 4), (time - 5.25) ** 2) for time in at])
    straight = torch.stack([torch.full((3, 4), 2 * time) for time in at])
    versions = [torch.stack(members) for members in zip(turning, straight, strict=True)]
    found = forecast(FITTED, versions, at, 4.0)
    line = turning[0] - turning[1]  # -0.5; the parabola moves by +1.5
    assert torch.allclose(found[0], turning[0] + 1.5 * line.abs(), atol=1e-3)
    assert torch.allclose(found[1], straight[0] - 2, atol=1e-3)


def test_step_ratio_by_hand() -> None:
    assert step_ratio([90.0, 100.0], 85.0) == 0.5
    assert step_ratio([90.0, 100.0], 60.0) == 3.0
    assert step_ratio([90.0, 100.0], 95.0) == -0.5
    assert step_ratio([90.0], 80.0) == 0.0
    assert step_ratio([90.0, 90.0], 80.0) == 0.0, "a second-order scheduler repeats its timesteps"


def test_reuse_is_the_newest_version_itself() -> None:
    newest, older = torch.ones(2, 3), torch.zeros(2, 3)
    assert forecast(Method("reuse", residual=False, fresh_sum=False), [newest, older], [9.0, 10.0], 8.0).equal(newest)


def test_damping_by_hand() -> None:
    half = Method("linear", damping=0.5, residual=False, fresh_sum=False)
    found = forecast(half, [torch.tensor([4.0]), torch.tensor([3.0])], [9.0, 10.0], 8.0)
    assert found.tolist() == [4.5]


def test_factors_are_those_of_ridge_regression() -> None:
    """Against torch's own solver, on the terms of the polynomials written as Lagrange's."""
    generator = torch.Generator().manual_seed(0)
    versions = list(torch.randn(6, 2, 6, 5, generator=generator, dtype=torch.float64))
    times = [50.0, 57.0, 70.0, 78.0, 91.0, 100.0]

    def through(count: int, first: int, target: float) -> Tensor:
        """The polynomial through `count` versions from `first` on."""
        places = range(first, first + count)
        total = torch.zeros(2, 6, 5, dtype=torch.float64)
        for one in places:
            others = [other for other in places if other != one]
            weights = [(target - times[other]) / (times[one] - times[other]) for other in others]
            total += math.prod(weights) * versions[one]
        return total

    def terms(first: int, target: float) -> list[Tensor]:
        return [through(degree + 1, first, target) - through(degree, first, target) for degree in (1, 2, 3)]

    found = best_factors(divided_differences(versions, times, 3), times)
    for member in range(2):
        rows, sides, squares = [], [], torch.zeros(3, dtype=torch.float64)
        for forecasts, weight in ((0, 1.0), (1, 0.5)):
            columns = torch.stack([term[member].flatten() for term in terms(forecasts + 1, times[forecasts])], dim=1)
            rows.append(weight**0.5 * columns)
            sides.append(weight**0.5 * (versions[forecasts] - versions[forecasts + 1])[member].flatten())
            squares += weight * columns.square().sum(dim=0)
        pull = torch.diag((0.02 * squares).sqrt())
        expected = torch.linalg.lstsq(
            torch.cat([*rows, pull]), torch.cat([*sides, pull @ torch.tensor([1.0, 1.0, 0.0]).double()])[:, None]
        ).solution.flatten()
        assert torch.allclose(found[:, member].flatten().double(), expected, rtol=1e-3, atol=1e-5)
    beyond = forecast(FITTED, versions, times, 44.0)
    factors = found.double()
    by_hand = versions[0] + sum(factor * term for factor, term in zip(factors, terms(0, 44.0), strict=True))
    assert torch.allclose(beyond, by_hand, atol=1e-4)


@given(gentle_times, st.integers(2, 6), st.sampled_from([torch.float32, torch.float64]), st.integers(0, 2**31))
def test_as_the_textbook_has_it(times: list[float], count: int, dtype: torch.dtype, seed: int) -> None:
    """Smooth series with a little noise, several pictures at once: to the rounding of the number format."""
    generator = torch.Generator().manual_seed(seed)
    *earlier, target = times
    at = earlier[::-1][:count]
    rates = torch.randn(3, 4, 6, 5, generator=generator, dtype=torch.float64)
    versions = [
        (torch.sin(rates * time / 300) + 1e-3 * torch.randn(3, 4, 6, 5, generator=generator)).to(dtype) for time in at
    ]
    found = forecast(FITTED, versions, at, target)
    by_definition = textbook.forecast(FITTED, versions, at, target)
    moved = float((by_definition - versions[0]).norm()) + 1e-3
    assert float((found - by_definition).norm()) < (1e-4 if dtype == torch.float64 else 2e-3) * moved


def test_large_buffers_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    versions = list(torch.randn(6, 3, 8, 8, generator=generator, dtype=torch.float64))
    times = [50.0, 57.0, 70.0, 78.0, 91.0, 100.0]
    at_once = forecast(FITTED, versions, times, 44.0)
    monkeypatch.setattr(buffer, "ELEMENTS_AT_ONCE", 70)
    assert torch.allclose(forecast(FITTED, versions, times, 44.0), at_once, rtol=1e-12)


def test_a_picture_that_is_no_number_does_not_reach_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    versions = list(torch.randn(6, 3, 4, 5, generator=generator))
    times = [8.0, 9.0, 10.0, 11.0, 12.0, 13.0]
    expected = forecast(FITTED, versions, times, 7.0)
    versions[2][1, 0, 0] = float("inf")
    found = forecast(FITTED, versions, times, 7.0)
    assert torch.allclose(found[[0, 2]], expected[[0, 2]])


def test_noise_is_hardly_forecast() -> None:
    """Where every version is the same picture with fresh noise, as of an ancestral sampler, reuse is near best."""
    generator = torch.Generator().manual_seed(0)
    versions = [torch.ones(1, 40, 40) + torch.randn(1, 40, 40, generator=generator) for _ in range(6)]
    times = [8.0, 9.0, 10.0, 11.0, 12.0, 13.0]
    found = forecast(FITTED, versions, times, 7.0)
    line = 2 * versions[0] - versions[1]
    assert float((found - 1).norm()) < float((versions[0] - 1).norm()) < 0.5 * float((line - 1).norm())


def test_a_picture_does_not_depend_on_those_beside_it() -> None:
    generator = torch.Generator().manual_seed(0)
    versions = list(torch.randn(6, 4, 6, 5, generator=generator))
    times = [8.0, 9.0, 10.0, 11.0, 12.0, 13.0]
    together = forecast(FITTED, versions, times, 7.0)
    for member in range(4):
        alone = forecast(FITTED, [version[member : member + 1] for version in versions], times, 7.0)
        assert torch.allclose(together[member : member + 1], alone, rtol=1e-5, atol=1e-5)


def test_a_repeated_time_is_no_reason_to_divide_by_zero() -> None:
    """A second-order scheduler gives two calls one timestep."""
    versions = [torch.full((1, 2, 2), float(number)) for number in range(6)]
    found = forecast(FITTED, versions, [8.0, 9.0, 9.0, 10.0, 10.0, 11.0], 7.0)
    assert torch.equal(found, torch.full((1, 2, 2), -1.0)), "the line through the last two"


@pytest.mark.parametrize(
    "wrong", [{"forecast": "cubic"}, {"damping": 1.5}, {"residual": False, "fresh_sum": True}], ids=str
)
def test_bad_methods(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        Method(**wrong)  # type: ignore[arg-type]
