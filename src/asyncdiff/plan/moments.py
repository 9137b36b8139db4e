"""What is exchanged in a step, in which order: the same on all ranks, known before anything runs. Pure, plain data.

On NCCL operations of one communicator run one after another, and a transfer needs both of its ends running
(NVIDIA/nccl#783, #1279). All ranks go through the moments of a step in this one order, each taking its own part as one
batch; so nobody ever waits for what comes later.
"""

import functools
import itertools
from dataclasses import dataclass

from asyncdiff.denoiser.graph import Edge
from asyncdiff.plan.chain import Link, chain
from asyncdiff.plan.course import Course
from asyncdiff.plan.division import Division
from asyncdiff.plan.routing import Message
from asyncdiff.plan.schedule import Step, StepKind


@dataclass(frozen=True)
class Moment:
    """What is exchanged at one time, as one batch.

    Attributes:
        messages: live edges, each from one rank to another; it begins when the last of them is made. In a chained
            step they travel as they were made, in the steps after it as residuals, where that is how they travel.
        results: noise predictions, as (step that it is for, rank that has made it), or what of a prediction each rank
            makes, where tokens are divided, as (part of the tokens, rank).
        readers: the ranks that get the results; None for all.
    """

    messages: tuple[Message, ...] = ()
    results: tuple[tuple[int, int], ...] = ()
    readers: tuple[int, ...] | None = None


@dataclass(frozen=True)
class StepOrder:
    """The moments of a step.

    Attributes:
        moments: in order. Those with messages that come before any with results may begin while components run.
        kept: the live edges that any rank needs of this step.
    """

    moments: tuple[Moment, ...]
    kept: frozenset[Edge] = frozenset()

    @property
    def early(self) -> tuple[Moment, ...]:
        """The moments that may begin while components run."""
        return tuple(itertools.takewhile(lambda moment: moment.messages, self.moments))


class Order:
    """The order of exchanges for a divided denoiser.

    Args:
        division: the divided denoiser.
    """

    def __init__(self, division: Division) -> None:
        self.division = division
        self._edges = functools.cache(self._edges_of)
        self._links = functools.cache(functools.partial(chain, division))

    def of(self, course: Course, index: int) -> StepOrder:
        """What is exchanged in a step of a course."""
        step = course.step(index)
        results = self.division.results(step)
        if step.kind is StepKind.DIVIDED:
            return StepOrder((Moment(results=results),))
        if step.kind.is_full:
            chained = step.kind is StepKind.CHAINED
            links = [Moment(link.messages) for link in self.links(step.keeps) if link.messages] if chained else []
            return StepOrder((*links, Moment(results=((index, self.division.partition.predictor),))))
        last = [Moment(results=results)] if results else []
        if step.kind is not StepKind.ROUND:
            return StepOrder(tuple(last))
        moments, kept = self._edges(*_readers(course, step))
        if any(task.completes for task in step.tasks):
            return StepOrder((*moments, *last), kept)
        # The prediction is waited for at once, the last live edges only in the next round.
        return StepOrder((*moments[:-1], *last, *moments[-1:]), kept)

    def links(self, keeps: bool) -> tuple[Link, ...]:
        """The links of a chained step."""
        return self._links(keeps)

    def _edges_of(self, by_rounds: bool, by_the_end: bool) -> tuple[tuple[Moment, ...], frozenset[Edge]]:
        """The moments of the live edges, given what will read them, and all edges that are read."""
        division = self.division
        partition, schedule = division.partition, division.schedule

        def wanted(rank: int) -> frozenset[Edge]:
            if by_rounds:
                return division.reads_of(rank)
            completes = by_the_end and schedule.component_of(rank) == partition.predictor
            return partition.end.reads if completes else frozenset()

        parts: dict[int, list[Message]] = {}
        for message in division.messages:
            of_part: dict[int, list[Edge]] = {}
            for edge in message.edges:
                if edge in wanted(message.reader):
                    of_part.setdefault(division.part_of[edge], []).append(edge)
            for part, edges in of_part.items():
                parts.setdefault(part, []).append(Message(message.source, message.reader, tuple(edges)))
        kept = frozenset[Edge]().union(*map(wanted, range(schedule.world_size)))
        return tuple(Moment(messages=tuple(parts[part])) for part in sorted(parts)), kept


def _readers(course: Course, step: Step) -> tuple[bool, bool]:
    """Whether a round's version is read by later components, and whether by the denoiser's last layers.

    Where the last step is not known, it will be read.
    """
    if course.last is None:
        return True, True
    by_rounds, by_the_end = False, any(task.completes for task in step.tasks)
    for index in range(step.index + 1, course.last + 1):
        for task in course.step(index).tasks:
            by_rounds = by_rounds or any(version.step == step.index for version in task.reads)
            by_the_end = by_the_end or any(version.step == step.index for version in task.completes)
        by_rounds = by_rounds or any(version.step == step.index for version in course.judged(index))
        if by_rounds:
            return True, True
    return by_rounds, by_the_end
