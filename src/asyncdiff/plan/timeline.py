"""Who computes, sends and waits when: a generation by the schedule, in seconds. Pure.

The same course and the same order of exchanges as the executors go by. A transfer takes its link's latency and the
bytes of the rank that sends or receives most; a rank has one transfer at a time. What a rank receives it waits for
where it reads it: predictions at once, live edges before it computes again.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from asyncdiff.plan.course import Course
from asyncdiff.plan.division import Division
from asyncdiff.plan.link import Link
from asyncdiff.plan.method import Bits, Method
from asyncdiff.plan.moments import Moment, Order
from asyncdiff.plan.schedule import Step, StepKind


class Activity(Enum):
    """What a device does."""

    COMPUTING = "computing"
    SENDING = "sending"
    WAITING = "waiting"


class Span(NamedTuple):
    """What a device does for a while.

    Attributes:
        rank: in its group.
        begin, end: seconds from the beginning of the first step.
        step: of the generation, from 0.
        kind: of that step.
    """

    rank: int
    begin: float
    end: float
    activity: Activity
    step: int
    kind: StepKind


@dataclass(frozen=True)
class Load:
    """What a step asks of one group of devices.

    Attributes:
        call: seconds of one call of the denoiser, on one device, of the group's part of the batch.
        calls: how many calls there are in a step.
        part: how much of the traced batch that part is.
        prediction: bytes of a call's result, of the group's part.
        groups: how many groups share out every step.
        rounds: for each rank, seconds that a round takes beside the rank's component: forecasts, above all.
        bridged: seconds that a bridged step takes beside the denoiser's last layers.
        divided: seconds that a step in full which is divided by tokens takes to pack and unpack what is exchanged.
        outside: seconds that every device spends outside of the denoiser, for each call.
    """

    call: float
    calls: int
    part: float
    prediction: float
    groups: int
    rounds: tuple[float, ...]
    bridged: float
    divided: float = 0.0
    outside: float = 0.0


@dataclass(frozen=True)
class Timeline:
    """A generation of one group; those of the others are the same.

    Attributes:
        spans: in the order in which they were found.
        seconds: of the whole.
        sent: bytes that the ranks of the group send.
    """

    spans: tuple[Span, ...]
    seconds: float
    sent: float


def forecast_shares(division: Division, of_a_byte: float) -> tuple[tuple[float, ...], float]:
    """What each rank's forecasts of a round take, and those of a bridged step, as parts of a call.

    Args:
        of_a_byte: what going through one byte takes, as a part of a call.
    """
    schedule, partition, method = division.schedule, division.partition, division.method
    sizes = [
        sum(size * dtype.itemsize for dtype, size in division.storage_of(rank).sizes.items())
        if division.reads_of(rank)
        else 0
        for rank in range(schedule.world_size)
    ]
    sent = [division.graph.bytes(division.sent_by(rank)) for rank in range(schedule.world_size)]
    held, packed = passes_of_held(method, schedule.versions), passes_of_sent(method)
    rounds = tuple(of_a_byte * (held * size + packed * own) for size, own in zip(sizes, sent, strict=True))
    at_the_end = division.graph.bytes(partition.end.reads) if schedule.by_tokens else sizes[partition.predictor]
    return rounds, of_a_byte * held * at_the_end


def passes_of_held(method: Method, versions: int) -> float:
    """How often a round goes through what is held of one version, in operators that make copies: as it arrives, and as
    it is forecast; of packed differences they unpack them. Counted in half precision
    (`tests/exchange/test_traffic.py`)."""
    passes = _PASSES[method.bits]
    of_forecast = {"fitted": passes.fit * versions + passes.weights, "linear": passes.line, "reuse": 0.0}
    return passes.arrival + of_forecast[method.forecast]


def passes_of_sent(method: Method) -> float:
    """The same of what a rank sends: packing it, and noting what the readers have of it then."""
    return _PASSES[method.bits].sent


class _Passes(NamedTuple):
    """How often what is held, or sent, is gone through: in all where it arrives, is sent, or is forecast by a line; for
    each version, and once, where weights are fitted."""

    arrival: float
    sent: float
    line: float
    fit: float
    weights: float


_PASSES: Mapping[Bits | None, _Passes] = {
    None: _Passes(3, 4, 3, 6, 1),
    8: _Passes(6.5, 22, 5.5, 9, -1),
    4: _Passes(8, 25, 6, 11.5, -4),
}


def timeline(division: Division, course: Course, load: Load, link: Link) -> Timeline:
    """The generation of a course whose last step is known."""
    group = _Group(division, course, load, link)
    for step in course.steps():
        for _ in range(load.calls):
            group.run(step)
    return Timeline(tuple(group.spans), max(group.clocks), group.sent)


class _Group:
    """The ranks of a group, each at its own time."""

    def __init__(self, division: Division, course: Course, load: Load, link: Link) -> None:
        self.spans: list[Span] = []
        self.sent = 0.0
        self._division, self._course, self._load, self._link = division, course, load, link
        self._order = Order(division)
        self._ranks = range(division.schedule.world_size)
        self.clocks = [0.0 for _ in self._ranks]
        self._lines = [0.0 for _ in self._ranks]  # when each rank's link is free
        self._arrivals = [0.0 for _ in self._ranks]  # when what was sent to each rank is there

    def run(self, step: Step) -> None:
        """One call of a step."""
        if step.kind is StepKind.CHAINED:
            self._chained(step)
        elif step.kind is StepKind.FULL:
            self._full(step)
        elif step.kind is StepKind.DIVIDED:
            self._divided(step)
        elif step.kind is StepKind.ROUND:
            self._round(step)
        elif step.kind is StepKind.BRIDGED:
            self._bridged(step)
        self._join_groups(step)
        for rank in self._ranks:
            self._spend(rank, self._load.outside, step)

    def _full(self, step: Step) -> None:
        for rank in self._ranks:
            self._compute(rank, 1.0, step)
        self._share(self._moments(step)[-1], step)

    def _divided(self, step: Step) -> None:
        """Keys and values are waited for at every attention: in all, as long as their bytes and their messages take."""
        division, exchanged = self._division, self._division.exchanged_within
        for rank in self._ranks:
            self._compute(rank, division.divided_share, step, self._load.divided)
        sizes = [(source, reader, self._load.part * size) for source, reader, size in exchanged]
        self._transfer(sizes, self.clocks, step, moments=division.moments_within)
        for rank in self._ranks:
            self._wait(rank, self._arrivals[rank], step)
        self._share(self._moments(step)[-1], step)

    def _chained(self, step: Step) -> None:
        graph = self._division.graph
        everywhere = sum(graph.units[unit].time for unit in self._division.replicated) + graph.glue_time
        for rank in self._ranks:
            self._compute(rank, everywhere / graph.time, step)
        for link in self._order.links(step.keeps):
            share = sum(graph.units[unit].time for unit in link.units) / graph.time
            for rank in self._ranks:
                if self._division.schedule.component_of(rank) == link.component:
                    self._compute(rank, share, step)
            self._send(Moment(link.messages), step)
        self._wait(self._division.partition.predictor, self._arrivals[self._division.partition.predictor], step)
        self._share(self._moments(step)[-1], step)

    def _round(self, step: Step) -> None:
        partition, schedule = self._division.partition, self._division.schedule
        begins = list(self.clocks)
        for task in step.tasks:
            share = partition.shares[schedule.component_of(task.rank)]
            begins[task.rank] = max(self.clocks[task.rank], self._arrivals[task.rank])
            self._compute(task.rank, share, step, self._load.rounds[task.rank])
        moments = self._moments(step)
        edges = [moment for moment in moments if moment.messages]
        for moment in moments:
            if moment.messages:
                # Those that are early begin when their part of the component is done.
                done = (edges.index(moment) + 1) / len(edges)
                ready = [begin + done * (end - begin) for begin, end in zip(begins, self.clocks, strict=True)]
                self._send(moment, step, ready)
                continue
            for task in step.tasks:
                if task.completes:
                    self._compute(task.rank, partition.end.share, step)
            self._share(moment, step)

    def _bridged(self, step: Step) -> None:
        for task in step.tasks:
            self._compute(task.rank, self._division.partition.end.share, step, self._load.bridged)
        for moment in self._moments(step):
            self._share(moment, step)

    def _moments(self, step: Step) -> tuple[Moment, ...]:
        return self._order.of(self._course, step.index).moments

    def _compute(self, rank: int, share: float, step: Step, more: float = 0.0) -> None:
        """Compute a part of a call, and for so many seconds more, once what was sent to the rank is there."""
        self._wait(rank, self._arrivals[rank], step)
        self._spend(rank, share * self._load.call + more, step)

    def _spend(self, rank: int, seconds: float, step: Step) -> None:
        begin = self.clocks[rank]
        self.clocks[rank] = begin + seconds
        self._note(rank, begin, self.clocks[rank], Activity.COMPUTING, step)

    def _wait(self, rank: int, until: float, step: Step) -> None:
        self._note(rank, self.clocks[rank], until, Activity.WAITING, step)
        self.clocks[rank] = max(self.clocks[rank], until)

    def _send(self, moment: Moment, step: Step, ready: list[float] | None = None) -> None:
        """Live edges go on their way."""
        part = self._load.part
        sizes = [
            (message.source, message.reader, part * self._division.bytes_of(message.edges))
            for message in moment.messages
        ]
        self._transfer(sizes, ready or self.clocks, step)

    def _share(self, moment: Moment, step: Step) -> None:
        """Predictions go to all ranks, which wait for them."""
        size = self._division.result_bytes(self._load.prediction, self._load.part)
        sizes = [(source, reader, size) for _, source in moment.results for reader in self._ranks if reader != source]
        self._transfer(sizes, self.clocks, step)
        for rank in {reader for _, reader, _ in sizes}:
            self._wait(rank, self._arrivals[rank], step)

    def _transfer(
        self, sizes: list[tuple[int, int, float]], ready: Iterable[float], step: Step, moments: int = 1
    ) -> None:
        """What is sent in one moment, or several: it begins when all that send have it, and their links are free."""
        if not sizes:
            return
        times = list(ready)
        moved: dict[tuple[str, int], float] = defaultdict(float)
        for source, reader, size in sizes:
            moved["sent", source] += size
            moved["received", reader] += size
            self.sent += size
        sources, ends = {source for source, _, _ in sizes}, {rank for _, rank in moved}
        begin = max(*(times[rank] for rank in sources), *(self._lines[rank] for rank in ends))
        end = begin + self._link.seconds(max(moved.values()), moments)
        for rank in ends:
            self._lines[rank] = end
        for rank in sources:
            self._note(rank, begin, end, Activity.SENDING, step)
        for _, reader, _ in sizes:
            self._arrivals[reader] = max(self._arrivals[reader], end)

    def _join_groups(self, step: Step) -> None:
        """The groups' results go to all of them: each rank sends its own to its counterparts."""
        others = self._load.groups - 1
        if not others:
            return
        size = others * self._load.prediction
        for rank in self._ranks:
            begin = max(self.clocks[rank], self._lines[rank])
            self._wait(rank, begin, step)
            self.clocks[rank] = self._lines[rank] = begin + self._link.seconds(size)
            self._note(rank, begin, self.clocks[rank], Activity.SENDING, step)
            self.sent += size

    def _note(self, rank: int, begin: float, end: float, activity: Activity, step: Step) -> None:
        if end > begin:
            self.spans.append(Span(rank, begin, end, activity, step.index, step.kind))
