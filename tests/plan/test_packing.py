"""Differences in a few bits: what rounding leaves, zeros, and what is no number."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncdiff.plan.packing import Packing, packing_for

CPU = torch.device("cpu")
POWERS = st.integers(-20, 20)
BITS = pytest.mark.parametrize("bits", [4, 8])


def there_and_back(packing: Packing, numbers: torch.Tensor) -> torch.Tensor:
    room = packing.room(len(numbers), CPU)
    packing.pack(numbers, room)
    assert room.nbytes == packing.nbytes(len(numbers))
    return packing.unpack(room)


@BITS
@given(
    group=st.sampled_from([1, 2, 3, 8, 64]),
    groups=st.integers(1, 5),
    seed=st.integers(0, 99),
    power=st.integers(-20, 20),
)
def test_a_number_is_off_by_half_a_step_at_most(bits: int, group: int, groups: int, seed: int, power: int) -> None:
    """A step is a group's largest number over 7, or over 127; the scale itself has eight bits."""
    numbers = torch.randn(group * groups, generator=torch.Generator().manual_seed(seed)) * 10.0**power
    found = there_and_back(Packing(bits, group), numbers)
    steps = numbers.view(groups, group).abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    off = (found - numbers).view(groups, group).abs()
    assert bool((off <= steps * (0.5 + 2**-8 * 2 ** (bits - 1)) + 1e-38).all())


@BITS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("largest", [6e4, 1.0, 1e-3, 3e-5, 1e-6], ids=str)
def test_half_precision_is_as_close(bits: int, dtype: torch.dtype, largest: float) -> None:
    """Scales of small numbers are smaller than what half precision can tell apart."""
    numbers = (torch.randn(32, 64, generator=torch.Generator().manual_seed(0)) * largest / 5).to(dtype)
    packing, exact = Packing(bits, 64), numbers.float()
    room = packing.room(numbers.numel(), CPU)
    packing.pack(numbers.flatten(), room)
    steps = exact.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    least = steps * (0.5 + 2**-8 * 2 ** (bits - 1))
    assert bool(((packing.unpack(room).view(32, 64) - exact).abs() <= least + 1e-38).all())
    found = packing.unpack(room, dtype)
    assert found.dtype == dtype and torch.equal(found, packing.unpack(room).to(dtype))


@BITS
def test_the_largest_numbers_of_half_precision_stay_numbers(bits: int) -> None:
    """FLUX clips what it computes in this format to them; a scale that is rounded up must not lead beyond."""
    numbers = torch.linspace(65024, 65504, 16).to(torch.float16).repeat_interleave(2)
    packing = Packing(bits, 2)
    room = packing.room(len(numbers), CPU)
    packing.pack(numbers, room)
    found = packing.unpack(room, torch.float16)
    assert bool(found.isfinite().all()) and torch.allclose(found.float(), numbers.float(), rtol=0.01)


@BITS
def test_zeros_are_zeros(bits: int) -> None:
    packing = Packing(bits, 3)
    assert there_and_back(packing, torch.zeros(9)).tolist() == [0.0] * 9
    assert packing.unpack(packing.room(9, CPU, 2)).tolist() == [[0.0] * 9] * 2, "an empty room"


@BITS
def test_by_hand(bits: int) -> None:
    most = 2 ** (bits - 1) - 1
    numbers = torch.tensor([most, -most, 1, -2, 0.4, 3]) * 0.25
    assert there_and_back(Packing(bits, 6), numbers).tolist() == [most / 4, -most / 4, 0.25, -0.5, 0.0, 0.75]


@BITS
def test_what_is_no_number_stays_none_and_within_its_group(bits: int) -> None:
    numbers = torch.tensor([1.0, torch.nan, 2.0, 3.0, torch.inf, 1.0, 1.0, 1.0])
    found = there_and_back(Packing(bits, 2), numbers)
    assert not found[:2].isfinite().any() and not found[4:6].isfinite().any()
    assert found[2:4].isfinite().all() and found[6:].tolist() == pytest.approx([1.0, 1.0], rel=2**-8)


@BITS
def test_a_part_is_packed_for_itself(bits: int) -> None:
    packing = Packing(bits, 4)
    room = packing.room(16, CPU)
    packing.pack(torch.full((8,), 0.5), packing.part(room, 4, 12))
    assert packing.unpack(room).tolist() == pytest.approx([0.0] * 4 + [0.5] * 8 + [0.0] * 4, rel=2**-8)


def test_sizes() -> None:
    assert packing_for(4, [1152, 96]) == Packing(4, 32)
    assert Packing(4, 128).nbytes(1280) == 10 * (64 + 2) and Packing(8, 128).nbytes(1280) == 10 * (128 + 2)
    assert packing_for(8, [15]).group == 1
