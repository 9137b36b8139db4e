"""A part of a pipeline that one rank of a group has: it computes, and the others are given what it makes."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from asyncdiff.call import Call
from asyncdiff.denoiser.elsewhere import Absent
from asyncdiff.denoiser.rehearsal import result_form
from asyncdiff.denoiser.results import like, tensors_within, with_tensors
from asyncdiff.errors import TraceError
from asyncdiff.exchange.protocol import Exchange
from asyncdiff.hooks import intercept_call, intercept_method
from asyncdiff.plan.moments import Moment
from asyncdiff.plan.ownership import Ownership
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
        compare: raises RankMismatchError if the ranks use different parts, or give them different things; given what is
            used, and the call.
        on_failure: told of an error, so that the others do not wait.
    """

    size: int
    own: int
    exchange: Callable[[], Exchange]
    compare: Callable[[str, Call], None]
    on_failure: Callable[[BaseException], None]


class PlacedPart:
    """Stands in for the uses of one part, on all ranks.

    Args:
        name: the pipeline's name for it.
        module: the part, in the host's memory.
        owner: the rank of the group that has it.
        group: that of this process.
        device: where this process computes.
    """

    def __init__(self, name: str, module: nn.Module, owner: int, group: Group, device: torch.device) -> None:
        self.share = Share(module, device, Absent)
        self._name = name
        self._module = module
        self._owner = owner
        self._group = group
        self._device = device
        self._is_inside = False
        self._undo = [intercept_call(module, functools.partial(self._use, "__call__"))]
        for method in (each for each in _METHODS if hasattr(module, each)):
            self._undo.append(intercept_method(module, method, functools.partial(self._use, method)))

    def close(self) -> None:
        """Leave the part's methods as they were."""
        for undo in self._undo:
            undo()

    def _use(self, method: str, call: Call) -> Any:
        if self._is_inside:  # one method calls another
            return call()
        self._is_inside = True
        try:
            exchange = self._group.exchange()
            self._group.compare(f"{self._name}.{method}", call)
            if self.share.ownership is None:  # as long as nothing was used, the pipeline can be what it was
                self.share.take(Ownership({("", 0): self._owner}, self._group.size), {self._group.own})
            return self._shared(exchange, call)
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
        try:
            form = result_form(self._module, call)
        except TraceError as error:
            raise TraceError(f"{error}; leave the part on all ranks: place={{{self._name!r}: None}}") from error
        made = [like(tensor, self._device) for tensor in tensors_within(form)]
        for mine, received in zip(made, self._handed_out(exchange, made), strict=True):
            mine.copy_(received)
        return with_tensors(form, iter(made))

    def _handed_out(self, exchange: Exchange, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        moment = Moment(results=((0, self._owner),))
        what = f"what the {type(self._module).__name__} makes, in call"
        return list(exchange.share({0: tensors}, moment, what).finish()[0])
