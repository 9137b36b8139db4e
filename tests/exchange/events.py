"""What a rank started on torch.distributed, in order, as plain data."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["make group", "single", "batch", "collective", "wait"]


class Group(NamedTuple):
    """A process group.

    Attributes:
        name: the same on all ranks.
        members: ranks of the world.
        backend: the one that it had where it was recorded.
        talk: whether only the host's tensors travel in it, on gloo, wherever the others' are.
    """

    name: str
    members: tuple[int, ...]
    backend: str
    talk: bool


class Operation(NamedTuple):
    """A send, a receive or a collective.

    Attributes:
        name: "send", "recv", or the collective's in torch.distributed.
        peer: the other rank, as the world counts; a collective's root, if it has one.
        bytes: those of the tensor; 0 where the ranks may have different ones.
    """

    name: str
    peer: int | None
    tag: int
    bytes: int

    def __str__(self) -> str:
        if self.name == "send":
            return f"send to rank {self.peer}"
        if self.name == "recv":
            return f"receive from rank {self.peer}"
        return self.name if self.peer is None else f"{self.name} from rank {self.peer}"


@dataclass(frozen=True)
class Event:
    """What a rank did; a rank's log is a list of them, counted from 0.

    Attributes:
        waits_for: the event that a wait waits for.
    """

    kind: Kind
    group: Group
    operations: tuple[Operation, ...] = ()
    waits_for: int | None = None

    def __str__(self) -> str:
        where = f"in group {self.group.name}"
        if self.kind == "wait":
            return f"wait for event {self.waits_for}"
        if self.kind == "make group":
            return f"making of group {self.group.name}"
        what = ", ".join(map(str, self.operations))
        return f"single {what} {where}" if self.kind == "single" else f"{self.kind} ({what}) {where}"


Log = Sequence[Event]


def to_json(logs: Sequence[Log]) -> str:
    """The logs of all ranks, an event a line, every group once."""
    groups = list(dict.fromkeys(event.group for log in logs for event in log))
    ranks = [
        ",\n".join(
            json.dumps(
                [event.kind, groups.index(event.group), event.operations, event.waits_for], separators=(",", ":")
            )
            for event in log
        )
        for log in logs
    ]
    lines = "\n],[\n".join(ranks)
    return f'{{"groups": {json.dumps(groups)},\n"ranks": [[\n{lines}\n]]}}\n'


def from_json(text: str) -> list[list[Event]]:
    """The logs of all ranks."""
    read = json.loads(text)
    groups = [Group(name, tuple(members), backend, talk) for name, members, backend, talk in read["groups"]]
    return [
        [
            Event(kind, groups[group], tuple(Operation(*operation) for operation in operations), waits_for)
            for kind, group, operations, waits_for in log
        ]
        for log in read["ranks"]
    ]
