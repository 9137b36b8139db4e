"""What must be the same on all ranks: compared, and named where it differs."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from asyncdiff.errors import RankMismatchError
from asyncdiff.exchange.agreement import Statement, compare
from asyncdiff.runtime.statements import about_arguments


class Table:
    """Ranks that are threads, and lay what they gather on one table."""

    def __init__(self, size: int) -> None:
        self._laid: list[Tensor] = [torch.zeros(0)] * size
        self._barrier = Barrier(size, timeout=10)

    def seat(self, rank: int) -> "Seat":
        return Seat(self, rank)

    def gather(self, rank: int, mine: Tensor) -> list[Tensor]:
        self._laid[rank] = mine
        self._barrier.wait()
        everyone = list(self._laid)
        self._barrier.wait()
        if len({each.shape for each in everyone}) > 1:
            raise RuntimeError("what is gathered must be of one shape")
        return everyone


class Seat:
    def __init__(self, table: Table, rank: int) -> None:
        self._table, self._rank = table, rank

    def gather(self, mine: Tensor, what: str) -> list[Tensor]:
        return self._table.gather(self._rank, mine)


def outcomes(of_ranks: list[list[Statement]]) -> list[str]:
    """What comparing ends in, on every rank: an error's text, or nothing."""
    table, size = Table(len(of_ranks)), len(of_ranks)

    def work(rank: int) -> str:
        try:
            compare(lambda: of_ranks[rank], table.seat(rank), rank, range(size), "everything")
        except RankMismatchError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(work, range(size)))


def of_calls(*calls: dict[str, Any]) -> list[str]:
    return outcomes([about_arguments(call) for call in calls])


LATENTS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
CALL: dict[str, Any] = {
    "sample": LATENTS,
    "timestep": 3,
    "class_labels": torch.tensor([1, 2]),
    "added": {"mask": torch.tensor([True, False]), "sizes": [(8, 8), (4, 2.5)]},
    "name": "a",
    "return_dict": False,
}


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    call = {**CALL, "added": {**CALL["added"]}}
    change(call)
    return call


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "sample": lambda call: call.update(sample=LATENTS + 0.1),
    "sample.flipped": lambda call: call.update(sample=LATENTS.flip(0)),
    "sample.permuted": lambda call: call.update(sample=LATENTS.flip(-1)),
    "sample.half": lambda call: call.update(sample=LATENTS.half()),
    "timestep": lambda call: call.update(timestep=4),
    "class_labels": lambda call: call.update(class_labels=torch.tensor([2, 1])),
    "added['mask']": lambda call: call["added"].update(mask=torch.tensor([True, True])),
    "added['sizes'][1][1]": lambda call: call["added"].update(sizes=[(8, 8), (4, 2.6)]),
    "added['sizes'][0][1]": lambda call: call["added"].update(sizes=[(8, 9), (4, 2.5)]),
    "name": lambda call: call.update(name="b"),
    "return_dict": lambda call: call.update(return_dict=True),
    "name.none": lambda call: call.update(name=None),
}


def test_the_same_call_is_the_same() -> None:
    assert of_calls(CALL, changed(lambda call: None), CALL) == ["", "", ""]


def test_rounding_is_no_difference() -> None:
    assert of_calls(CALL, changed(lambda call: call.update(sample=LATENTS * (1 + 1e-5)))) == ["", ""]


@pytest.mark.parametrize("name", CHANGES)
def test_every_leaf_of_every_argument_counts(name: str) -> None:
    """And the error names it, on every rank."""
    argument = name.split(".")[0]
    texts = of_calls(CALL, CALL, changed(CHANGES[name]))
    for rank, text in enumerate(texts):
        assert text.startswith(f"rank {rank}: the argument ")
        assert argument in text.replace('"', "'").replace("\\'", "'")
        assert "rank 2" in text


def test_one_argument_more() -> None:
    (text, _) = of_calls(CALL, changed(lambda call: call.update(guidance=1)))
    assert "the argument 'guidance' is not the same on all ranks (rank 0: none, rank 1: 1)" in text


def test_more_numbers_than_have_room_in_the_first_word() -> None:
    many = {f"tensor {number}": LATENTS + number for number in range(40)}
    assert of_calls(many, {**many}) == ["", ""]
    (text, _) = of_calls(many, {**many, "tensor 39": LATENTS})
    assert "the argument 'tensor 39' of rank 1 is not that of rank 0" in text
    assert "are not the same" in of_calls(many, CALL)[0] or "is not the same" in of_calls(many, CALL)[0]


def test_an_error_tells_of_tensors_in_plain_words() -> None:
    """Numbers that a reader can understand, no hashes."""
    (text, _) = of_calls(CALL, changed(lambda call: call.update(class_labels=torch.tensor([1, 3]))))
    assert "(rank 0: (2,) torch.int64, mean 1.5, rank 1: (2,) torch.int64, mean 2)" in text
    (text, _) = of_calls(CALL, changed(CHANGES["class_labels"]))
    assert "(rank 0: (2,) torch.int64, mean 1.5, rank 1: other values)" in text
    (text, _) = of_calls({"sample": torch.tensor([3.0, 4.0])}, {"sample": torch.tensor([6.0, 8.0])})
    assert "(rank 0: mean 3.5, root mean square 3.53553, sum by place " in text
    assert "; rank 1: mean 7, root mean square 7.07107, sum by place " in text
    (text, _) = of_calls({"guidance": 2.5}, {"guidance": 3.5})
    assert "(rank 0: value 2.5; rank 1: value 3.5)" in text


def test_numbers_that_are_none_are_alike() -> None:
    spoilt = {"sample": LATENTS * float("nan")}
    assert of_calls(spoilt, spoilt) == ["", ""]
    assert "rank 1" in of_calls(CALL, {**CALL, **spoilt})[0]


def test_parts_are_asked_for_where_the_whole_differs() -> None:
    asked = []

    def whole(value: str) -> list[Statement]:
        def parts() -> list[Statement]:
            asked.append(value)
            return [Statement("one leaf", "same"), Statement("another leaf", value)]

        return [Statement("the tree", value, parts=parts)]

    assert outcomes([whole("a"), whole("a")]) == ["", ""]
    assert not asked
    assert "another leaf is not the same on all ranks (rank 0: a, rank 1: b)" in outcomes([whole("a"), whole("b")])[1]


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=4))
def test_all_ranks_come_to_the_same_end(values: list[str]) -> None:
    texts = outcomes([[Statement("a thing", value), Statement("a number", "", (1.0,), (1.0,))] for value in values])
    assert [bool(text) for text in texts] == [len(set(values)) > 1] * len(values)
