"""Denoisers quantized as people quantize them, by the libraries that are installed."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

GGUF_BLOCK = 32  # numbers with a scale


def with_torchao(denoiser: nn.Module, kind: str) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(denoiser, getattr(quantization, kind)())


def with_bitsandbytes(denoiser: nn.Module, kind: str) -> None:
    layers = pytest.importorskip("bitsandbytes").nn
    options = {"has_fp16_weights": False} if kind == "Linear8bitLt" else {"compute_dtype": torch.float32}
    for name, module in _inner_layers(denoiser):
        layer = getattr(layers, kind)(module.in_features, module.out_features, module.bias is not None, **options)
        layer.load_state_dict(module.state_dict())
        denoiser.set_submodule(name, layer.to("cpu"))


def with_gguf(denoiser: nn.Module, kind: str) -> None:
    gguf: Any = pytest.importorskip("gguf")
    gguf_layers: Any = pytest.importorskip("diffusers.quantizers.gguf.utils")
    for name, module in _inner_layers(denoiser):
        if module.in_features % GGUF_BLOCK:
            continue
        layer = gguf_layers.GGUFLinear(
            module.in_features, module.out_features, module.bias is not None, compute_dtype=torch.float32
        )
        packed = gguf.quants.quantize(module.weight.detach().numpy(), gguf.GGMLQuantizationType[kind])
        layer.weight = gguf_layers.GGUFParameter(torch.from_numpy(packed), quant_type=gguf.GGMLQuantizationType[kind])
        layer.bias = module.bias
        denoiser.set_submodule(name, layer)


def _inner_layers(denoiser: nn.Module) -> list[tuple[str, nn.Linear]]:
    found = [(name, module) for name, module in denoiser.named_modules() if isinstance(module, nn.Linear)]
    return [(name, module) for name, module in found if "transformer_blocks" in name]


def in_half_precision(denoiser: nn.Module) -> None:
    denoiser.to(torch.bfloat16)


KINDS: dict[str, Callable[[nn.Module], None]] = {
    "torchao int8": functools.partial(with_torchao, kind="Int8WeightOnlyConfig"),
    "torchao int8 and inputs": functools.partial(with_torchao, kind="Int8DynamicActivationInt8WeightConfig"),
    "torchao intx": functools.partial(with_torchao, kind="IntxWeightOnlyConfig"),
    "bitsandbytes 8 bit": functools.partial(with_bitsandbytes, kind="Linear8bitLt"),
    "bitsandbytes nf4": functools.partial(with_bitsandbytes, kind="LinearNF4"),
    "gguf Q8_0": functools.partial(with_gguf, kind="Q8_0"),
    "gguf Q4_0": functools.partial(with_gguf, kind="Q4_0"),
    "bfloat16": in_half_precision,
}
