"""Record one ordinary denoiser call as plain data: its module calls, its operators and what each reads.

The call itself is not changed: its result is the ordinary one, so that a trace costs no extra call.
"""

import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten
from torch.utils.flop_counter import flop_registry

from asyncdiff.call import Call, tensors_of
from asyncdiff.collecting import uncollected
from asyncdiff.denoiser.elsewhere import bytes_of
from asyncdiff.hooks import is_compiled

ValueId = int
Form = tuple[tuple[int, ...], torch.dtype]
"""Shape and number format of a tensor."""

# Attention that torch has no formula of its own for; its first arguments are query and key.
_ATTENTION = (torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, torch.ops.higher_order.flex_attention)
_FUSED_ATTENTION = (
    *_ATTENTION,
    torch.ops.aten._scaled_dot_product_flash_attention,
    torch.ops.aten._scaled_dot_product_efficient_attention,
    torch.ops.aten._scaled_dot_product_cudnn_attention,
)
# Not to be taken apart, though torch could: it asks where a tensor is.
_WHOLE = (torch.ops.prim.device,)
_SOFTMAX = (torch.ops.aten._softmax, torch.ops.aten._safe_softmax)
_CONVOLUTIONS = (torch.ops.aten.convolution, torch.ops.aten._convolution)
# The matrix product of mixtures of experts, which torch has no formula for either.
_GROUPED_PRODUCT = getattr(torch.ops.aten, "_grouped_mm", None)

# Operators that read a tensor's shape and kind, not its values.
_OF_THE_SAME_FORM = frozenset(
    getattr(torch.ops.aten, name)
    for name in (
        *("new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros"),
        *("empty_like", "full_like", "ones_like", "rand_like", "randn_like", "zeros_like"),
    )
) | {torch.ops.prim.device}

# Operators whose result is what they are given (their first argument, or all) plus something else, or the same in
# another form. A residual stream can be followed through them.
_ADDING = frozenset(getattr(torch.ops.aten, name) for name in ("add", "add_", "cat"))
_KEEPING = frozenset(
    getattr(torch.ops.aten, name)
    for name in ("sub", "sub_", "addcmul", "addcmul_", "clone", "_to_copy", "clamp", "clamp_")
)
_SCALING = frozenset(getattr(torch.ops.aten, name) for name in ("mul", "mul_", "div", "div_"))

# Operators that read a part of a table, as large as what they make of it.
_LOOKUPS = frozenset(getattr(torch.ops.aten, name) for name in ("embedding", "gather", "index", "index_select"))


@dataclass(frozen=True, slots=True)
class Attention:
    """What an operator that is attention goes by.

    Attributes:
        queries, keys: how many there are.
        forms: of keys and values, shape (batch, heads, keys, channels); None where the operator is a part of attention.
        has_plain_heads: whether queries have as many heads as keys, and there is no mask.
    """

    queries: int
    keys: int
    forms: tuple[Form, Form] | None = None
    has_plain_heads: bool = False


@dataclass(frozen=True, slots=True)
class Operator:
    """One tensor operator: where it ran, what it read, made and wrote to, and what it cost.

    `carries` are those of the values read that what it made still contains, with something added or taken away.
    `weight_bytes` is the part of `bytes` that does not grow with the batch: the denoiser's own weights.
    `exponentials` are those of attention's softmax, which take far longer than the operations of a matrix product.
    `allocated` is the size in bytes of what it made that is no view of something else.
    `attention` is what attention, or its softmax, goes by; `mixes_neighbours` is true of a convolution in which a place
    reads others.
    """

    call: int
    reads: tuple[ValueId, ...]
    carries: tuple[ValueId, ...]
    makes: tuple[ValueId, ...]
    overwrites: tuple[tuple[ValueId, ValueId], ...]
    flops: int
    bytes: int
    weight_bytes: int = 0
    exponentials: int = 0
    allocated: int = 0
    attention: Attention | None = None
    mixes_neighbours: bool = False


@dataclass(frozen=True)
class Leaf:
    """One leaf of a module's output. `value` is None for what is no tensor (kept in `constant`)."""

    value: ValueId | None
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    constant: Any = None
    input_index: int | None = None

    @property
    def bytes(self) -> int:
        """Size of the tensor in bytes."""
        if self.dtype is None:
            return 0
        count = 1
        for size in self.shape:
            count *= size
        return count * self.dtype.itemsize


@dataclass
class ModuleCall:
    """One call of one module: its place in the call tree and in the order of operators.

    `weight_bytes` is the size of its parameters, those of the modules inside of it included.
    """

    name: str
    parent: int
    weight_bytes: int
    is_compiled: bool
    owns_called_list: bool = False
    first_operator: int = 0
    end_operator: int = 0
    inputs: tuple[ValueId, ...] = ()
    input_forms: tuple[Form, ...] = ()
    outputs: tuple[Leaf, ...] = ()
    structure: TreeSpec | None = None
    children: list[int] = field(default_factory=list)

    @property
    def has_parameters(self) -> bool:
        """Whether it has any."""
        return self.weight_bytes > 0


@dataclass(frozen=True)
class Trace:
    """All of one denoiser call. `calls[0]` is the call of the denoiser itself.

    `idle` are the modules with parameters of which nothing was called, without those inside of them; `batch` is how
    large the call's batch was, where that is known.
    """

    calls: tuple[ModuleCall, ...]
    operators: tuple[Operator, ...]
    idle: tuple[str, ...] = ()
    batch: int | None = None


class _Values:
    """Gives every tensor value a number: a region of a storage between two writes is one value."""

    def __init__(self) -> None:
        self._storages: dict[int, tuple[Callable[[], bool], dict[tuple[Any, ...], ValueId]]] = {}
        self._count = 0

    def of(self, tensor: Tensor, storage: int) -> ValueId:
        """That of a tensor in the storage of this key."""
        regions = self._regions(tensor, storage)
        region = _region(tensor)
        value = regions.get(region)
        if value is None:
            value = regions[region] = self._new()
        return value

    def forget(self, storage: int) -> None:
        """What lies in it from now on has nothing to do with what was there."""
        self._storages.pop(storage, None)

    def written(self, tensor: Tensor) -> tuple[tuple[ValueId, ValueId], ...]:
        """Every value that lives in the tensor's storage is another one from now on."""
        storage = _storage_key(tensor)
        self.of(tensor, storage)
        regions = self._regions(tensor, storage)
        pairs = []
        for region, old in regions.items():
            regions[region] = self._new()
            pairs.append((old, regions[region]))
        return tuple(pairs)

    def _regions(self, tensor: Tensor, key: int) -> dict[tuple[Any, ...], ValueId]:
        entry = self._storages.get(key)
        if entry is None or entry[0]():
            expired = StorageWeakRef(tensor.untyped_storage()).expired  # type: ignore[no-untyped-call]
            entry = self._storages[key] = (expired, {})
        return entry[1]

    def _new(self) -> ValueId:
        self._count += 1
        return self._count


def _storage_key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _region(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    # Flexible attention is one; it is recorded as an operator.
    supports_higher_order_operators = True

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        weights = itertools.chain(denoiser.parameters(), denoiser.buffers())
        plain = (Tensor, nn.Parameter, FakeTensor)
        # Kept: the address of a buffer that a call replaces would soon be that of another tensor.
        self._weights = {_storage_key(each): each.untyped_storage() for each in weights if type(each) in plain}
        self._weight_bytes = _weight_bytes(denoiser)
        self.values = _Values()
        self.calls: list[ModuleCall] = []
        self.operators: list[Operator] = []
        self.stack: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kind = _kind_of(func)
        # In inference mode they come here before they are taken apart, elsewhere afterwards.
        if kind.is_composite and torch.is_inference_mode_enabled():
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if kind.reads_form_alone:
            inputs = []
        elif kind.is_operator:
            inputs = _tensors_in(args) + _tensors_in(kwargs.values())
        else:
            inputs = tensors_of((args, kwargs))
        storages = [_storage_key(tensor) for tensor in inputs]
        reads = tuple(map(self.values.of, inputs, storages))
        result = func(*args, **kwargs)
        overwrites: list[tuple[ValueId, ValueId]] = []
        if kind.is_mutable:
            for tensor in written_by(func, args, kwargs):
                overwrites += self.values.written(tensor)
        outputs = _tensors_in(result if isinstance(result, (list, tuple)) else (result,))
        makes = []
        is_view = not overwrites
        allocated = made = 0
        for tensor in outputs:
            storage, size = _storage_key(tensor), tensor.nbytes
            made += size
            is_alias = storage in storages
            is_view &= is_alias
            allocated += 0 if is_alias else size
            if not is_alias:
                self.values.forget(storage)
            makes.append(self.values.of(tensor, storage))
        moved = weights = 0
        if not is_view:
            sizes = [tensor.nbytes for tensor in inputs]
            moved = (made if kind.is_lookup else sum(sizes)) + made
            if not kind.is_lookup:
                weights = sum(size for size, key in zip(sizes, storages, strict=True) if key in self._weights)
        self.operators.append(
            Operator(
                call=self.stack[-1] if self.stack else 0,
                reads=reads,
                carries=reads[: _carried(kind, is_view, args, len(reads))],
                makes=tuple(makes),
                overwrites=tuple(overwrites),
                flops=_flops(kind, args, kwargs, result),
                bytes=moved,
                weight_bytes=weights,
                exponentials=_exponentials(kind, args, result),
                allocated=allocated,
                attention=_attention(kind, args, kwargs, result),
                mixes_neighbours=kind.name in _CONVOLUTIONS and any(size > 1 for size in args[1].shape[2:]),
            )
        )
        return result

    def enter(self, name: str, module: nn.Module, arguments: Any) -> None:
        parent = self.stack[-1] if self.stack else -1
        index = len(self.calls)
        given = tensors_of(arguments)
        call = ModuleCall(
            name=name,
            parent=parent,
            weight_bytes=self._weight_bytes.get(name, 0),
            is_compiled=is_compiled(module),
            first_operator=len(self.operators),
            inputs=tuple(self.values.of(tensor, _storage_key(tensor)) for tensor in given),
            input_forms=tuple((tuple(tensor.shape), tensor.dtype) for tensor in given),
        )
        self.calls.append(call)
        if parent >= 0:
            self.calls[parent].children.append(index)
        self.stack.append(index)

    def leave(self, output: Any) -> None:
        call = self.calls[self.stack.pop()]
        call.end_operator = len(self.operators)
        leaves, call.structure = tree_flatten(output)
        call.outputs = tuple(self._leaf(leaf, call) for leaf in leaves)

    def _leaf(self, leaf: Any, call: ModuleCall) -> Leaf:
        if not isinstance(leaf, Tensor):
            return Leaf(None, constant=leaf)
        value = self.values.of(leaf, _storage_key(leaf))
        index = call.inputs.index(value) if value in call.inputs else None
        return Leaf(value, tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.device, input_index=index)


def _weight_bytes(denoiser: nn.Module) -> dict[str, int]:
    """How large the parameters of every module are, by name, each counted once in whatever it is inside of."""
    found: dict[str, dict[int, int]] = {}
    for name, weight in denoiser.named_parameters(remove_duplicate=False):
        size = bytes_of(weight)
        for path in paths_to(name.rpartition(".")[0]):
            found.setdefault(path, {})[id(weight)] = size
    return {path: sum(sizes.values()) for path, sizes in found.items()}


@dataclass(frozen=True, slots=True)
class _Kind:
    """What is known of an operator whatever it is given."""

    name: Any
    is_operator: bool
    is_composite: bool
    is_mutable: bool
    reads_form_alone: bool
    is_lookup: bool
    is_adding: bool
    is_keeping: bool
    is_scaling: bool
    flops: Callable[..., Any] | None


@functools.cache
def _kind_of(func: Any) -> _Kind:
    is_operator = isinstance(func, torch._ops.OpOverload)
    name = func._overloadpacket if is_operator else func
    return _Kind(
        name=name,
        is_operator=is_operator,
        is_composite=is_operator and name not in _WHOLE and func._can_decompose(),
        is_mutable=is_operator and func._schema.is_mutable,
        reads_form_alone=name in _OF_THE_SAME_FORM,
        is_lookup=name in _LOOKUPS,
        is_adding=name in _ADDING,
        is_keeping=name in _KEEPING,
        is_scaling=name in _SCALING,
        flops=flop_registry.get(name),
    )


def _carried(kind: _Kind, is_view: bool, args: tuple[Any, ...], inputs: int) -> int:
    """How many of an operator's inputs, from the first, its result contains."""
    if kind.is_adding:
        return inputs
    if is_view or kind.is_keeping:
        return 1
    return 1 if kind.is_scaling and not isinstance(args[1], Tensor) and args[1] == 1 else 0


def _flops(kind: _Kind, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """Floating-point operations of matrix products, convolutions and attention."""
    if kind.flops is not None:
        return int(kind.flops(*args, **kwargs, out_val=result))
    if kind.name in _ATTENTION:
        query, key = args[0], args[1]
        return int(4 * query.numel() * key.shape[-2])
    if kind.name is _GROUPED_PRODUCT:
        first, second = args[0], args[1]
        is_grouped_inside = first.ndim == second.ndim == 2  # the groups divide the axis that is summed over
        return int(2 * first.numel() * second.shape[1] if is_grouped_inside else 2 * result.numel() * first.shape[-1])
    return 0


def _exponentials(kind: _Kind, args: tuple[Any, ...], result: Any) -> int:
    """One for every query and key of an attention, or for every number of a softmax on its own."""
    if kind.name in _SOFTMAX:
        return int(result.numel())
    if kind.name in _FUSED_ATTENTION:
        query, key = args[0], args[1]
        return int(query.numel() // max(query.shape[-1], 1) * key.shape[-2])
    return 0


def _attention(kind: _Kind, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Attention | None:
    """What an operator goes by that is attention, or the softmax of one that is made of several."""
    if kind.name in _SOFTMAX and result.ndim > 1:
        return Attention(*result.shape[-2:])
    if kind.name not in _FUSED_ATTENTION:
        return None
    query, key, value = args[:3]
    forms = ((tuple(key.shape), key.dtype), (tuple(value.shape), value.dtype))
    has_mask = any(isinstance(each, Tensor) for each in (*args[3:], *kwargs.values()))
    return Attention(query.shape[-2], key.shape[-2], forms, query.shape[:2] == key.shape[:2] and not has_mask)


def _tensors_in(arguments: Iterable[Any]) -> list[Tensor]:
    """The tensors among an operator's arguments, which may be lists of tensors too."""
    found: list[Tensor] = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            found.append(argument)
        elif isinstance(argument, (list, tuple)):
            found += [tensor for tensor in argument if isinstance(tensor, Tensor)]
    return found


def written_by(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Those of an operator's arguments that it writes to."""
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        given = args[position] if position < len(args) else kwargs.get(argument.name)
        yield from tensors_of(given)


@contextmanager
def _observed(denoiser: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Tell the recorder of every module call below the denoiser that this thread makes while the context lasts."""
    thread = threading.get_ident()
    with ExitStack() as stack:
        for name, module in denoiser.named_modules():
            if not name:
                continue

            def before(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                if threading.get_ident() == thread:
                    recorder.enter(name, module, (args, kwargs))

            def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                if threading.get_ident() == thread:
                    recorder.leave(output)

            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        yield


def record(denoiser: nn.Module, call: Call, batch: int | None = None) -> tuple[Any, Trace]:
    """Make a call of the denoiser and record it.

    Args:
        batch: how large the call's batch is, where that is known.

    Returns the call's own result and the trace.
    """
    recorder = _Recorder(denoiser)
    # What is compiled, blocks or flexible attention, runs operator by operator, so that it can be watched.
    uncompiled = torch.compiler.set_stance("force_eager")  # type: ignore[no-untyped-call]
    with uncollected(), uncompiled, _observed(denoiser, recorder), recorder:
        recorder.enter("", denoiser, call.given)
        result = call()
        recorder.leave(result)
    _mark_lists(denoiser, recorder.calls)
    idle = tuple(_idle(denoiser, recorder.calls))
    return result, Trace(tuple(recorder.calls), tuple(recorder.operators), idle, batch)


def _idle(denoiser: nn.Module, calls: list[ModuleCall]) -> Iterator[str]:
    """The modules with parameters of which nothing was called, without those inside of them."""
    passed = {path for name in {call.name for call in calls} for path in paths_to(name)}
    for name, module in denoiser.named_modules():
        if name in passed or name.rpartition(".")[0] not in passed or next(module.parameters(), None) is None:
            continue
        if type(module).forward is nn.Module.forward:
            passed.add(name)  # a list, which is not called itself
        else:
            yield name


def paths_to(name: str) -> Iterator[str]:
    """The names of all modules on the way to a module, the outermost (the denoiser itself) and its own included."""
    yield ""
    end = name.find(".")
    while end >= 0:
        yield name[:end]
        end = name.find(".", end + 1)
    yield name


def _mark_lists(denoiser: nn.Module, calls: list[ModuleCall]) -> None:
    called = {call.name for call in calls}
    lists = {name for name, module in denoiser.named_modules() if isinstance(module, nn.ModuleList)}
    for call in calls:
        prefix = f"{call.name}." if call.name else ""
        call.owns_called_list = any(
            calls[child].has_parameters and _enclosing_list(calls[child].name, prefix, lists, called)
            for child in call.children
        )


def _enclosing_list(name: str, prefix: str, lists: set[str], called: set[str]) -> bool:
    """Whether a module list of the owner (`prefix`) holds the module `name`; a list of a called module is its own."""
    parts = name[len(prefix) :].split(".")
    for end in range(1, len(parts)):
        path = prefix + ".".join(parts[:end])
        if path in called or path in lists:
            return path in lists
    return False
