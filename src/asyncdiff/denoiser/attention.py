"""Calls of attention, wherever in a denoiser they are made: seen, and answered otherwise.

All of diffusers' own attention processors come to `torch.nn.functional.scaled_dot_product_attention`, some by way of
`dispatch_attention_fn`, with rotary embeddings and norms applied by then.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


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

    def __call__(self) -> Tensor:
        """Make the call; returns its result, shape (batch, heads, queries, channels of the values)."""
        return F.scaled_dot_product_attention(self.query, self.key, self.value, self.mask, **self.options)


class AttentionCalls(TorchFunctionMode):
    """Inside of this context calls of attention, in this thread, are answered by a function."""

    def __init__(self, answer: Callable[[AttentionCall], Tensor]) -> None:
        super().__init__()
        self._answer = answer

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return self._answer(_attention_call(*args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


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
