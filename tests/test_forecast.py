"""Forecasting against lines written out by hand, and the forms in which it must not depend on anything else."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncdiff import ConfigurationError, Method
from asyncdiff.forecast import best_damping, forecast, step_ratio

LINEAR = Method("linear", residual=False, fresh_sum=False)
ADAPTIVE = Method("adaptive", residual=False, fresh_sum=False)

# Times as schedulers give them: falling, with uneven gaps.
falling_times = st.lists(st.integers(1, 400), min_size=4, max_size=4).map(
    lambda gaps: [1000.0 - sum(gaps[: number + 1]) / 2 for number in range(4)]
)


@given(falling_times, st.integers(0, 2**31))
def test_exact_on_a_linear_series_with_uneven_gaps(times: list[float], seed: int) -> None:
    """Whatever is a linear function of the time is forecast to rounding, between and beyond the versions."""
    generator = torch.Generator().manual_seed(seed)
    offset, slope = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    oldest, middle, newest, target = times
    series = {time: offset + slope * time for time in times}
    versions, at = [series[newest], series[middle], series[oldest]], [newest, middle, oldest]
    scale = max(float(tensor.abs().max()) for tensor in series.values())
    for method in (LINEAR, ADAPTIVE):
        assert torch.allclose(forecast(method, versions, at, target), series[target], atol=1e-5 * scale)
    between = (newest + middle) / 2
    assert torch.allclose(forecast(ADAPTIVE, versions, at, between), offset + slope * between, atol=1e-9 * scale)


def test_step_ratio_by_hand() -> None:
    assert step_ratio([90.0, 100.0], 85.0) == 0.5
    assert step_ratio([90.0, 100.0], 60.0) == 3.0
    assert step_ratio([90.0, 100.0], 95.0) == -0.5
    assert step_ratio([90.0], 80.0) == 0.0
    assert step_ratio([90.0, 90.0], 80.0) == 0.0, "a second-order scheduler repeats its timesteps"


def test_reuse_is_the_newest_version_itself() -> None:
    newest, older = torch.ones(2, 3), torch.zeros(2, 3)
    assert forecast(Method("reuse", residual=False, fresh_sum=False), [newest, older], [9.0, 10.0], 8.0) is newest


def test_damping_by_hand() -> None:
    half = Method("linear", damping=0.5, residual=False, fresh_sum=False)
    found = forecast(half, [torch.tensor([4.0]), torch.tensor([3.0])], [9.0, 10.0], 8.0)
    assert found.tolist() == [4.5]


def test_adaptive_damping_is_the_least_squares_one() -> None:
    """Against torch's own solver: the α for which middle + α·r·(middle − oldest) is closest to the newest."""
    generator = torch.Generator().manual_seed(0)
    oldest, step, noise = torch.randn(3, 2, 6, 5, generator=generator)
    middle = oldest + step
    newest = middle + 0.6 * 1.5 * step + 0.2 * noise
    found = best_damping([newest, middle, oldest], [85.0, 100.0, 110.0]).flatten()
    for member in range(2):
        column = (1.5 * (middle - oldest)[member]).reshape(-1, 1)
        expected = torch.linalg.lstsq(column, (newest - middle)[member].reshape(-1, 1)).solution
        assert found[member] == pytest.approx(float(expected), rel=1e-5)


def test_noise_is_not_forecast() -> None:
    """Where every version is the same picture with fresh noise, as an ancestral sampler gives it, reuse is best."""
    generator = torch.Generator().manual_seed(0)
    versions = [torch.ones(1, 40, 40) + torch.randn(1, 40, 40, generator=generator) for _ in range(3)]
    assert torch.equal(forecast(ADAPTIVE, versions, [8.0, 9.0, 10.0], 7.0), versions[0])


def test_a_picture_does_not_depend_on_those_beside_it() -> None:
    generator = torch.Generator().manual_seed(0)
    versions = list(torch.randn(3, 4, 6, 5, generator=generator))
    times = [8.0, 9.0, 10.0]
    together = forecast(ADAPTIVE, versions, times, 7.0)
    for member in range(4):
        alone = forecast(ADAPTIVE, [version[member : member + 1] for version in versions], times, 7.0)
        assert torch.equal(together[member : member + 1], alone)


@pytest.mark.parametrize(
    "wrong", [{"forecast": "cubic"}, {"damping": 1.5}, {"residual": False, "fresh_sum": True}], ids=str
)
def test_bad_methods(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        Method(**wrong)  # type: ignore[arg-type]
