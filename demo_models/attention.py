"""Attention of the demo DiT, which stands in zeros for a text encoder that it does not have, at a third of the time."""

import math

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

T5_TOKENS = 256  # how many zeros StableDiffusion3Pipeline puts in place of a missing T5 encoder


class FoldedZerosAttention:
    """Joint attention in which the last text token stands for all the zeros in place of T5.

    The zeros have no positions, so that they stay equal to each other in every block. One of them
    whose attention logit is larger by log(n) has exactly the effect of n, at a third of the time.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
    ) -> tuple[Tensor, Tensor]:
        def heads(projected: Tensor) -> Tensor:
            batch, tokens, width = projected.shape
            return projected.view(batch, tokens, attn.heads, width // attn.heads).transpose(1, 2)

        query = attn.norm_q(heads(attn.to_q(hidden_states)))
        key = attn.norm_k(heads(attn.to_k(hidden_states)))
        value = heads(attn.to_v(hidden_states))
        text_query = attn.norm_added_q(heads(attn.add_q_proj(encoder_hidden_states)))
        text_key = attn.norm_added_k(heads(attn.add_k_proj(encoder_hidden_states)))
        text_value = heads(attn.add_v_proj(encoder_hidden_states))
        query = torch.cat([query, text_query], dim=2) / math.sqrt(query.shape[-1])
        key = torch.cat([key, text_key], dim=2)
        value = torch.cat([value, text_value], dim=2)
        scores = (query @ key.transpose(-1, -2)).float()  # plain, as fused attention is slow backwards on CPUs
        bias = scores.new_zeros(scores.shape[-1])
        bias[-1] = math.log(T5_TOKENS)
        attended = (scores + bias).softmax(dim=-1).to(value.dtype) @ value
        attended = attended.transpose(1, 2).flatten(2)
        image_tokens = hidden_states.shape[1]
        image, text = attended[:, :image_tokens], attended[:, image_tokens:]
        return attn.to_out[0](image), text if attn.context_pre_only else attn.to_add_out(text)
