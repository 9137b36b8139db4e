"""Tensors in byte buffers: values, shapes and memory order come out as they went in."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from asyncdiff.exchange.packing import pack, view_of

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Dense tensors in any memory order; some of their dimensions have one element, or none."""
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    order = draw(st.permutations(range(len(shape))))
    numbers = torch.arange(math.prod(shape)) % 7
    return (
        numbers.to(draw(st.sampled_from(DTYPES)))
        .reshape([shape[place] for place in order])
        .permute([order.index(place) for place in range(len(shape))])
    )


@given(tensors(), st.integers(0, 3))
def test_what_is_packed_comes_out(tensor: Tensor, place: int) -> None:
    """From any part of a buffer that begins where messages let their parts begin; nothing beside it is touched."""
    begin, untouched = 64 * place, 255
    buffer = torch.full((begin + tensor.nbytes + 64,), untouched, dtype=torch.uint8)
    part = buffer[begin : begin + tensor.nbytes]
    pack(tensor, part)
    found = view_of(part, tensor.dtype, tensor.shape, tensor.stride())
    assert found.dtype == tensor.dtype and torch.equal(found, tensor)
    lying = [step for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]
    assert [step for step, size in zip(found.stride(), tensor.shape, strict=True) if size > 1] == lying or not len(part)
    assert bool((buffer[:begin] == untouched).all()) and bool((buffer[begin + tensor.nbytes :] == untouched).all())


@given(tensors(), st.integers(2, 3))
def test_a_stride_that_leaves_gaps_becomes_a_contiguous_one(tensor: Tensor, gap: int) -> None:
    gappy = tensor.contiguous().unsqueeze(-1).expand(*tensor.shape, gap).contiguous()[..., 0]
    part = torch.zeros(tensor.nbytes, dtype=torch.uint8)
    pack(gappy, part)
    found = view_of(part, gappy.dtype, gappy.shape, gappy.stride())
    assert torch.equal(found, tensor)
    assert found.is_contiguous() or tensor.numel() == 0


def test_channels_last_by_hand() -> None:
    tensor = torch.arange(6, dtype=torch.uint8).reshape(1, 2, 1, 3).to(memory_format=torch.channels_last)
    part = torch.zeros(6, dtype=torch.uint8)
    pack(tensor, part)
    assert part.tolist() == [0, 3, 1, 4, 2, 5], "pixel by pixel, as it lies in memory"
