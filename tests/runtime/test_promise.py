"""A promise behaves like the tensor that it stands for, which is made when it is first looked at."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from asyncdiff.runtime.promise import Promise, without_promises

NUMBERS = torch.arange(1.0, 13.0).reshape(3, 4)

USES: list[Callable[[Any], Any]] = [
    lambda each: each + 1,
    lambda each: 1 - each,
    lambda each: NUMBERS * each,
    lambda each: NUMBERS / each,
    lambda each: each / each,
    lambda each: -each,
    lambda each: each @ NUMBERS.T,
    lambda each: each[1:, ::2],
    lambda each: each.clamp(0, 5),
    lambda each: torch.cat([each, each]),
    lambda each: torch.nn.functional.silu(input=each),
    lambda each: torch.nn.functional.linear(each, NUMBERS),
    lambda each: torch.stack(list(each)),
    lambda each: torch.tensor([*each.shape, len(each), each.ndim]),
    lambda each: each < 4,
    lambda each: _written(each),
    lambda each: _written_into_another(each),
    lambda each: without_promises({"sample": [each]})["sample"][0],
]


def _written(each: Any) -> Any:
    each[:, 0] = each[:, 1] * 2
    each += 1
    return each * 1


def _written_into_another(each: Any) -> Any:
    other = torch.zeros(3, 4)
    other[:, 1:] = each[:, 1:]
    other[0] = each[0]
    other += each
    return other


@pytest.mark.parametrize("use", USES)
def test_it_is_used_like_its_tensor(use: Callable[[Any], Any]) -> None:
    made: list[int] = []

    def settle() -> None:
        made.append(1)
        promise.keep(NUMBERS.clone())

    promise = Promise(settle)
    assert not made
    found = use(promise)
    assert type(found) is Tensor and torch.equal(found, use(NUMBERS.clone()))
    assert made == [1]


def test_what_will_never_come() -> None:
    with pytest.raises(RuntimeError, match="after its decoding had failed"):
        Promise(lambda: None).shape  # noqa: B018
