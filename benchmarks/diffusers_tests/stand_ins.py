"""Small tokenizers and encoders that stand in for those of the model hub, as a cache that is read offline.

diffusers' tests build their pipelines of small random parts, but fetch the tokenizers. Where those go is a folder, laid
out as the hub's client lays out its own, so that nothing that loads them is changed. Letters are tokens.
"""

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPTokenizer,
    Gemma2Config,
    GemmaTokenizer,
    LlamaConfig,
    LlamaTokenizer,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    RobertaTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
    XLMRobertaTokenizer,
)

_LETTERS = tuple(string.ascii_letters + string.digits + string.punctuation)
_START = "▁"  # of a word, as sentencepiece writes it
_REVISION = "0" * 40


def make_hub(folder: Path) -> Path:
    """Write all stand-ins below a folder; what `HF_HUB_CACHE` is to name."""
    transformers.logging.disable_progress_bar()
    for (repository, inner), makers in _STAND_INS.items():
        place = folder / f"models--{repository.replace('/', '--')}"
        for make in makers:
            torch.manual_seed(0)
            make().save_pretrained(place / "snapshots" / _REVISION / inner)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / "main").write_text(_REVISION, encoding="utf-8")
    return folder


def names() -> tuple[str, ...]:
    """The repositories of the hub that have a stand-in."""
    return tuple(dict.fromkeys(repository for repository, _ in _STAND_INS))


def _numbered(*special: str, letters: tuple[str, ...] = _LETTERS) -> dict[str, int]:
    return {token: number for number, token in enumerate((*special, *letters))}


def _clip_tokenizer() -> Any:
    ends = tuple(letter + "</w>" for letter in _LETTERS)
    vocabulary = _numbered("<|startoftext|>", "<|unused|>", "<|endoftext|>", letters=(*_LETTERS, *ends))
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _sentencepiece(*special: str) -> list[tuple[str, float]]:
    return [(token, 0.0) for token in special] + [(letter, -2.0) for letter in (_START, *_LETTERS)]


def _t5_tokenizer() -> Any:
    return T5Tokenizer(vocab=_sentencepiece("<pad>", "</s>", "<unk>"), extra_ids=100, model_max_length=512)


# The tests compare two calls of an encoder that nobody has put into evaluation mode.
_T5 = dict(
    vocab_size=1103,
    dropout_rate=0.0,
    d_model=32,
    d_kv=8,
    d_ff=37,
    num_layers=5,
    num_heads=4,
    relative_attention_num_buckets=8,
)


def _t5_encoder() -> Any:
    return T5EncoderModel(T5Config(**_T5, decoder_start_token_id=0))


def _umt5_encoder() -> Any:
    return UMT5EncoderModel(UMT5Config(**_T5, decoder_start_token_id=0))


def _bert_tokenizer() -> Any:
    pieces = tuple(f"##{letter}" for letter in _LETTERS)
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    return BertTokenizer(vocab=_numbered(*special, letters=(*_LETTERS, *pieces)), model_max_length=512)


def _bert() -> Any:
    sizes = dict(hidden_size=32, intermediate_size=37, num_hidden_layers=5, num_attention_heads=4)
    return BertModel(BertConfig(vocab_size=1124, **sizes))


def _roberta_tokenizer() -> Any:
    return RobertaTokenizer(vocab=_numbered("<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ"), merges=[])


def _xlm_roberta_tokenizer() -> Any:
    special = ("<s>", "<pad>", "</s>", "<unk>")
    return XLMRobertaTokenizer(vocab=[*_sentencepiece(*special), ("<mask>", 0.0)], model_max_length=512)


def _qwen_tokenizer() -> Any:
    return Qwen2Tokenizer(vocab=_numbered("<|endoftext|>", "Ġ", "Ċ"), merges=[], model_max_length=1024)


def _gemma_tokenizer() -> Any:
    # The tests' encoders know eight tokens.
    vocabulary = _numbered("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", letters=(_START, "a", "b"))
    return GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=512)


def _llama_tokenizer() -> Any:
    return LlamaTokenizer(
        vocab=_numbered("<unk>", "<s>", "</s>", _START), merges=[], pad_token="</s>", model_max_length=512
    )


# By repository and folder in it. A configuration says to `AutoTokenizer` of what family a tokenizer is.
_STAND_INS: dict[tuple[str, str], tuple[Callable[[], Any], ...]] = {
    ("hf-internal-testing/tiny-random-clip", ""): (_clip_tokenizer,),
    ("hf-internal-testing/tiny-random-t5", ""): (_t5_encoder, _t5_tokenizer),
    ("hf-internal-testing/tiny-random-T5Model", ""): (_t5_tokenizer,),
    ("hf-internal-testing/tiny-random-T5ForConditionalGeneration", ""): (_t5_encoder, _t5_tokenizer),
    ("hf-internal-testing/tiny-random-umt5", ""): (_umt5_encoder, _t5_tokenizer),
    ("hf-internal-testing/tiny-random-BertModel", ""): (_bert, _bert_tokenizer),
    ("hf-internal-testing/tiny-random-roberta", ""): (_roberta_tokenizer,),
    ("hf-internal-testing/tiny-random-Qwen2VLForConditionalGeneration", ""): (Qwen2VLConfig, _qwen_tokenizer),
    ("hf-internal-testing/dummy-gemma", ""): (Gemma2Config, _gemma_tokenizer),
    ("hf-internal-testing/llama-tokenizer", ""): (LlamaConfig, _llama_tokenizer),
    ("hf-internal-testing/tiny-random-LlamaForCausalLM", ""): (LlamaConfig, _llama_tokenizer),
    ("finetrainers/dummy-hunyaunvideo", "tokenizer"): (LlamaConfig, _llama_tokenizer),
    ("YiYiXu/tiny-random-mclip-base", ""): (_xlm_roberta_tokenizer,),
}
