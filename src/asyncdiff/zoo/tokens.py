"""Whether a specimen's tokens can be divided: with fresh keys, every rank's become what they are in the plain call."""

import torch
from torch import nn

from asyncdiff.call import Call
from asyncdiff.denoiser.form import CallForm
from asyncdiff.denoiser.graph import Graph
from asyncdiff.denoiser.trace import Trace
from asyncdiff.errors import SplitError
from asyncdiff.events import Events
from asyncdiff.runtime.token_finding import TokenFinder
from asyncdiff.runtime.units import UnitHooks

PARTS = (2, 3)


def why_tokens_stay_whole(model: nn.Module, call: Call, trace: Trace, graph: Graph) -> str:
    """Why its tokens cannot be divided; empty where they can, among two ranks and among three."""
    units = UnitHooks(model, Events(torch.device("cpu")))
    units.add(graph)
    try:
        finder = TokenFinder(model, units, CallForm(model), trace, graph)
        for count in PARTS:
            finder.find(call, count, range(count))
    except SplitError as error:
        return str(error).removeprefix("the denoiser cannot be divided by tokens: ")
    finally:
        units.remove()
    return ""
