"""What a rank takes that has a share of the weights: measured as the benchmark does it, on a small denoiser."""

from pathlib import Path

import pytest

from asyncdiff.launch import run_processes
from benchmarks import memory
from tests.forked import fork_processes

_CALL = 60 * 2**20  # what code and a call take beside weights, whatever the denoiser


def test_two_ranks_hold_half_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fork_processes(monkeypatch)
    denoiser = memory.dit_pipeline(tmp_path, small=True)
    ranks = run_processes(2, memory.take_share, memory.Task(str(tmp_path), denoiser, 2))
    for rank in ranks:
        share = (rank.whole - rank.everywhere) / 2
        assert rank.weights <= 1.05 * share + rank.everywhere
        assert rank.peak <= 1.05 * share + rank.everywhere + rank.others + rank.versions + _CALL
        assert rank.peak < rank.whole - share / 2, "far from the whole"
