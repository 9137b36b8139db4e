"""Record a denoiser's call without its weights, and almost without computing: what depends on weights has shapes only.

A denoiser of any size is recorded in seconds, and may be divided before a weight of it is read.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from asyncdiff.call import Call, tensors_of
from asyncdiff.denoiser.elsewhere import bytes_of, needs_its_module
from asyncdiff.denoiser.trace import Trace, record, written_by
from asyncdiff.errors import ConfigurationError, TraceError

_WITHOUT_NUMBERS = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)

_INDEXED = frozenset(getattr(torch.ops.aten, name) for name in ("index", "index_put", "index_put_"))
_FILLED = frozenset(
    getattr(torch.ops.aten, name)
    for name in ("full_like", "ones_like", "zeros_like", "new_full", "new_ones", "new_zeros")
)


def rehearse(denoiser: nn.Module, call: Call, batch: int | None = None) -> Trace:
    """The trace that `record` would give of a call, with no weight read and nothing computed that depends on one.

    What depends on the call's arguments alone is computed: a mask may decide on shapes. The denoiser's parameters may
    be of any kind, on any device, and without memory. A linear layer whose weight only itself can read (quantized)
    computes as any linear layer does.

    Args:
        batch: how large the call's batch is, where that is known.

    Raises:
        ConfigurationError: another module than a linear layer has such a weight.
        TraceError: what the denoiser computes decides which of its parts run, or on which shapes.
    """
    with _rehearsing(denoiser):
        return record(denoiser, call.with_own_containers(), batch)[1]


def result_form(module: nn.Module, call: Call) -> Any:
    """What a call of a module, or of one of its methods, returns, with tensors of the right form and no numbers.

    Raises:
        ConfigurationError: as of `rehearse`.
        TraceError: what it computes decides the form.
    """
    with _rehearsing(module):
        return call.with_own_containers()()


@contextlib.contextmanager
def _rehearsing(module: nn.Module) -> Iterator[None]:
    """Without a module's weights, and with forms only of what depends on them."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with torch.no_grad(), _without_weights(module, fake), fake, _Computing():
            yield
    except _WITHOUT_NUMBERS as error:
        operator = getattr(error, "func", None)
        raise TraceError(
            f"{type(module).__name__} reads numbers that depend on its weights to decide what it computes"
            f"{'' if operator is None else f' ({operator})'}, so that its call cannot be told without them"
        ) from error
    except RuntimeError as error:
        raise TraceError(
            f"what {type(module).__name__} computes cannot be told without its weights: {error}"
        ) from error


class _Computing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Computes what depends on no weight; the rest is left to the mode below, which knows shapes only."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # The storages of plain tensors to which something unknown was written, by address. They are kept: once freed,
        # the address would be that of another tensor.
        self._unknown: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._is_known(func, args, kwargs):
            with _disable_current_modes():
                return func(*args, **kwargs)
        if getattr(func, "_overloadpacket", None) in _FILLED:
            # Ones of the form of something unknown are ones all the same.
            with _disable_current_modes():
                like = torch.empty(args[0].shape, dtype=args[0].dtype, device=args[0].device)
                return func(like, *args[1:], **kwargs)
        if getattr(func, "_overloadpacket", None) in _INDEXED:
            args = (args[0], self._counted(args[1]), *args[2:])
        result = func(*args, **kwargs)
        if isinstance(func, torch._ops.OpOverload) and func._schema.is_mutable:
            for tensor in written_by(func, args, kwargs):
                if not isinstance(tensor, FakeTensor):
                    self._unknown[_address_of(tensor)] = tensor.untyped_storage()
            if func._schema.name.endswith("_"):
                return args[0]  # the tensor itself, and no stand-in for it
        return result

    def _is_known(self, func: Any, args: Any, kwargs: Any) -> bool:
        """Whether an operator depends on known numbers only, or makes a view of a plain tensor."""
        given = tensors_of((args, kwargs))
        if any(isinstance(tensor, FakeTensor) for tensor in given):
            return False
        is_view = isinstance(func, torch._ops.OpOverload) and func.is_view
        return is_view or self._unknown.keys().isdisjoint(map(_address_of, given))

    def _counted(self, places: Any) -> list[Any]:
        """The places that are read of a tensor: known masks as numbers, whose count is known then."""
        found: list[Any] = []
        for each in places:
            is_mask = isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8)
            if is_mask and not isinstance(each, FakeTensor) and _address_of(each) not in self._unknown:
                with _disable_current_modes():
                    found += each.nonzero(as_tuple=True)
            else:
                found.append(each)
        return found


def _address_of(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@contextlib.contextmanager
def _without_weights(denoiser: nn.Module, fake: FakeTensorMode) -> Iterator[None]:
    """With stand-ins for all parameters that have their shapes, formats and devices, and no memory."""
    made: dict[int, Any] = {}
    with contextlib.ExitStack() as undo:
        for path, module in denoiser.named_modules():
            weights: dict[str, Any] = module._parameters
            undo.callback(weights.update, dict(weights))
            for name, weight in weights.items():
                if weight is None:
                    continue
                if needs_its_module(weight):
                    undo.enter_context(_computing_plainly(module, f"{path}.{name}", weight, fake))
                if id(weight) not in made:
                    made[id(weight)] = _stand_in(weight, fake)
                weights[name] = made[id(weight)]
        yield


def _stand_in(weight: nn.Parameter, fake: FakeTensorMode) -> Any:
    with fake:
        form = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
        made: Any = nn.Parameter(form, weight.requires_grad)
    made.held_bytes = bytes_of(weight)
    return made


@contextlib.contextmanager
def _computing_plainly(module: nn.Module, name: str, weight: Tensor, fake: FakeTensorMode) -> Iterator[None]:
    """While it lasts, a linear layer with a weight that is nothing without its numbers computes as one without."""
    if not isinstance(module, nn.Linear):
        raise ConfigurationError(
            f"the weight {name!r} is quantized ({type(module).__name__}), and what is computed with it cannot be told "
            "without its numbers: with shard=True linear layers alone may have such weights. Leave this one out where "
            "the model is quantized (modules_to_not_convert, llm_int8_skip_modules), or leave out shard"
        )
    with fake:
        like = torch.empty(module.out_features, module.in_features, device=weight.device)

    def forward(given: Tensor) -> Tensor:
        bias = None if module.bias is None else module.bias.to(given.dtype)
        return functional.linear(given, like.to(given.dtype), bias)

    before = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = before
