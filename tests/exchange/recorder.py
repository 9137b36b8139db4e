"""Records what a rank starts on torch.distributed, while it really runs."""

import functools
import inspect
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch.distributed as dist
from torch import Tensor

from tests.exchange.events import Event, Group, Kind, Operation

_SINGLES = {"isend": "send", "send": "send", "irecv": "recv", "recv": "recv"}

_COLLECTIVES = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_gather_single",
    "all_reduce",
    "all_to_all",
    "all_to_all_single",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "gather",
    "gather_object",
    "monitored_barrier",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_single",
    "reduce_scatter_tensor",
    "scatter",
    "scatter_object_list",
)

# What starts more than the player has rules for.
_REFUSED = (
    "_coalescing_manager",
    "all_gather_coalesced",
    "all_reduce_coalesced",
    "new_subgroups",
    "new_subgroups_by_enumeration",
    "recv_object_list",
    "send_object_list",
    "shrink_group",
    "split_group",
)

# Arguments that are tensors of one size on all ranks.
_SIZED = ("tensor", "input_tensor", "output_tensor", "output")


def is_described_as_talk(arguments: Mapping[str, Any]) -> bool:
    """Whether a group is for the host's tensors only, from the arguments of `new_group`: its description ends so."""
    return str(arguments.get("group_desc")).endswith("talk")


class Recorder:
    """While it is entered, what this rank starts by functions of `torch.distributed` is written down; it still happens.

    Operations are written down when they are started, a wait when it begins, the first on each only. An operation that
    is not asynchronous is followed by its wait.

    Args:
        is_talk: tells, from the arguments of `new_group`, which groups are for the host's tensors only.

    Attributes:
        log: what was started, in order.
    """

    def __init__(self, is_talk: Callable[[Mapping[str, Any]], bool] = is_described_as_talk) -> None:
        self.log: list[Event] = []
        self._is_talk = is_talk
        self._groups: dict[str, Group] = {}
        self._made: Counter[tuple[int, ...]] = Counter()
        self._waited: set[int] = set()
        self._lock = threading.Lock()
        self._patches = ExitStack()

    def __enter__(self) -> "Recorder":
        own: dict[str, Callable[..., Any]] = {
            **dict.fromkeys(_SINGLES, self._start_single),
            **dict.fromkeys(_COLLECTIVES, self._start_collective),
            **dict.fromkeys(_REFUSED, self._refuse),
            "batch_isend_irecv": self._start_batch,
            "new_group": self._make_group,
        }
        plain: dict[object, object] = {}
        for name, function in own.items():
            original = getattr(dist, name, None)
            if original is not None:
                replaced = functools.wraps(original)(functools.partial(function, original))
                plain[replaced] = original
                self._patches.enter_context(mock.patch.object(dist, name, replaced))

        class PlainP2POp(dist.P2POp):
            """Holds the function itself: torch compares it."""

            def __new__(cls, op: Any, *args: Any, **kwargs: Any) -> Any:
                return super().__new__(cls, plain.get(op, op), *args, **kwargs)  # type: ignore[arg-type]

            def __init__(self, op: Any, *args: Any, **kwargs: Any) -> None:
                super().__init__(plain.get(op, op), *args, **kwargs)  # type: ignore[arg-type]

        self._patches.enter_context(mock.patch.object(dist, "P2POp", PlainP2POp))
        return self

    def __exit__(self, *error: object) -> None:
        self._patches.close()

    def _start_single(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        peer = _peer(given, "dst", "src")
        if peer is None:
            raise NotImplementedError("NCCL has no receive from any rank")
        operation = Operation(_SINGLES[original.__name__], peer, given.get("tag", 0), given["tensor"].nbytes)
        return self._start("single", original, args, kwargs, given.get("group"), (operation,))

    def _start_collective(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        sized = next((given[name] for name in _SIZED if isinstance(given.get(name), Tensor)), None)
        size = 0 if sized is None or original.__name__ == "all_to_all_single" else sized.nbytes
        operation = Operation(original.__name__, _peer(given, "src", "dst"), 0, size)
        return self._start("collective", original, args, kwargs, given.get("group"), (operation,))

    def _start_batch(self, original: Callable[..., Any], p2p_op_list: Sequence[dist.P2POp]) -> Any:
        operations = tuple(
            Operation(_SINGLES[each.op.__name__], each.peer, each.tag, each.tensor.nbytes) for each in p2p_op_list
        )
        return self._start("batch", original, (p2p_op_list,), {}, p2p_op_list[0].group, operations)

    def _make_group(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        members = tuple(sorted(given.get("ranks") or range(dist.get_world_size())))
        self._made[members] += 1
        backend = given.get("backend") or dist.get_backend()
        name = f"{','.join(map(str, members))} #{self._made[members]}"
        group = Group(name, members, str(backend), self._is_talk(given))
        self._write(Event("make group", group))
        made = original(*args, **kwargs)
        if isinstance(made, dist.ProcessGroup):
            self._groups[made.group_name] = group
        return made

    def _refuse(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"torch.distributed.{original.__name__} cannot be recorded")

    def _start(
        self,
        kind: Kind,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        group: Any,
        operations: tuple[Operation, ...],
    ) -> Any:
        if group is dist.GroupMember.NON_GROUP_MEMBER:
            return original(*args, **kwargs)
        where = self._group_of(group)
        event = self._write(Event(kind, where, operations))
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        if not (given.get("async_op") or kind == "batch" or original.__name__ in ("isend", "irecv")):
            self._write_wait(where, event)
            return original(*args, **kwargs)
        works = original(*args, **kwargs)
        if isinstance(works, list):
            return [_RecordedWork(work, functools.partial(self._write_wait, where, event)) for work in works]
        return _RecordedWork(works, functools.partial(self._write_wait, where, event))

    def _group_of(self, group: Any) -> Group:
        world = dist.group.WORLD
        if world is None:
            raise RuntimeError("there is no process group")
        if group is None or group.group_name == world.group_name:
            return Group("default", tuple(range(dist.get_world_size())), dist.get_backend(), False)
        if group.group_name not in self._groups:
            self._groups[group.group_name] = Group(
                f"earlier {group.group_name}",
                tuple(dist.get_process_group_ranks(group)),
                dist.get_backend(group),
                self._is_talk({"group_desc": group.group_desc}),
            )
        return self._groups[group.group_name]

    def _write(self, event: Event) -> int:
        with self._lock:
            self.log.append(event)
            return len(self.log) - 1

    def _write_wait(self, group: Group, event: int) -> None:
        if event not in self._waited:
            self._waited.add(event)
            self._write(Event("wait", group, waits_for=event))


class _RecordedWork:
    """A Work whose wait is written down."""

    def __init__(self, work: dist.Work, write: Callable[[], None]) -> None:
        self._work = work
        self._write = write

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        self._write()
        return self._work.wait(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def _peer(given: Mapping[str, Any], *names: str) -> int | None:
    """The other rank, as the world counts."""
    for name in names:
        if given.get(name) is not None:
            return int(given[name])
        if given.get(f"group_{name}") is not None:
            group: Any = given.get("group") or dist.group.WORLD
            return dist.get_global_rank(group, given[f"group_{name}"])
    return None
