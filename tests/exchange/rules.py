"""Plays what ranks started by NCCL's rules, always by the worst that these allow.

What is not on the device is host talk, on gloo: its sends wait for nothing, and its receives and collectives hold the
host where it waits for them.

- A communicator is made at its first use, which holds the host until all its members have come to theirs. A group has
  one for its collectives and batches, so that all members must take part in the first of them (documentation of
  `batch_isend_irecv`). In lazy mode single sends and receives have one for each pair in a group
  (pytorch/pytorch#129140, #154132; batches: #160342). With `eager` all of a group share one, made with the group.
- On a communicator operations run one after another as they were started; a batch is one of them.
- A send may block until its receive runs, and the other way round (NVIDIA/nccl#479, #1279): an operation is complete
  when the counterparts of all its transfers have started, a collective when it has started on all members. Between two
  ranks on a communicator, sends and receives match in the order in which they were started; tags mean nothing
  (pytorch/pytorch#94819).
- Two communicators on a device have no guarantee to progress independently (NVIDIA/nccl#783, #1347): with `one_queue`
  an operation starts only when all that its rank started before, on whatever communicator, are complete.
- A wait does not hold the host: what is started later runs later (documentation of `Work.wait`). With
  `waits_hold_host` it does; a barrier's, and that of a collective of objects, which reads the device, always does.
- Making a group holds the host until all ranks of the world have come to it (documentation of `new_group`).
- With `connections`, the first transfer from one rank to another on a communicator holds both hosts until both have
  come to it; and it synchronises the device, as the making of a communicator then does: each host is held until all
  that it started before is complete (NVIDIA/nccl#783, #1082).

All of this is monotone, hence the order in which the player tries the ranks does not matter.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.exchange.events import Event, Log, Operation

_HOLDING = ("barrier", "monitored_barrier")


class Stuck(NamedTuple):
    """A rank in a hang.

    Attributes:
        event: where its host stands; None if it is through.
        outstanding: its events that were started and are not complete.
    """

    rank: int
    event: int | None
    outstanding: tuple[int, ...]
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """How a play ended.

    Attributes:
        stuck: the ranks that did not come to the end, or on which an operation did not.
        errors: what does not fit together, whether or not anybody hangs for it.
    """

    stuck: tuple[Stuck, ...]
    errors: tuple[str, ...]

    @property
    def finished(self) -> bool:
        return not self.stuck

    def __str__(self) -> str:
        hang = ["a hang:", *(each.sentence for each in self.stuck)] if self.stuck else ["finished"]
        return "\n".join([*hang, *self.errors])


class _Communicator(NamedTuple):
    group: str
    members: tuple[int, ...]
    kind: str

    def __str__(self) -> str:
        if self.kind == "pair":
            return f"the communicator of ranks {self.members[0]} and {self.members[1]} in group {self.group}"
        return f"the communicator of group {self.group}"


class _Meeting(NamedTuple):
    """What holds the hosts of its members until all have come to it."""

    what: str
    members: tuple[int, ...]
    synchronises: bool = False


@dataclass(eq=False)
class _Task:
    """An operation, from the moment its host has come to it.

    Attributes:
        needs: the tasks that must have started for this one to be complete; None for one that no rank ever starts.
        after: the tasks that must be complete for this one to start.
    """

    rank: int
    index: int
    event: Event
    communicator: _Communicator
    needs: list["_Task | None"] = field(default_factory=list)
    after: list["_Task"] = field(default_factory=list)
    started: bool = False
    complete: bool = False

    def settle(self) -> bool:
        """Start and complete, if it can be; whether anything changed."""
        before = self.started, self.complete
        self.started = self.started or all(task.complete for task in self.after)
        self.complete = self.started and all(task is not None and task.started for task in self.needs)
        return before != (self.started, self.complete)

    def why(self) -> str:
        """Why it does not end, though it has started."""
        missing = next(task for task in self.needs if task is None or not task.started)
        who = "one that no other rank answers" if missing is None else f"event {missing.index} of rank {missing.rank}"
        return f"its event {self.index}, {self.event}, waits for {who}"


def play(
    logs: Sequence[Log],
    *,
    waits_hold_host: bool = False,
    eager: bool = False,
    one_queue: bool = True,
    connections: bool = False,
) -> Verdict:
    """Whether ranks that start what their logs say come to the end.

    Args:
        logs: of every rank of the world.
        waits_hold_host: a wait holds the host until the operation is complete.
        eager: groups make their one communicator when they are made.
        one_queue: a device runs one operation at a time, whatever its communicator.
        connections: the first transfer between two ranks holds their hosts, too, and what is made synchronises.
    """
    tasks = [_tasks(rank, log, eager) for rank, log in enumerate(logs)]
    everything = [task for own in tasks for task in own.values()]
    errors = [*_match_groups(logs), *_match_transfers(everything), *_match_collectives(everything)]
    hosts = [
        _Host(rank, log, own, _meetings(log, own, range(len(logs)), eager, connections), waits_hold_host, one_queue)
        for rank, (log, own) in enumerate(zip(logs, tasks, strict=True))
    ]
    changed = True
    while changed:
        changed = False
        for host in hosts:
            while host.advance(hosts):
                changed = True
            for task in list(host.outstanding):
                changed |= task.settle()
            host.outstanding = [task for task in host.outstanding if not task.complete]
    return Verdict(tuple(host.stuck(hosts) for host in hosts if not host.is_through), tuple(errors))


class _Host:
    """A rank's program: it comes to one event of its log after another.

    Attributes:
        position: the event that it has come to.
        meets: for every event, what it meets the others for.
        arrives: the event at which it comes to a meeting.
        outstanding: what it has started and is not complete.
    """

    def __init__(
        self,
        rank: int,
        log: Log,
        tasks: dict[int, _Task],
        meets: list[list[_Meeting]],
        waits_hold_host: bool,
        one_queue: bool,
    ) -> None:
        self.position = 0
        self.arrives = {meeting: index for index, met in enumerate(meets) for meeting in met}
        self.outstanding: list[_Task] = []
        self._rank = rank
        self._log = log
        self._tasks = tasks
        self._meets = meets
        self._waits_hold_host = waits_hold_host
        self._one_queue = one_queue
        self._waited: set[_Task] = set()

    @property
    def is_through(self) -> bool:
        return self.position == len(self._log) and not self.outstanding

    def advance(self, hosts: Sequence["_Host"]) -> bool:
        """Pass the event that it stands at, if nothing holds it; whether it did."""
        if self.position == len(self._log) or self._held_by(hosts):
            return False
        event = self._log[self.position]
        if event.waits_for is not None:
            self._waited.add(self._tasks[event.waits_for])
        elif event.kind != "make group":
            self._issue(self._tasks[self.position])
        self.position += 1
        return True

    def stuck(self, hosts: Sequence["_Host"]) -> Stuck:
        event = None if self.position == len(self._log) else self.position
        where = "its host is through"
        if event is not None:
            where = f"its host stands at event {event}, {self._log[event]}, {self._held_by(hosts)}"
        running = [task.why() for task in self.outstanding if task.started]
        behind = len(self.outstanding) - len(running)
        reasons = [where, *running, *([f"{behind} more run after that"] if behind else [])]
        outstanding = tuple(task.index for task in self.outstanding)
        return Stuck(self._rank, event, outstanding, f"rank {self._rank}: {'; '.join(reasons)}")

    def _held_by(self, hosts: Sequence["_Host"]) -> str:
        """What holds it, in words; nothing if it can go on."""
        event = self._log[self.position]
        if event.waits_for is not None:
            task = self._tasks[event.waits_for]
            return "" if task.complete or not self._is_held_for(task) else "which holds it"
        for meeting in self._meets[self.position]:
            absent = [rank for rank in meeting.members if not hosts[rank].has_come_to(meeting)]
            if absent:
                return f"until rank {' and rank '.join(map(str, absent))} comes to {meeting.what}"
            if meeting.synchronises and any(not task.event.group.talk for task in self.outstanding):
                return f"until what it started before {meeting.what} is complete"
        return ""

    def has_come_to(self, meeting: _Meeting) -> bool:
        return meeting in self.arrives and self.arrives[meeting] <= self.position

    def _is_held_for(self, task: _Task) -> bool:
        name = task.event.operations[0].name
        return self._waits_hold_host or task.event.group.talk or name in _HOLDING or "object" in name

    def _issue(self, task: _Task) -> None:
        if not task.event.group.talk:
            before = [other for other in self.outstanding if not other.event.group.talk]
            task.after = [
                other
                for other in before
                if self._one_queue or other in self._waited or other.communicator == task.communicator
            ]
        self.outstanding.append(task)


def _tasks(rank: int, log: Log, eager: bool) -> dict[int, _Task]:
    return {
        index: _Task(rank, index, event, _communicator_of(rank, event, eager))
        for index, event in enumerate(log)
        if event.kind not in ("wait", "make group")
    }


def _communicator_of(rank: int, event: Event, eager: bool) -> _Communicator:
    peer = event.operations[0].peer
    if event.kind == "single" and peer is not None and not eager and not event.group.talk:
        return _Communicator(event.group.name, (min(rank, peer), max(rank, peer)), "pair")
    return _Communicator(event.group.name, event.group.members, "group")


def _meetings(
    log: Log, tasks: dict[int, _Task], world: Iterable[int], eager: bool, connections: bool
) -> list[list[_Meeting]]:
    """What a rank meets others for, at every event of its log."""
    met: set[_Meeting] = set()
    groups = itertools.count(1)
    meetings = []
    for index, event in enumerate(log):
        here = []
        if event.kind == "make group":
            here.append(_Meeting(f"the making of its group number {next(groups)}", tuple(world)))
        elif index in tasks and not event.group.talk:
            task = tasks[index]
            if not eager:
                here.append(_Meeting(f"{task.communicator}", task.communicator.members, connections))
            if connections:
                here += [
                    _Meeting(
                        f"the first transfer from rank {ends[0]} to rank {ends[1]} on {task.communicator}", ends, True
                    )
                    for ends in (_ends(task.rank, operation) for operation in event.operations)
                    if ends is not None
                ]
        meetings.append([meeting for meeting in dict.fromkeys(here) if meeting not in met])
        met.update(here)
    return meetings


def _ends(rank: int, operation: Operation) -> tuple[int, int] | None:
    """Between which ranks a transfer goes; None for a collective."""
    if operation.peer is None or operation.name not in ("send", "recv"):
        return None
    return (rank, operation.peer) if operation.name == "send" else (operation.peer, rank)


def _match_groups(logs: Sequence[Log]) -> Iterable[str]:
    made = [[event.group for event in log if event.kind == "make group"] for log in logs]
    for number, groups in enumerate(itertools.zip_longest(*made), 1):
        if len(set(groups)) > 1:
            names = [None if group is None else group.name for group in groups]
            yield f"the group number {number} that the ranks make is {names}"


_Ends = dict[tuple[_Communicator, tuple[int, int], int], list[tuple[_Task, Operation]]]


def _match_transfers(tasks: Sequence[_Task]) -> Iterable[str]:
    """Let the two ends of every transfer find each other; yields what does not fit."""
    sends: _Ends = defaultdict(list)
    receives: _Ends = defaultdict(list)
    for task in tasks:
        for operation in task.event.operations:
            ends = _ends(task.rank, operation)
            if ends is not None:
                key = task.communicator, ends, operation.tag if task.event.group.talk else 0
                (sends if operation.name == "send" else receives)[key].append((task, operation))
    for key in dict.fromkeys((*sends, *receives)):
        for sent, received in itertools.zip_longest(sends[key], receives[key]):
            if sent is None:
                received[0].needs.append(None)
                yield f"rank {received[0].rank} receives at event {received[0].index} what nobody sends"
            elif received is None:
                if not sent[0].event.group.talk:
                    sent[0].needs.append(None)
                yield f"rank {sent[0].rank} sends at event {sent[0].index} what nobody receives"
            else:
                received[0].needs.append(sent[0])
                if not sent[0].event.group.talk:
                    sent[0].needs.append(received[0])
                if sent[1].bytes != received[1].bytes:
                    yield (
                        f"rank {sent[0].rank} sends at event {sent[0].index} {sent[1].bytes} bytes, and "
                        f"rank {received[0].rank} receives at event {received[0].index} {received[1].bytes}"
                    )


def _match_collectives(tasks: Sequence[_Task]) -> Iterable[str]:
    """Let the members of every collective find each other; yields what does not fit."""
    started: dict[_Communicator, dict[int, list[_Task]]] = {}
    for task in tasks:
        if task.event.kind == "collective":
            of_members = started.setdefault(task.communicator, {rank: [] for rank in task.communicator.members})
            of_members[task.rank].append(task)
    for of_members in started.values():
        for together in itertools.zip_longest(*of_members.values()):
            for task in together:
                if task is not None:
                    task.needs += [other for other in together if other is not task]
            operations = {task.event.operations[0] for task in together if task is not None}
            if len(operations) > 1 or None in together:
                told = [None if task is None else f"event {task.index}, {task.event}" for task in together]
                yield f"ranks {list(of_members)} take part in one collective by {told}"
