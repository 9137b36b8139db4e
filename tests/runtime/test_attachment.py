"""Attaching that fails half-way leaves nothing behind."""

from collections.abc import Mapping

import pytest
import torch
from torch import nn

from asyncdiff.denoiser.find import find_denoisers
from asyncdiff.errors import ExchangeError
from asyncdiff.exchange.groups import Teams
from asyncdiff.exchange.local import LocalExchange
from asyncdiff.exchange.world import LocalWorld
from asyncdiff.plan.mesh import Mesh
from asyncdiff.runtime.attachment import Attachment
from asyncdiff.runtime.branches import Branches
from asyncdiff.runtime.clock import Clock
from asyncdiff.settings import Settings
from tests.tiny import PIPELINES


class _Exchange(LocalExchange):
    is_open = True

    def close(self) -> None:
        self.is_open = False


class _World(LocalWorld):
    """Its second exchange cannot be made."""

    def __init__(self) -> None:
        super().__init__(2, torch.device("cpu"))
        self.made: list[_Exchange] = []

    def exchange(self, teams: Teams) -> LocalExchange:
        if self.made:
            raise ExchangeError("a rank is not there")
        self.made.append(_Exchange(len(teams[0])))
        return self.made[0]


def _hooks(denoisers: Mapping[str, nn.Module]) -> list[int]:
    return [len(module._forward_pre_hooks) for each in denoisers.values() for module in each.modules()]


def test_a_second_exchange_that_fails_closes_the_first() -> None:
    pipe, world = PIPELINES["sd3"].build(), _World()
    denoisers = find_denoisers(pipe)
    before, clock = _hooks(denoisers), Clock(pipe)
    with pytest.raises(ExchangeError, match="a rank is not there"):
        Attachment(denoisers, {}, {}, Settings(components=1, guidance=2), Mesh(2, 1), world, clock, Branches({}))
    clock.close()
    assert [each.is_open for each in world.made] == [False]
    assert _hooks(denoisers) == before
