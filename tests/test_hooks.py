"""Several listeners on one method: each hears it, in whatever order they leave."""

import itertools

import pytest

from asyncdiff.hooks import guard, intercept_method, listen


class Owner:
    def step(self, number: int) -> int:
        return number + 1


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_listeners_on_one_method(order: tuple[int, ...]) -> None:
    owner, heard = Owner(), list[str]()
    undo = [
        listen(owner, "step", lambda number: heard.append(f"after {number}")),
        intercept_method(owner, "step", lambda call: call() * 10),
        guard(owner, "step", lambda number: heard.append(f"before {number}")),
    ]
    assert owner.step(1) == 20
    assert heard == ["before 1", "after 1"]
    for number in order:
        undo[number]()
    assert owner.step(1) == 2
    assert heard == ["before 1", "after 1"]
