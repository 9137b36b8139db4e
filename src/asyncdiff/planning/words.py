"""What stands for a tokenizer whose words are not there: every text has as many of them as the tokenizer allows."""

import json
from collections import UserDict
from pathlib import Path
from typing import Any

import torch

_LENGTH = 77  # where nothing is said, or that there is no limit
_LONGEST = 4096


class _Tokens(UserDict):
    """Token numbers and their mask, to be read by name or as attributes."""

    def __getattr__(self, name: str) -> Any:
        if name == "data":
            raise AttributeError(name)
        return self.data[name]

    def to(self, *args: Any, **kwargs: Any) -> "_Tokens":
        """The same on a device."""
        return _Tokens({name: tokens.to(*args, **kwargs) for name, tokens in self.data.items()})


class StandInTokenizer:
    """Answers as a tokenizer that knows one word, number 0.

    Args:
        folder: where the tokenizer's configuration is, which says how long a text may be.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        length = told.get("model_max_length", _LENGTH)
        self.model_max_length = int(length) if length <= _LONGEST else _LENGTH
        self.pad_token_id = self.bos_token_id = self.eos_token_id = self.unk_token_id = 0
        self.padding_side = "right"

    def __call__(self, text: str | list[str] = "", *args: Any, max_length: int | None = None, **kwargs: Any) -> Any:
        count = 1 if isinstance(text, str) else len(text)
        length = max_length or self.model_max_length
        form = (count, length)
        return _Tokens(
            input_ids=torch.zeros(form, dtype=torch.int64), attention_mask=torch.ones(form, dtype=torch.int64)
        )

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> str:
        """A conversation as one text."""
        return ""

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """The words of a text."""
        return text.split()

    def batch_decode(self, tokens: Any, **kwargs: Any) -> list[str]:
        """The texts of token numbers."""
        return [""] * len(tokens)

    def __len__(self) -> int:
        return 1
