"""A part of a pipeline that one rank of a group has: it computes, and the others are given what it makes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from asyncdiff.call import Call
from asyncdiff.denoiser.rehearsal import result_form
from asyncdiff.exchange.protocol import Exchange
from asyncdiff.hooks import intercept_call, intercept_method
from asyncdiff.plan.moments import Moment
from asyncdiff.plan.ownership import Ownership
from asyncdiff.weights.results import like, tensors_within, with_tensors
from asyncdiff.weights.share import Share

# The methods through which pipelines use parts, beside calling them.
_METHODS = ("encode", "decode", "get_text_features", "get_image_features")


@dataclass(frozen=True)
class Group:
    """The ranks that share a pipeline out.

    Attributes:
        size: how many there are.
        own: this process's.
        exchange: gives the exchange among them; asked for at every use.
        on_failure: told of an error, so that the others do not wait.
    """

    size: int
    own: int
    exchange: Callable[[], Exchange]
    on_failure: Callable[[BaseException], None]


class PlacedPart:
    """Stands in for the uses of one part, on all ranks.

    Args:
        module: the part, in the host's memory.
        owner: the rank of the group that has it.
        group: that of this process.
        device: where this process computes.
    """

    def __init__(self, module: nn.Module, owner: int, group: Group, device: torch.device) -> None:
        self.share = Share(module, device)
        self.share.take(Ownership({("", 0): owner}, group.size), {group.own})
        self._module = module
        self._owner = owner
        self._group = group
        self._device = device
        self._is_inside = False
        self._undo = [intercept_call(module, self._use)]
        self._undo += [intercept_method(module, name, self._use) for name in _METHODS if hasattr(module, name)]

    def close(self) -> None:
        """Leave the part's methods as they were."""
        for undo in self._undo:
            undo()

    def _use(self, call: Call) -> Any:
        if self._is_inside:  # one method calls another
            return call()
        self._is_inside = True
        try:
            return self._shared(self._group.exchange(), call)
        except BaseException as error:
            self._group.on_failure(error)
            raise
        finally:
            self._is_inside = False

    def _shared(self, exchange: Exchange, call: Call) -> Any:
        if self._group.own == self._owner:
            result = call()
            self._handed_out(exchange, list(tensors_within(result)))
            return result
        form = result_form(self._module, call)
        made = [like(tensor, self._device) for tensor in tensors_within(form)]
        for mine, received in zip(made, self._handed_out(exchange, made), strict=True):
            mine.copy_(received)
        return with_tensors(form, iter(made))

    def _handed_out(self, exchange: Exchange, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        moment = Moment(results=((0, self._owner),))
        what = f"what the {type(self._module).__name__} makes, in call"
        return list(exchange.share({0: tensors}, moment, what).finish()[0])
