"""Amounts and links as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncdiff import ConfigurationError
from asyncdiff.plan.link import Link
from asyncdiff.planning.links import LINKS, read_link
from asyncdiff.planning.quantity import read_bytes, written_bytes


@pytest.mark.parametrize(
    ("text", "amount"),
    [("24GB", 24e9), ("24 GiB", 24 * 2**30), ("0.5tb", 5e11), ("80000MB", 8e10), ("1000", 1000), (" 1 kib ", 1024)],
)
def test_amounts(text: str, amount: float) -> None:
    assert read_bytes("memory", text) == amount


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0GB", "24 Gb/s", "24 XB", "1e3GB", "nan", "1,5GB", "2GB 3"])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(ConfigurationError, match="memory must be an amount above 0 with its unit"):
        read_bytes("memory", text)


@given(st.integers(1, 10**15))
def test_written_amounts_are_read_again(amount: int) -> None:
    assert read_bytes("memory", written_bytes(amount)) == pytest.approx(amount, rel=0.005)


def test_links() -> None:
    assert read_link("nvlink") is LINKS["nvlink"]
    assert read_link("12GB/s") == Link("12GB/s", 12e9)
    assert read_link("12GB/s").seconds(24e9) == pytest.approx(2 + 10e-6)


@pytest.mark.parametrize("text", ["", "pcie9", "12GB", "12GB/h", "fast/s", "0GB/s"])
def test_what_is_no_link(text: str) -> None:
    with pytest.raises(ConfigurationError, match="link must be"):
        read_link(text)
