"""Small talk: among processes, and what is left of it when the ranks part."""

import pytest
import torch

from asyncdiff.errors import ExchangeError
from asyncdiff.exchange.world import DistributedWorld
from tests.processes import run_ranks


def _meet_and_part(rank: int, times: int) -> list[str]:
    """In every second of the meetings rank 1 leaves when the others have begun to compare."""
    said = []
    for number in range(times):
        world = DistributedWorld(torch.device("cpu"), timeout=20)
        said = world.gather_texts(f"rank {rank}" * (rank + 1), "what is said")
        if number % 2 and rank == 1:
            world.fail("enough")
        elif number % 2:
            with pytest.raises(ExchangeError, match="enough"):
                world.gather_texts("more", "what is said")
        world.close()
    return said


@pytest.mark.parametrize("times", [10, pytest.param(200, marks=pytest.mark.whole)])
def test_meetings_end(times: int) -> None:
    """Up to torch 2.7 ending a group can hang for ever: gloo's threads want the interpreter that waits for them."""
    assert run_ranks(3, _meet_and_part, times, limit=100) == [["rank 0", "rank 1" * 2, "rank 2" * 3]] * 3
