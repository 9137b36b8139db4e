"""One denoiser of one pipeline, with all that its calls are run with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from asyncdiff.call import Call
from asyncdiff.denoiser.form import CallForm
from asyncdiff.events import Events
from asyncdiff.exchange.agreement import Statements
from asyncdiff.exchange.protocol import Exchange
from asyncdiff.plan.schedule import Schedule
from asyncdiff.runtime.clock import Clock
from asyncdiff.runtime.statements import about_arguments
from asyncdiff.runtime.units import UnitHooks
from asyncdiff.settings import Settings
from asyncdiff.weights.share import Share


@dataclass(frozen=True)
class Context:
    """What every room of the runtime needs to know of a denoiser.

    Attributes:
        name: the pipeline's name for it.
        denoiser: the module.
        form: how it is called.
        units: the hooks on its units.
        settings: the user's; `target_speedup` is what each group of ranks is to reach.
        schedule: before the denoiser is divided.
        exchange: among the ranks of a group.
        check: compares what has to be the same on all ranks of all groups.
        gather: a text of every rank of all groups; the second says what it is about.
        clock: where the pipeline stands.
        branch: the name of the guidance branch that is computed, where the pipeline gives it one.
        device: where this process computes.
        events: where it is noted what happens.
        share: this process's part of the weights, where each has a part only.
    """

    name: str
    denoiser: nn.Module
    form: CallForm
    units: UnitHooks
    settings: Settings
    schedule: Schedule
    exchange: Exchange
    check: Callable[[Statements, str], None]
    gather: Callable[[str, str], list[str]]
    clock: Clock
    branch: Callable[[], Any]
    device: torch.device
    events: Events
    share: Share | None = None

    def compare_inputs(self, call: Call, exchange: Exchange) -> None:
        """Compare a call's arguments with those of the other ranks of an exchange.

        Raises:
            RankMismatchError: one is not the same on all.
        """
        what = f"the inputs of the denoiser {self.name!r}"
        exchange.check_agreement(lambda: about_arguments(self.form.arguments(call)), what)
