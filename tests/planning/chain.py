"""A denoiser of four equal layers in a row, whose plans can be worked out by hand."""

import torch
from torch import Tensor, nn

from asyncdiff.call import Call
from asyncdiff.denoiser.rates import DeviceRates
from asyncdiff.denoiser.rehearsal import rehearse
from asyncdiff.plan.division import Division, divide_denoiser
from asyncdiff.plan.method import PAPER, Method
from asyncdiff.plan.schedule import Schedule
from asyncdiff.planning.subject import Subject

BATCH, WIDTH = 4, 250
TENSOR = BATCH * WIDTH * 4  # bytes of what every layer makes: 4000
LAYER = (WIDTH + 1) * WIDTH * 4  # bytes of a layer's weights
LAYERS = 4
RATES = DeviceRates(0.0, 0.0)  # operations alone count, so that a layer is a quarter of a call


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))

    def forward(self, sample: Tensor, timestep: Tensor) -> tuple[Tensor]:
        for layer in self.layers:
            sample = layer(sample)
        return (sample,)


def subject(calls: int = 1) -> Subject:
    denoiser = Layers()
    call = Call(denoiser._call_impl, (torch.zeros(BATCH, WIDTH), torch.tensor(1.0)), {})
    return Subject(
        kind="Layers",
        trace=rehearse(denoiser, call, BATCH),
        calls=calls,
        pictures=1,
        weights={name: weight.numel() * 4 for name, weight in denoiser.named_parameters()},
        twins=1,
        buffers=10,
        others={"text_encoder": 1000, "vae": 700},
        common=50,
    )


def divided(schedule: Schedule, method: Method = PAPER) -> Division:
    return divide_denoiser(subject().trace, schedule, None, RATES, method)
