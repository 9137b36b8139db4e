"""A tokenizer of the CLIP kind in which every word of the captions is one token."""

import json
import string
from collections.abc import Iterable

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

MAX_TOKENS = 16
_SPECIAL_TOKENS = ["<|startoftext|>", "<|endoftext|>"]
_MORE_THAN_ENOUGH = 100_000


def build_tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """Merge byte pairs until no word of the captions is split; other words fall back to pieces."""
    template = CLIPTokenizer(vocab={token: index for index, token in enumerate(_SPECIAL_TOKENS)})
    tokenizer = Tokenizer(BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = template.backend_tokenizer.normalizer
    tokenizer.pre_tokenizer = template.backend_tokenizer.pre_tokenizer
    characters = string.ascii_lowercase + string.digits + string.punctuation
    trainer = BpeTrainer(
        vocab_size=_MORE_THAN_ENOUGH,
        min_frequency=1,
        special_tokens=_SPECIAL_TOKENS,
        initial_alphabet=list(characters),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator([*captions, *characters], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return CLIPTokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        model_max_length=MAX_TOKENS,
    )
