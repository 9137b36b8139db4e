"""Parts of a batch: of arguments, and of results."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncdiff.plan.parts import Parts
from asyncdiff.runtime.batch import batch_rules, has_form_of_part, is_same_but_for_rounding, join


@given(st.integers(1, 5), st.integers(2, 12), st.integers(1, 3))
def test_parts_of_a_batch_put_together_are_the_whole(parts: int, batch: int, frames: int) -> None:
    arguments = {
        "sample": torch.randn(batch, 3),
        "timestep": torch.tensor([5.0]),
        "frames": (torch.randn(batch * frames, 2), None, 7),
        "sizes": [[("a", number)] for number in range(batch)],
        "shared": torch.randn(batch * 4 + 1, 2),
        "scale": 0.5,
    }
    rules = batch_rules(arguments["sample"], arguments)
    assert rules
    for rule in rules:
        divided = [rule.part(arguments, number, parts) for number in range(parts)]
        assert {len(part["sample"]) for part in divided} == {math.ceil(batch / parts)}
        for name in ("timestep", "shared", "scale"):
            assert all(part[name] is arguments[name] for part in divided)
        together = join([{name: part[name] for name in ("sample", "sizes")} for part in divided], batch)
        assert torch.equal(together["sample"], arguments["sample"])
        assert together["sizes"] == arguments["sizes"]
        if frames in rule.ratios:
            assert torch.equal(join([part["frames"][0] for part in divided], batch), arguments["frames"][0])


def test_no_batch() -> None:
    for main in (None, torch.zeros(()), torch.zeros(1, 2), [torch.zeros(2)]):
        assert not batch_rules(main, [main])


def test_a_list_with_a_tensor_for_each_member() -> None:
    latents, words = [torch.randn(2, 3) for _ in range(4)], [torch.randn(length, 2) for length in (1, 2, 4, 4)]
    (rule, *_) = batch_rules(latents, (latents, words))
    divided = [rule.part((latents, words, torch.arange(4)), number, 2) for number in range(2)]
    assert [len(part) for part in divided[1][:2]] == [2, 2]
    assert divided[1][0][0] is latents[2] and divided[1][1][1] is words[3]
    assert divided[1][2].tolist() == [2, 3]


def test_results_that_cannot_be_of_a_part() -> None:
    whole = (torch.zeros(4, 2), [torch.zeros(3)] * 4, None)
    assert has_form_of_part((torch.zeros(2, 2), [torch.zeros(3)] * 2, None), whole, Parts(4, 2))
    assert has_form_of_part((torch.zeros(2, 2), [torch.zeros(3)] * 2, None), whole, Parts(4, 3))
    for part in (
        (torch.zeros(4, 2), [torch.zeros(3)] * 2, None),
        (torch.zeros(2, 2), [torch.zeros(3)] * 3, None),
        (torch.zeros(2, 2), [torch.zeros(2)] * 2, None),
        (torch.zeros(2, 2).double(), [torch.zeros(3)] * 2, None),
        (torch.zeros(2, 2), [torch.zeros(3)] * 2),
    ):
        assert not has_form_of_part(part, whole, Parts(4, 2))


def test_one_wrong_member_is_not_lost_among_the_others() -> None:
    expected = torch.cat([1e6 * torch.ones(1, 3), torch.ones(1, 3)])
    assert is_same_but_for_rounding((expected * (1 + 1e-6),), (expected,))
    assert not is_same_but_for_rounding((expected + 1e-2,), (expected,))
    assert not is_same_but_for_rounding((expected * float("nan"),), (expected,))
