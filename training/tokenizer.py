"""A tokenizer of the CLIP kind in which every word of the captions is one token."""

import string
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from transformers import CLIPTokenizer

MAX_TOKENS = 16
_SPECIAL_TOKENS = ["<|startoftext|>", "<|endoftext|>"]
_END_OF_WORD = "</w>"


def build_tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """Merge byte pairs until no word of the captions is split; other words fall back to pieces."""
    splitter = CLIPTokenizer(vocab=_numbered(_SPECIAL_TOKENS)).backend_tokenizer.pre_tokenizer
    words = {word for caption in captions for word, _ in splitter.pre_tokenize_str(caption.lower())}
    merges = _learn_merges(sorted(words))
    characters = sorted(string.ascii_lowercase + string.digits + string.punctuation)
    ends = [character + _END_OF_WORD for character in characters]
    vocabulary = [*_SPECIAL_TOKENS, *characters, *ends, *("".join(pair) for pair in merges)]
    return CLIPTokenizer(vocab=_numbered(vocabulary), merges=merges, model_max_length=MAX_TOKENS)


def _learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair encoding, always the same for the same words: equally frequent pairs go by their letters."""
    split = [[*word[:-1], word[-1] + _END_OF_WORD] for word in words]
    merges: list[tuple[str, str]] = []
    while counts := Counter(pair for pieces in split for pair in pairwise(pieces)):
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        split = [_merge(pieces, best) for pieces in split]
    return merges


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def _numbered(tokens: list[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}
