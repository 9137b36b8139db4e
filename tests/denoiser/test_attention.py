"""Calls of attention are seen wherever they are made, in this thread, as long as somebody looks."""

import threading
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor
from torch.overrides import TorchFunctionMode

from asyncdiff.denoiser.attention import AttentionCall, AttentionCalls


def tensors(mask: bool = False) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 4), (1, 1, 3, 5)]
    return tuple(torch.randn(shape, generator=generator) for shape in shapes[: 3 + mask])


def test_a_call_is_seen_and_made() -> None:
    seen: list[AttentionCall] = []

    def answer(call: AttentionCall) -> Tensor:
        seen.append(call)
        return call()

    query, key, value, mask = tensors(mask=True)
    plain = F.scaled_dot_product_attention(query, key, value, mask, scale=0.3)
    with AttentionCalls(answer):
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3)
    assert torch.equal(found, plain)
    (call,) = seen
    assert call.query is query and call.key is key and call.value is value and call.mask is mask
    F.scaled_dot_product_attention(query, key, value)
    assert len(seen) == 1


@pytest.mark.parametrize("is_causal", [False, True])
def test_options_are_kept(is_causal: bool) -> None:
    query, key, value = tensors()
    plain = F.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
    with AttentionCalls(lambda call: call()):
        assert torch.equal(F.scaled_dot_product_attention(query, key, value, is_causal=is_causal), plain)


def test_calls_by_way_of_diffusers_dispatch() -> None:
    shapes: list[tuple[int, ...]] = []

    def answer(call: AttentionCall) -> Tensor:
        shapes.append(tuple(call.key.shape))
        return torch.zeros_like(call.query)

    query, key, value = (tensor.transpose(1, 2) for tensor in tensors())
    with AttentionCalls(answer):
        assert not dispatch_attention_fn(query, key, value).any()
    assert shapes == [(1, 2, 5, 4)]  # heads before tokens, as torch has it


def test_another_thread_is_left_alone() -> None:
    results: list[Tensor] = []

    def call() -> None:
        results.append(F.scaled_dot_product_attention(*tensors()))

    with AttentionCalls(lambda call: torch.zeros_like(call.query)):
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        call()
    assert results[0].any() and not results[1].any()


def test_the_innermost_is_asked_and_does_not_see_what_it_calls() -> None:
    order: list[str] = []

    def answer(name: str, call: AttentionCall) -> Tensor:
        order.append(name)
        return call()

    plain = F.scaled_dot_product_attention(*tensors())
    with AttentionCalls(partial(answer, "outer")), AttentionCalls(partial(answer, "inner")):
        assert torch.equal(F.scaled_dot_product_attention(*tensors()), plain)
    assert order == ["inner", "outer"]


def test_torch_s_place_is_left_as_it_was_found() -> None:
    found = F.scaled_dot_product_attention

    def failing() -> None:
        with AttentionCalls(lambda call: call()):
            assert F.scaled_dot_product_attention is not found
            F.scaled_dot_product_attention(*tensors())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert F.scaled_dot_product_attention is found


def test_what_others_put_there_meanwhile_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    plain = F.scaled_dot_product_attention(*tensors())
    with AttentionCalls(lambda call: call()):
        before = F.scaled_dot_product_attention

        def own(*args: Any, **kwargs: Any) -> Tensor:
            seen.append(1)
            found: Tensor = before(*args, **kwargs)
            return found

        monkeypatch.setattr(F, "scaled_dot_product_attention", own)
    assert F.scaled_dot_product_attention is own
    for _ in range(2):
        with AttentionCalls(lambda call: call()):
            assert torch.equal(F.scaled_dot_product_attention(*tensors()), plain)
    assert len(seen) == 2 and F.scaled_dot_product_attention is own


class ValuesOnly(TorchFunctionMode):
    """As diffusers' perturbed attention guidance has it: attention is known by where it is looked up."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[2] if func is F.scaled_dot_product_attention else func(*args, **(kwargs or {}))


def test_modes_of_torch_know_the_function_by_its_place() -> None:
    """In this thread, and in another that nobody looks at."""
    query, key, value = tensors()
    seen: list[AttentionCall] = []
    results: list[Tensor] = []

    def call() -> None:
        with ValuesOnly():
            results.append(F.scaled_dot_product_attention(query, key, value))

    def answer(call: AttentionCall) -> Tensor:
        seen.append(call)
        return call()

    with AttentionCalls(answer):
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        call()
        with torch.device("cpu"):  # a mode that has nothing to say of it
            found = F.scaled_dot_product_attention(query, key, value)
    assert all(result is value for result in results) and len(results) == 2
    assert len(seen) == 1 and torch.equal(found, F.scaled_dot_product_attention(query, key, value))
