"""Tensors whose values are still to come: what waits for them, and what does not."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from asyncdiff.errors import ExchangeError
from asyncdiff.runtime.deferred import DeferredTensor, Settlement, deferred, settled


def waiting(values: Tensor) -> tuple[Tensor, list[str], Settlement]:
    """A deferred tensor, and what was done to it."""
    memory, done = torch.full_like(values, float("nan")), []

    def settle() -> None:
        done.append("settled")
        memory.copy_(values)

    settlement = Settlement(settle)
    return deferred(memory, settlement), done, settlement


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[0],
        lambda x: x[:, 1:],
        lambda x: x.chunk(2)[1],
        lambda x: x.unsqueeze(0).transpose(1, 2),
        lambda x: x.to(torch.float32).float(),
        lambda x: x.reshape(-1),
        lambda x: x.T,
    ],
)
def test_a_view_does_not_wait(view: Callable[[Tensor], Tensor]) -> None:
    values = torch.arange(6.0).view(2, 3)
    tensor, done, _ = waiting(values)
    seen = view(tensor)
    assert seen.shape == view(values).shape and seen.dtype == values.dtype and not done
    result = seen + 0
    assert done == ["settled"]
    assert type(result) is Tensor and torch.equal(result, view(values))
    assert torch.equal(tensor * 2, values * 2) and done == ["settled"]


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x + 1,
        lambda x: 1 - x,
        lambda x: torch.cat([x, x]),
        lambda x: x[[0, 1]],
        lambda x: x.double(),
        lambda x: x.T.reshape(-1),
        lambda x: x.clone(),
        lambda x: torch.from_numpy(x.numpy()),
        lambda x: torch.tensor(x.tolist()),
        lambda x: torch.stack(list(x)),
        lambda x: torch.zeros(2, 3).copy_(x),
        lambda x: x.mul_(2),
        lambda x: settled({"a": [x]})["a"][0],
    ],
)
def test_whatever_reads_waits(read: Callable[[Tensor], Tensor]) -> None:
    values = torch.arange(6.0).view(2, 3)
    tensor, done, _ = waiting(values)
    found = read(tensor)
    assert done == ["settled"]
    assert torch.equal(found, read(values.clone()))
    assert not isinstance(found, DeferredTensor)


def test_what_will_never_come() -> None:
    tensor, _, settlement = waiting(torch.ones(2))
    settlement.drop()
    with pytest.raises(ExchangeError, match="broken off"):
        tensor.sum()
    tensor, _, settlement = waiting(torch.ones(2))
    settlement.settle()
    settlement.drop()
    assert tensor.sum() == 2
