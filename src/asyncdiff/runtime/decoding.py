"""What turns latents into pictures, shared out among all ranks: bit for bit what one of them would make.

A VAE's `decode` calls its `decoder` once, or picture by picture (slicing), or tile by tile (tiling), and puts together
what it gets. It runs on every rank. A call of the decoder is answered by a promise; when the first of these is looked
at, all calls that were made by then are dealt out, each is made by one rank, and every rank gets all results. What
needs the result before it, as a video's next frames may do, thereby asks for it in time, and nothing is shared out.

What a decoder keeps from call to call would show the order of the calls: it is looked for in the first call, which all
ranks make, and such a decoder is left alone. So is one that draws random numbers, or is given what it may write into.
"""

import functools
import logging
import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from asyncdiff.call import Call
from asyncdiff.errors import ExchangeError
from asyncdiff.exchange.protocol import Exchange
from asyncdiff.hooks import intercept_call
from asyncdiff.plan.dealing import deal
from asyncdiff.plan.moments import Moment
from asyncdiff.runtime.batch import FAILURES, BatchRule, batch_rules
from asyncdiff.runtime.promise import Promise, without_promises
from asyncdiff.runtime.recent import Recent

logger = logging.getLogger(__name__)

_WHAT = "the decoder's part"

# How a result's form is told: its number format's place here, then its shape, then zeros.
_FORMATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_MOST_DIMENSIONS = 7


def find_decoders(pipe: Any, denoisers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The pipeline's parts that decode latents by name: modules with a method `decode` and a module `decoder`."""
    taken = {id(denoiser) for denoiser in denoisers.values()}
    return {
        name: part
        for name, part in pipe.components.items()
        if isinstance(part, nn.Module)
        and id(part) not in taken
        and callable(getattr(part, "decode", None))
        and isinstance(getattr(part, "decoder", None), nn.Module)
    }


class Decoding:
    """Shares out what one part of a pipeline decodes.

    Args:
        name: the pipeline's name for the part.
        part: has the `decoder` that its `decode` calls.
        exchange: among all ranks.
        ranks: how many there are.
    """

    def __init__(self, name: str, part: nn.Module, exchange: Exchange, ranks: int) -> None:
        self._name, self._part = name, part
        self._exchange, self._ranks = exchange, ranks
        self._known: nn.Module | None = None  # the decoder whose first call was watched
        self._is_fit = False
        self._is_exact: Recent[Hashable, bool] = Recent()
        self._pending: list[tuple[Call, Promise]] = []
        self._thread = 0
        self._told: set[str] = set()

    def decode(self, call: Call) -> Any:
        """The result of a call of the part's `decode`, which all ranks make with the same latents.

        Raises:
            ExchangeError: a rank did not take part in time.
        """
        decoder = self._part.decoder
        if not isinstance(decoder, nn.Module):
            return call()
        self._thread = threading.get_ident()
        undo = intercept_call(decoder, functools.partial(self._answer, decoder))
        try:
            result = call()
            self._settle()
            return without_promises(result)
        finally:
            undo()
            self._pending = []

    def _answer(self, decoder: nn.Module, call: Call) -> Any:
        """Stands in for a call of the decoder."""
        if threading.get_ident() != self._thread or torch.compiler.is_compiling():
            return call()
        # Containers stay the same ones: the decoder may write into them.
        kwargs = {name: _there(value) for name, value in call.kwargs.items()}
        call = call.giving((tuple(map(_there, call.args)), kwargs))
        if not all(_is_plain(value) for value in (*call.args, *call.kwargs.values())):
            self._leave_alone("it is given what it may write into, such as what it knows of the frames before")
            return call()
        if decoder is not self._known:
            return self._watch(decoder, call)
        if not self._is_fit:
            return call()
        promise = Promise(self._settle)
        # What is in the caller's hands may be something else by the time that the call is made.
        self._pending.append((call.giving(tree_map(_own, call.given)), promise))
        return promise

    def _watch(self, decoder: nn.Module, call: Call) -> Any:
        """Make the first call of a decoder, and see whether the order of its calls can matter."""
        before, numbers = list(_state(decoder)), _random_states(call)
        result = call()
        reason = ""
        if not isinstance(result, Tensor) or result.dtype not in _FORMATS or result.ndim > _MOST_DIMENSIONS:
            reason = "it does not give one tensor of floating-point numbers"
        elif any(not _is_same(one, other) for one, other in zip(before, _state(decoder), strict=True)):
            reason = "it keeps something from one call to the next"
        elif any(not torch.equal(one, other) for one, other in zip(numbers, _random_states(call), strict=True)):
            reason = "it draws random numbers"
        self._is_fit = self._all_agree(not reason)
        self._known, self._is_exact = decoder, Recent()
        if not self._is_fit:
            self._leave_alone(reason or "another rank has found it unfit for that")
        return result

    def _settle(self) -> None:
        """Make the calls that were promised, each on one rank."""
        pending, self._pending = self._pending, []
        calls = [call for call, _ in pending]
        made = self._share(calls) if len(calls) > 1 else [self._by_pictures(call) for call in calls]
        for (_, promise), result in zip(pending, made, strict=True):
            promise.keep(result)

    def _by_pictures(self, call: Call) -> Tensor:
        """The result of a call that is alone: picture by picture, if that gives the same to the last bit."""
        rules = batch_rules(call.tensors[0], call.given) if call.tensors else ()
        if not rules:
            return _result(call)
        whole: Tensor | None = None

        def compare() -> bool:
            nonlocal whole
            whole = _result(call)
            return self._gives_the_same(call, rules[0], whole)

        if self._is_exact.of(_kind(call), compare) and whole is None:
            return torch.cat(self._share(_pictures(call, rules[0])))
        return _result(call) if whole is None else whole

    def _gives_the_same(self, call: Call, rule: BatchRule, whole: Tensor) -> bool:
        """Compare with the pictures one by one; other sizes may be computed by others of the device's programs."""
        pictures = _pictures(call, rule)
        owners = deal([1] * len(pictures), self._ranks)
        wanted = (1, *whole.shape[1:])
        try:
            mine = self._make(pictures, owners)
            fits = len(whole) == rule.batch and all(each.shape == wanted for each in mine.values())
        except FAILURES:
            fits = False
        is_same = self._all_agree(fits) and torch.equal(torch.cat(self._gather(mine, owners, whole.device)), whole)
        if not self._all_agree(is_same):
            self._leave_alone("a picture of a batch is not to the last bit what it is in the whole batch")
            return False
        return True

    def _share(self, calls: Sequence[Call]) -> list[Tensor]:
        """The results of some calls, each made by one rank."""
        sizes = [sum(tensor.numel() for tensor in call.tensors[:1]) for call in calls]
        owners = deal(sizes, self._ranks)
        return self._gather(self._make(calls, owners), owners, calls[0].tensors[0].device)

    def _make(self, calls: Sequence[Call], owners: Sequence[int]) -> dict[int, Tensor]:
        """The results of those that this process makes."""
        return {number: _result(calls[number]) for number, own in enumerate(owners) if own in self._exchange.ranks}

    def _gather(self, mine: Mapping[int, Tensor], owners: Sequence[int], device: torch.device) -> list[Tensor]:
        """All results, given those of this process; edges of a picture have tiles of other shapes, told beforehand."""
        moment = Moment(results=tuple(enumerate(owners)))
        blank = torch.zeros(1 + _MOST_DIMENSIONS, dtype=torch.int64, device=device)
        forms = {number: [_form(mine[number], device) if number in mine else blank] for number, _ in enumerate(owners)}
        told = self._exchange.share(forms, moment, _WHAT).finish()
        held = {
            number: [mine[number] if number in mine else _blank(told[number][0], device)] for number in range(len(told))
        }
        shared = self._exchange.share(held, moment, _WHAT).finish()
        return [shared[number][0] for number in range(len(shared))]

    def _all_agree(self, mine: bool) -> bool:
        return self._exchange.agree(mine, f"how what the {self._name!r} decodes is shared out")

    def _leave_alone(self, reason: str) -> None:
        if reason not in self._told:
            self._told.add(reason)
            logger.warning("what the decoder of the %r computes is not shared out: %s", self._name, reason)


def _result(call: Call) -> Tensor:
    result = call()
    if not isinstance(result, Tensor):
        raise ExchangeError(f"a decoder that gave a tensor before now gives a {type(result).__name__}")
    return result


def _pictures(call: Call, rule: BatchRule) -> list[Call]:
    return [call.giving(rule.part(call.given, number, rule.batch)) for number in range(rule.batch)]


def _kind(call: Call) -> Hashable:
    """Calls of one kind are computed in the same way."""
    return tuple((tuple(each.shape), each.stride(), each.dtype, each.device) for each in call.tensors)


def _form(tensor: Tensor, device: torch.device) -> Tensor:
    room = [0] * (_MOST_DIMENSIONS - tensor.ndim)
    return torch.tensor([_FORMATS.index(tensor.dtype), *tensor.shape, *room], dtype=torch.int64, device=device)


def _blank(form: Tensor, device: torch.device) -> Tensor:
    number, *shape = form.tolist()
    return torch.empty([size for size in shape if size], dtype=_FORMATS[number], device=device)


def _is_plain(value: Any) -> bool:
    """Whether an argument is a tensor or a plain value, so that no call leaves anything in it for the next."""
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (Tensor, bool, int, float, str, torch.dtype, torch.device))


def _there(value: Any) -> Any:
    return value.kept() if isinstance(value, Promise) else value


def _own(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _random_states(call: Call) -> list[Tensor]:
    """Of the host and of the devices that a call computes on."""
    devices = {tensor.device for tensor in call.tensors if tensor.is_cuda}
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in sorted(devices, key=str))]


def _state(decoder: nn.Module) -> Iterator[dict[str, Any]]:
    """What all of a decoder's modules hold besides their weights, which offloading moves."""
    for module in decoder.modules():
        yield {name: _copied(value) for name, value in vars(module).items() if name != "_parameters"}


def _copied(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return list(value)
    return list(value.items()) if isinstance(value, dict) else value


def _is_same(one: Any, other: Any) -> bool:
    """Whether nothing was put in the place of anything."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return one is other or (isinstance(one, (bool, int, float, str)) and type(one) is type(other) and one == other)
