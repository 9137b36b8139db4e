"""Which settings of a denoiser's modules make it another structure."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from asyncdiff.denoiser.structure import structure_of


class Processor:
    """What an attention block calls, no module."""

    def __init__(self, **settings: Any) -> None:
        vars(self).update(settings)

    def __call__(self) -> None: ...


class Notes:
    """What nothing calls."""

    def __init__(self, **settings: Any) -> None:
        vars(self).update(settings)


def with_setting(value: Any) -> nn.Module:
    denoiser = nn.Sequential(nn.Linear(2, 2))
    denoiser[0].setting = value
    return denoiser


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (0.5, 0.6),
        (torch.float16, torch.float32),
        ([0.0], [0.6]),
        ([0.0], [0.0, 0.0]),
        ([0.5], (0.5,)),
        ((1, (2, [3])), (1, (2, [4]))),
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"b": 1}),
        ({"a": [1, {"b": None}]}, {"a": [1, {"b": True}]}),
        ({1, 2}, {1, 3}),
        (frozenset({1, 2}), frozenset({1})),
        ([torch.zeros(1)], [None]),
        ([0] * 1000, [0] * 1001),
        (Processor(scale=[0.0]), Processor(scale=[0.6])),
        (Processor(scale=0.5), Notes(scale=0.5)),
        (lambda: None, None),
    ],
)
def test_another_structure(one: Any, other: Any) -> None:
    assert structure_of(with_setting(one)) != structure_of(with_setting(other))


@pytest.mark.parametrize(
    "make",
    [
        lambda: [0.5, "a", None],
        lambda: {"a": {1, 2}, "b": (3,)},
        lambda: [torch.rand(2), nn.Linear(2, 2)],
        lambda: torch.rand(3),
        lambda: Processor(scale=[0.5], seen=torch.rand(2), _private=object()),
        lambda: Notes(count=id(object())),
        lambda: {"callback": lambda: None},
        lambda: [[[[0]]]],
    ],
)
def test_the_same_structure(make: Callable[[], Any]) -> None:
    """Of tensors and objects only the kind counts."""
    one, other = structure_of(with_setting(make())), structure_of(with_setting(make()))
    assert one == other and hash(one) == hash(other)


def test_no_more_than_so_many_values_are_looked_at() -> None:
    class Counting(list):  # type: ignore[type-arg]
        seen = 0

        def __iter__(self) -> Any:
            for item in super().__iter__():
                Counting.seen += 1
                yield item

    structure_of(with_setting([Counting([0] * 100_000), Counting([0] * 100_000)]))
    assert 0 < Counting.seen < 1000
