"""A rank's share of a denoiser's weights: put aside at first, taken when it is known what is one's own."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from asyncdiff.denoiser.elsewhere import Elsewhere, Unread, not_here, stays
from asyncdiff.denoiser.results import like
from asyncdiff.denoiser.weight_form import Form, is_plain
from asyncdiff.exchange.protocol import Exchange
from asyncdiff.hooks import guard
from asyncdiff.plan.moments import Moment
from asyncdiff.plan.ownership import Ownership

_HOST = torch.device("cpu")


class _Place(NamedTuple):
    """Where a weight belongs: a module, and its name there. Adapters change the names of modules, not the modules."""

    module: nn.Module
    name: str


class _Quantized(NamedTuple):
    """A weight that is no plain one: its form, and the plain tensors that it is made of, where it is here."""

    form: Form
    tensors: Sequence[Tensor] | None


class Share:
    """What a process has of one denoiser.

    Made, it puts all weights aside, so that a device never holds more than its own; `take` then fetches those.

    Args:
        denoiser: the module, in the host's memory; its buffers are moved to the device.
        device: where this process computes.
        stand_in: what takes the place of weights that are not here.

    Attributes:
        ownership: who has which weights; None as long as no weight was let go.
    """

    def __init__(self, denoiser: nn.Module, device: torch.device, stand_in: type[Elsewhere] = Elsewhere) -> None:
        self.ownership: Ownership | None = None
        self._denoiser = denoiser
        self._device = device
        self._own: frozenset[int] = frozenset()  # components
        self._owners: dict[str, frozenset[int] | None] = {}  # of weights, by name
        self._quantized: dict[_Place, _Quantized] = {}  # once it is known who has them
        self._stand_in = stand_in
        self._aside = {place: weight for _, place, weight in _weights(denoiser)}
        stand_ins: dict[int, Elsewhere] = {}  # a weight in two places is one weight
        for place, weight in self._aside.items():
            if id(weight) not in stand_ins:
                stand_ins[id(weight)] = stand_in.like(weight, device)
            place.module._parameters[place.name] = stand_ins[id(weight)]
        _move_buffers(denoiser, device)
        self._undo = guard(denoiser, "_apply", self._check_conversion)

    def take(self, ownership: Ownership, components: Collection[int]) -> None:
        """Fetch the weights of some components, and those that every device has; the others are let go."""
        self.ownership, self._own, self._owners = ownership, frozenset(components), {}
        fetched: dict[int, nn.Parameter] = {}  # a weight in two places is one weight
        with torch.inference_mode(False):  # what is made there cannot be changed outside of it
            for name, place, weight in list(_weights(self._denoiser)):
                found = self._aside.pop(place, weight)
                if not (is_plain(found) or isinstance(found, Elsewhere)):
                    self._take_quantized(name, place, found, fetched)
                elif self._is_here(name):
                    if id(found) not in fetched:
                        fetched[id(found)] = _moved(_read(found), self._device, weight.dtype)
                    place.module._parameters[place.name] = fetched[id(found)]
                elif not isinstance(weight, Elsewhere):
                    place.module._parameters[place.name] = self._stand_in.like(weight, self._device)
        self._aside = {}

    def _take_quantized(self, name: str, place: _Place, weight: nn.Parameter, fetched: dict[int, nn.Parameter]) -> None:
        """What it is made of is kept: libraries may take such a weight apart, or change it, when it is first used."""
        form = Form(weight, place.module)
        tensors: list[Tensor] | None = None
        if self._is_here(name):
            tensors = [tensor.to(self._device) for tensor in form.tensors(weight, place.module)]
        made, beside = form.make(form.like if tensors is None else tensors)
        if id(weight) not in fetched:
            fetched[id(weight)] = self._stand_in.like(weight, self._device) if tensors is None else made
        place.module._parameters[place.name] = fetched[id(weight)]
        vars(place.module).update(beside)
        self._quantized[place] = _Quantized(form, tensors)

    def put_back(self) -> bool:
        """Undo all, if no weight was let go yet; whether the denoiser has all of its weights in the end."""
        if self.ownership is not None or any(isinstance(weight, Unread) for weight in self._aside.values()):
            return False
        for place, weight in self._aside.items():
            place.module._parameters[place.name] = weight
        self._aside = {}
        self._undo()
        _move_buffers(self._denoiser, _HOST)
        return True

    def gather(self, exchange: Exchange) -> None:
        """Put the whole together again in the host's memory, weight by weight; all ranks of the group take part."""
        gathered: dict[int, nn.Parameter] = {}
        with torch.inference_mode(False):
            self._aside = {place: _read(weight) for place, weight in self._aside.items()}
            if self.put_back():
                return
            for name, place, weight in list(_weights(self._denoiser)):
                if id(weight) not in gathered:
                    gathered[id(weight)] = self._gathered(name, place, weight, exchange)
                place.module._parameters[place.name] = gathered[id(weight)]
        _move_buffers(self._denoiser, _HOST)
        self.ownership = None
        self._undo()

    def _gathered(self, name: str, place: _Place, weight: nn.Parameter, exchange: Exchange) -> nn.Parameter:
        if place in self._quantized:
            form, tensors = self._quantized.pop(place)
            made, beside = form.make(self._handed_out(name, tensors, form.like, exchange))
            vars(place.module).update(beside)
            return made
        if self._owners_of(name) is None:
            return _moved(weight, _HOST, weight.dtype)
        (numbers,) = self._handed_out(name, [weight.data] if self._is_here(name) else None, [weight], exchange)
        return nn.Parameter(numbers, weight.requires_grad)

    def _handed_out(
        self, name: str, held: Sequence[Tensor] | None, forms: Sequence[Tensor], exchange: Exchange
    ) -> list[Tensor]:
        """What a weight is made of, in the host's memory; `forms` are like it where it is not held here."""
        owners = self._owners_of(name)
        if owners is None:
            return [tensor.to(_HOST) for tensor in held or ()]
        mine = held or [like(form, self._device) for form in forms]
        moment = Moment(results=((0, min(owners)),))
        shared = exchange.share({0: mine}, moment, f"the weight {name!r}, number")
        return [tensor.to(_HOST) for tensor in shared.finish()[0]]

    def held_by_all(self) -> Iterator[tuple[str, Tensor]]:
        """The weights that must be the same on all ranks, with their names.

        As long as none was let go all of them, then those that every device has.
        """
        for name, place, weight in _weights(self._denoiser):
            found = self._aside.get(place, weight)
            if isinstance(found, Unread):
                yield name, found.sample()
            elif not isinstance(found, Elsewhere) and self._owners_of(name) is None:
                yield name, found

    def _check_conversion(self, conversion: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> None:
        """Refuse what would move or convert the weights that are here, and stop at the first one that is not."""
        elsewhere = (weight for weight in self._denoiser.parameters() if type(weight) in (Elsewhere, Unread))
        if any(not stays(weight, conversion) for weight in elsewhere):
            raise not_here("on another rank")

    def _is_here(self, name: str) -> bool:
        owners = self._owners_of(name)
        return owners is None or not owners.isdisjoint(self._own)

    def _owners_of(self, name: str) -> frozenset[int] | None:
        """The components that have a weight; None where all have it, and as long as no weight was let go."""
        if self.ownership is None:
            return None
        if name not in self._owners:
            self._owners[name] = self.ownership.of(name)
        return self._owners[name]


def _read(weight: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(weight.read(), weight.requires_grad) if isinstance(weight, Unread) else weight


def _moved(weight: nn.Parameter, device: torch.device, dtype: torch.dtype) -> nn.Parameter:
    if (weight.device, weight.dtype) == (device, dtype):
        return weight
    return nn.Parameter(weight.data.to(device, dtype), weight.requires_grad)


def _move_buffers(denoiser: nn.Module, device: torch.device) -> None:
    for module in denoiser.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)


def _weights(denoiser: nn.Module) -> Iterator[tuple[str, _Place, nn.Parameter]]:
    """All weights, with the places that hold them; one that is in two places comes twice."""
    for prefix, module in denoiser.named_modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                yield f"{prefix}.{name}" if prefix else name, _Place(module, name), weight
