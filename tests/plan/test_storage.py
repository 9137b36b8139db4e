"""Edges in flat buffers: values, shapes and memory order come out as they went in, and rows are edges' pictures."""

import math

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from asyncdiff.denoiser.graph import Edge
from asyncdiff.plan.storage import Span
from tests.versions import lay_out_by_hand

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


def view_of(flat: Tensor, like: Tensor) -> Tensor:
    """A buffer's part in the form of a tensor."""
    edge = Edge(0, 0)
    return lay_out_by_hand({edge: like}).view(edge, flat)


@st.composite
def tensors(draw: st.DrawFn, dtypes: list[torch.dtype] = DTYPES) -> Tensor:
    """Dense tensors in any memory order; some of their dimensions have one element, or none."""
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    order = draw(st.permutations(range(len(shape))))
    numbers = torch.arange(math.prod(shape)) % 7
    return (
        numbers.to(draw(st.sampled_from(dtypes)))
        .reshape([shape[place] for place in order])
        .permute([order.index(place) for place in range(len(shape))])
    )


@given(tensors(), st.integers(0, 3))
def test_what_is_put_in_comes_out(tensor: Tensor, begin: int) -> None:
    """From any part of a buffer; nothing beside it is touched."""
    untouched = 1
    buffer = torch.full((begin + tensor.numel() + 3,), untouched, dtype=tensor.dtype)
    part = buffer[begin : begin + tensor.numel()]
    view_of(part, tensor).copy_(tensor)
    found = view_of(part, tensor)
    assert found.dtype == tensor.dtype and torch.equal(found, tensor)
    lying = [step for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]
    assert [step for step, size in zip(found.stride(), tensor.shape, strict=True) if size > 1] == lying or not len(part)
    assert bool((buffer[:begin] == untouched).all()) and bool((buffer[begin + tensor.numel() :] == untouched).all())


@given(tensors(), st.integers(2, 3))
def test_a_stride_that_leaves_gaps_becomes_a_contiguous_one(tensor: Tensor, gap: int) -> None:
    gappy = tensor.contiguous().unsqueeze(-1).expand(*tensor.shape, gap).contiguous()[..., 0]
    part = torch.zeros(tensor.numel(), dtype=tensor.dtype)
    view_of(part, gappy).copy_(gappy)
    found = view_of(part, gappy)
    assert torch.equal(found, tensor)
    assert found.is_contiguous() or tensor.numel() == 0


def test_channels_last_by_hand() -> None:
    tensor = torch.arange(6, dtype=torch.uint8).reshape(1, 2, 1, 3).to(memory_format=torch.channels_last)
    part = torch.zeros(6, dtype=torch.uint8)
    view_of(part, tensor).copy_(tensor)
    assert part.tolist() == [0, 3, 1, 4, 2, 5], "pixel by pixel, as it lies in memory"


@given(st.lists(tensors([torch.float32]), min_size=1, max_size=4))
def test_every_element_lies_in_the_row_of_its_edge_and_picture(given_tensors: list[Tensor]) -> None:
    edges = {Edge(number, 0): tensor for number, tensor in enumerate(given_tensors)}
    assume(any(tensor.numel() for tensor in given_tensors))
    storage = lay_out_by_hand(edges)
    rows = storage.rows(torch.float32)
    of_element = rows.of_block.repeat_interleave(rows.block)
    expected = []
    for tensor in given_tensors:
        if not tensor.numel():
            continue
        first = len(expected)
        members = len(tensor) if tensor.ndim >= 3 else 1
        expected += [(first + member, tensor) for member in range(members)]
    assert rows.total == len(expected) == sum(storage.members(torch.float32))
    for edge, tensor in edges.items():
        span = storage.spans[edge]
        if not tensor.numel():
            continue
        found = storage.view(edge, of_element[span.start : span.stop])
        members = list(found) if tensor.ndim >= 3 else [found]
        assert all(len(member.unique()) == 1 for member in members), "a row for each picture"
        assert len({int(member.flatten()[0]) for member in members}) == len(members), "and none for two"


def test_neighbours_are_joined() -> None:
    edges = {Edge(number, 0): torch.zeros(number + 1) for number in range(4)}
    storage = lay_out_by_hand(edges)
    assert storage.joined([Edge(0, 0), Edge(1, 0), Edge(3, 0)]) == (
        Span(torch.float32, 0, 3),
        Span(torch.float32, 6, 10),
    )
