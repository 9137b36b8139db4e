"""A tokenizer of a handful of letters and a small text encoder, for pipelines that insist on encoding words."""

from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.tiny.base import TEXT_LENGTH

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_TOKENS = ("<|startoftext|>", "<|endoftext|>", *_LETTERS, *(letter + "</w>" for letter in _LETTERS))


def tiny_tokenizer() -> CLIPTokenizer:
    """Every letter is a token."""
    vocabulary = {token: number for number, token in enumerate(_TOKENS)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TEXT_LENGTH)


def _config(projection_dim: int = 16) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(_TOKENS),
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TEXT_LENGTH,
        projection_dim=projection_dim,
    )


def tiny_text_encoder() -> CLIPTextModel:
    return CLIPTextModel(_config())


def tiny_text_encoder_with_projection() -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(_config())
