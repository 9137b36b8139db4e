"""The value to take for a tensor whose newest version is not there yet. Pure tensor arithmetic."""

from collections.abc import Sequence

import torch
from torch import Tensor

from asyncdiff.method import Method


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
    """The value of a tensor at `target`, from its newest versions: F + α·r·(F − F').

    Exact where the tensor is a linear function of the time and α is 1, however uneven the steps are. Between versions
    α is 1: that is interpolation.

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
    change = newest - versions[1]
    if ratio < 0:
        return torch.add(newest, change, alpha=ratio)
    if method.forecast == "linear" or len(versions) < 3:
        return torch.add(newest, change, alpha=method.damping * ratio)
    return torch.addcmul(newest, change, best_damping(versions, times).to(newest.dtype), value=ratio)


def best_damping(versions: Sequence[Tensor], times: Sequence[float]) -> Tensor:
    """The α with which the newest of three versions would have been forecast best from the two before it.

    Least squares, from 0 to 1, for every member of the batch on its own (the first axis of what has three or more):
    a picture must not depend on the pictures beside it.

    Returns:
        A tensor that broadcasts against the versions.
    """
    newest, middle, oldest = versions
    ratio = step_ratio(times[1:], times[0])
    happened = (newest - middle).float()
    forecast = (middle - oldest).float() * ratio
    axes = tuple(range(1 if newest.ndim >= 3 else 0, newest.ndim))
    product = (happened * forecast).sum(axes, keepdim=True)
    size = forecast.square().sum(axes, keepdim=True)
    return torch.where(size > 0, product / size, torch.ones_like(size)).clamp(0, 1)
