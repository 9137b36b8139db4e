"""What is exchanged within a step, in few bits: shapes, sizes, and what it takes.

What ranks make of it: `tests/runtime/test_fresh_keys.py`.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncdiff.denoiser.trace import Leaf
from asyncdiff.plan.key_form import InBits
from asyncdiff.plan.storage import contiguous_stride
from tests.moved import Moved

EIGHT = InBits(8)


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 9)),
    dim=st.integers(0, 2),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
)
def test_there_and_back(shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    """A part along the dimension is what it is of the whole, and every number is off by half of a code at most."""
    vectors = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    travels = EIGHT.pack(vectors, dim)
    assert travels.shape == EIGHT.room(shape, dim, vectors).shape and travels.is_contiguous()
    assert travels.nbytes == EIGHT.nbytes(Leaf(0, shape, contiguous_stride(shape), dtype), shape[-2])
    found = EIGHT.unpack(travels, shape, dim, dtype)
    assert found.shape == shape and found.dtype == dtype
    most = vectors.float().abs().amax(-1, keepdim=True)
    assert bool(((found.float() - vectors.float()).abs() <= most * (0.5 / 127 + 2**-8)).all())
    first = [1 if axis == dim else size for axis, size in enumerate(shape)]
    part = EIGHT.unpack(travels.narrow(EIGHT.along(dim), 0, 1), first, dim, dtype)
    assert torch.equal(part, found.narrow(dim, 0, 1))
    assert torch.equal(EIGHT.rounded(vectors), found), "whatever the parts are"


@pytest.mark.parametrize("dim", [1, 2])
def test_what_the_plan_counts(dim: int) -> None:
    vectors = torch.randn(1, 8, 512, 128).bfloat16()
    with Moved() as packing:
        travels = EIGHT.pack(vectors, dim)
    with Moved() as unpacking:
        EIGHT.unpack(travels, vectors.shape, dim, vectors.dtype)
    assert packing.bytes == pytest.approx(EIGHT.passes(vectors.nbytes, 0), rel=0.1)
    assert unpacking.bytes == pytest.approx(EIGHT.passes(0, vectors.nbytes), rel=0.1)
