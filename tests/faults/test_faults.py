"""Every cell of the matrix; see docs/reliability.md."""

import pytest

from tests.faults.cell import try_out
from tests.faults.matrix import LAYOUTS, QUICK, Cell, Fault, Moment, cells
from tests.faults.page import PAGE


@pytest.mark.parametrize("cell", QUICK, ids=str)
def test_quick_part(cell: Cell) -> None:
    outcome = try_out(cell)
    assert not outcome.wrong, outcome.wrong


@pytest.mark.whole
@pytest.mark.parametrize("cell", [cell for cell in cells() if cell not in QUICK], ids=str)
def test_whole_matrix(cell: Cell) -> None:
    outcome = try_out(cell)
    assert not outcome.wrong, outcome.wrong


def test_the_quick_part_has_every_fault_and_every_layout() -> None:
    assert {cell.fault for cell in QUICK} == set(Fault)
    assert {cell.layout for cell in QUICK} == set(LAYOUTS)
    assert set(QUICK) <= set(cells())


def test_the_page_has_every_row_and_no_failure() -> None:
    rows = [line.split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][2:]
    assert [(fault[2:], moment) for fault, moment, *_ in rows] == [(f.value, m.value) for f in Fault for m in Moment]
    assert "**" not in PAGE.read_text(encoding="utf-8"), "a cell ends otherwise than it must: python -m tests.faults"
