"""A transformer of two blocks in which a text and a picture attend to each other, whose counts can be worked out."""

import torch
from torch import Tensor, nn

from asyncdiff.call import Call
from asyncdiff.denoiser.rates import DeviceRates
from asyncdiff.denoiser.rehearsal import rehearse
from asyncdiff.denoiser.trace import Trace

OPERATIONS_ALONE = DeviceRates(0.0, 0.0)
WIDTH, TEXT, TOKENS = 8, 3, 16


class Joint(nn.Module):
    """One block: a text and a picture, projected, attend to each other."""

    def __init__(self, side: int = 0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(side), Block(side)])

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        states = torch.cat((text, sample), 1)
        for block in self.blocks:
            states = block(states)
        return states[:, text.shape[1] :]


class Block(nn.Module):
    def __init__(self, side: int) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, WIDTH, bias=False)
        self.mix = nn.Conv1d(WIDTH, WIDTH, side, padding="same", bias=False) if side else None

    def forward(self, states: Tensor) -> Tensor:
        if self.mix is not None:
            states = self.mix(states.mT).mT
        heads = self.project(states).unsqueeze(1)
        return nn.functional.scaled_dot_product_attention(heads, heads, heads).squeeze(1)


def traces(denoiser: nn.Module, *sizes: int, text: int = 1) -> list[Trace]:
    """The calls for pictures of so many tokens, and a text so many times as long."""
    found = []
    for tokens in sizes:
        given = torch.zeros(1, tokens, WIDTH), torch.tensor(1.0), torch.zeros(1, text * TEXT, WIDTH)
        found.append(rehearse(denoiser, Call(denoiser._call_impl, given, {}), 1))
    return found
