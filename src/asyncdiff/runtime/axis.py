"""Along which axis the ranks of a group divide a denoiser, where the user has not said it: its tokens, or its layers.

What is exact comes first: with `fresh` tokens every step is the ordinary one. Compared are generations as the plan
models them, with the times of calls, and of what travels between the ranks, as they are measured here.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from asyncdiff.denoiser.find import finish
from asyncdiff.denoiser.structure import Structure
from asyncdiff.errors import SplitError
from asyncdiff.exchange.protocol import Exchange
from asyncdiff.plan.course import Course
from asyncdiff.plan.division import Division
from asyncdiff.plan.link import Link
from asyncdiff.plan.moments import Moment
from asyncdiff.plan.timeline import Load, forecast_shares, timeline
from asyncdiff.runtime.context import Context
from asyncdiff.settings import Settings

logger = logging.getLogger(__name__)

# Of the speed-up of components, what exact steps must reach; what is missing, bridge=2 makes up, and stays closer
# (docs/tokens.md). And what they must reach at all.
_ENOUGH = 2 / 3
_LEAST_SPEEDUP = 1.1
_STEPS = 50  # where the pipeline has not told how many there are
_SMALL, _LARGE = 2**10, 2**24  # bytes that are sent to see how fast they travel
_REPEATS = 2  # of everything that is timed; the least counts


@dataclass(frozen=True)
class Measured:
    """What calls take on this rank.

    Attributes:
        call: seconds of an undivided one.
        part: seconds of one with a rank's tokens.
        of_a_byte: what going through a byte takes, as a part of a call.
        prediction: bytes of a call's result.
    """

    call: float
    part: float
    of_a_byte: float
    prediction: int


class Axis:
    """The choice for one denoiser: once for every structure, and the same on all ranks of the group."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._link: Link | None = None
        self._chosen: dict[Structure, bool] = {}

    @property
    def is_open(self) -> bool:
        """Whether there is anything to choose: several processes, and nothing said of how they share a call out."""
        settings, context = self._context.settings, self._context
        is_told = settings.told_components is not None or settings.stride > 1 or settings.shard
        return not is_told and context.schedule.components > 1 and len(context.exchange.ranks) == 1

    @property
    def by_tokens(self) -> Settings:
        """The settings with which tokens are divided."""
        return replace(self._context.settings, tokens=self._context.schedule.components, fresh=True)

    def is_refused(self, structure: Structure) -> bool:
        """Whether a denoiser of such a structure is not to be divided by tokens."""
        return self._chosen.get(structure) is False

    def settle(
        self,
        structure: Structure,
        by_tokens: Division | None,
        by_components: Callable[[], Division],
        measure: Callable[[], Measured],
    ) -> bool:
        """Whether tokens are divided; all ranks come to the same.

        Args:
            structure: of the denoiser; what was chosen for it is kept to, where its tokens can be divided.
            by_tokens: its call divided by tokens, if it can be.
            by_components: divides it by components, or raises SplitError.
            measure: times its calls.
        """
        context, what = self._context, f"how the denoiser {self._context.name!r} is to be divided"
        can_be = context.exchange.agree(by_tokens is not None, what)
        if by_tokens is None or not can_be:
            self._chosen[structure] = False
        if structure in self._chosen or by_tokens is None:
            return self._chosen[structure]
        if self._link is None:
            self._link = measured_link(context.exchange, context.schedule.components, context.device)
        try:
            mine = self._is_better(by_tokens, by_components, measure(), self._link)
        except torch.OutOfMemoryError:
            mine = False  # the others wait for what this rank says
        self._chosen[structure] = context.exchange.agree(mine, what)
        return self._chosen[structure]

    def _is_better(
        self, by_tokens: Division, by_components: Callable[[], Division], load: Measured, link: Link
    ) -> bool:
        """Whether tokens are worth it, as far as this rank can tell."""
        plain = load.call * self._steps
        shares = (load.part / load.call,) * by_tokens.schedule.components
        as_measured = replace(by_tokens, partition=replace(by_tokens.partition, shares=shares))
        tokens = self._seconds(as_measured, load, link)
        try:
            components = self._seconds(by_components(), load, link)
        except SplitError:
            components = plain
        logger.info(
            "%r: a generation takes %.3g s, with tokens=%d, fresh=True %.3g s, with components=%d %.3g s, as modelled "
            "by what was measured here",
            self._context.name,
            plain,
            len(shares),
            tokens,
            len(shares),
            components,
        )
        return tokens * _LEAST_SPEEDUP <= plain and tokens * _ENOUGH <= components

    @property
    def _steps(self) -> int:
        return len(self._context.clock.timetable.timesteps) or _STEPS

    def _seconds(self, division: Division, load: Measured, link: Link) -> float:
        """A generation, as the plan models it."""
        rounds, bridged = forecast_shares(division, load.of_a_byte)
        asked = Load(
            call=load.call,
            calls=1,
            part=1.0,
            prediction=load.prediction,
            groups=1,
            rounds=tuple(load.call * share for share in rounds),
            bridged=load.call * bridged,
        )
        return timeline(division, Course(division.schedule, self._steps - 1), asked, link).seconds


def measured_link(exchange: Exchange, ranks: int, device: torch.device) -> Link:
    """How fast bytes travel when every rank sends to every other, as keys and values do."""
    everyone = Moment(results=tuple((rank, rank) for rank in range(ranks)))
    traffic = replace(exchange.traffic)

    def send(size: int) -> float:
        given = {rank: [torch.zeros(size, dtype=torch.uint8, device=device)] for rank in range(ranks)}
        return seconds_of(lambda: exchange.share(given, everyone, "the link, measured with part").finish(), device)

    least, most = send(_SMALL), send(_LARGE)
    # It is no part of what the generation sends.
    exchange.traffic.bytes_sent, exchange.traffic.seconds_waited = traffic.bytes_sent, traffic.seconds_waited
    # Where a small message took as long as a large one, it had to wait for something else.
    return Link("measured", (ranks - 1) * _LARGE / max(most - least, most / 2), least)


def seconds_of(call: Callable[[], Any], device: torch.device) -> float:
    """What a call takes; the least of several times, since what else a machine does only ever adds to one."""
    taken = []
    for _ in range(_REPEATS):
        finish(device)
        begin = time.perf_counter()
        call()
        finish(device)
        taken.append(time.perf_counter() - begin)
    return min(taken)
