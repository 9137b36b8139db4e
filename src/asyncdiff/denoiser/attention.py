"""Calls of attention, wherever in a denoiser they are made: seen, and answered otherwise.

All of diffusers' own attention processors come to `torch.nn.functional.scaled_dot_product_attention`, some by way of
`dispatch_attention_fn`, with rotary embeddings and norms applied by then.
"""

import functools
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function


class AttentionCall(NamedTuple):
    """A call of attention.

    Attributes:
        query: shape (batch, heads, queries, channels).
        key, value: shape (batch, heads, keys, channels).
        mask: shape (…, queries, keys), broadcastable; None for none.
        options: the other arguments.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    options: dict[str, Any]

    @property
    def heads(self) -> int:
        """How many heads can be computed apart from each other; 0 for none."""
        shapes = {tensor.shape[:2] for tensor in (self.query, self.key, self.value)}
        is_plain = self.mask is None and not self.options["is_causal"] and self.query.ndim == 4 and len(shapes) == 1
        return self.query.shape[1] if is_plain else 0

    def __call__(self) -> Tensor:
        """Make the call; returns its result, shape (batch, heads, queries, channels of the values)."""
        return F.scaled_dot_product_attention(self.query, self.key, self.value, self.mask, **self.options)


class AttentionCalls:
    """Inside of this context calls of attention, in this thread, are answered by a function.

    The function is torch's own, or what a user has put into its place, and is seen where it is looked up in
    `torch.nn.functional`. A mode of torch's would be told of every other function, too: that makes a call take the host
    half as long again.
    """

    def __init__(self, answer: Callable[[AttentionCall], Tensor]) -> None:
        self._answer = answer

    def __enter__(self) -> None:
        _PLACE.take()
        _ANSWERS.of_thread.append(self._answer)

    def __exit__(self, *_: object) -> None:
        _ANSWERS.of_thread.pop()
        _PLACE.leave()


class _Answers(threading.local):
    """Those that are asked in a thread, the innermost last."""

    def __init__(self) -> None:
        self.of_thread: list[Callable[[AttentionCall], Tensor]] = []


class _Place:
    """Where the function is looked up; taken as long as anyone looks, in any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._found: Callable[..., Tensor] = F.scaled_dot_product_attention
        self._put: Callable[..., Tensor] = self._found

    def take(self) -> None:
        with self._lock:
            self._count += 1
            if self._count == 1:
                self._found = F.scaled_dot_product_attention
                self._put = _asking(self._found)
                F.scaled_dot_product_attention = self._put

    def leave(self) -> None:
        with self._lock:
            self._count -= 1
            # Who has put something there since then is not to lose it.
            if self._count == 0 and F.scaled_dot_product_attention is self._put:
                F.scaled_dot_product_attention = self._found


_ANSWERS, _PLACE = _Answers(), _Place()


def _asking(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function in its place: asks the innermost of the thread, which does not see what it calls itself.

    Modes of torch's are told first, as they are of the plain one: diffusers' perturbed attention guidance is one, which
    knows the function by its place.
    """

    @functools.wraps(plain)
    def attention(*args: Any, **kwargs: Any) -> Tensor:
        given = (*args, *kwargs.values())
        if has_torch_function(given):
            told: Tensor = handle_torch_function(attention, given, *args, **kwargs)
            return told
        answers = _ANSWERS.of_thread
        if not answers:
            return plain(*args, **kwargs)
        answer = answers.pop()
        try:
            return answer(_attention_call(*args, **kwargs))
        finally:
            answers.append(answer)

    return attention


def _attention_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> AttentionCall:
    return AttentionCall(query, key, value, attn_mask, {"dropout_p": dropout_p, "is_causal": is_causal, **options})
