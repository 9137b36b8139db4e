"""Along which axis the ranks of a group divide a denoiser, where the user has not said it: its tokens, or its layers.

What is exact comes first: with `fresh` tokens every step is the ordinary one. Compared are generations as the plan
models them, with the times of calls, and of what travels between the ranks, as they are measured here.
"""

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from asyncdiff.denoiser.find import finish
from asyncdiff.denoiser.structure import Structure
from asyncdiff.errors import SplitError
from asyncdiff.exchange.protocol import Exchange, Traffic
from asyncdiff.plan.course import Course
from asyncdiff.plan.division import Division, Goal
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
# What a call with a part of the tokens takes was timed with its exchanges.
_WITHIN = Link("within", math.inf, 0.0)
_REPEATS = 2  # of everything that is timed; the least counts


@dataclass(frozen=True)
class Rivals:
    """The two ways of one denoiser, with what calls take: the same on all ranks.

    Attributes:
        by_tokens, by_components: divide the call so that a loop of so many steps comes to the speed-up that is wanted,
            if one is; the former with what its exchanges take as a part of every share. The latter raises SplitError
            where there are too few units.
        call: seconds of an undivided call.
        link: between the ranks of a group.
        of_a_byte: what going through a byte takes, as a part of a call.
        prediction: bytes of a call's result.
    """

    by_tokens: Callable[[Goal | None], Division]
    by_components: Callable[[Goal | None], Division]
    call: float
    link: Link
    of_a_byte: float
    prediction: int


class Axis:
    """The choice for one denoiser: for every structure and number of steps, and the same on all ranks of all groups."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._rivals: dict[Structure, Rivals | None] = {}
        self._chosen: dict[tuple[Structure, int, Goal | None], bool] = {}
        self.takes_tokens = False
        """Whether tokens are divided in this generation."""

    @property
    def is_open(self) -> bool:
        """Whether there is anything to choose: several processes, and nothing said of how they share a call out."""
        settings, context = self._context.settings, self._context
        is_told = settings.told_components is not None or settings.stride > 1 or settings.shard
        is_told = is_told or settings.chosen_method.bits == 4  # keys of the step itself do not bear that
        return not is_told and context.schedule.components > 1 and len(context.exchange.ranks) == 1

    @property
    def by_tokens(self) -> Settings:
        """The settings with which tokens are divided."""
        return replace(self._context.settings, tokens=self._context.schedule.components, fresh=True)

    def choose(self, structure: Structure, goal: Goal | None, find: Callable[[], Rivals | None]) -> None:
        """Choose for a generation; all ranks of all groups come here together, and to the same.

        Args:
            structure: of the denoiser.
            goal: the speed-up that is wanted.
            find: the two ways, looked for once for every structure; None where tokens cannot be divided.
        """
        if structure not in self._rivals:
            self._rivals[structure] = find()
        rivals, steps = self._rivals[structure], len(self._context.clock.timetable.timesteps) or _STEPS
        key = structure, steps, goal
        if key not in self._chosen:
            self._chosen[key] = rivals is not None and self._is_better(rivals, steps, goal)
        self.takes_tokens = self._chosen[key]

    def gathered(self, mine: Sequence[float] | None) -> list[float] | None:
        """The largest of all ranks' numbers, place by place; None where a rank has none."""
        what = f"how the denoiser {self._context.name!r} is to be divided"
        texts = self._context.gather(json.dumps(mine), what)
        everyone = [json.loads(text) for text in texts]
        return None if None in everyone else [max(numbers) for numbers in zip(*everyone, strict=True)]

    def _is_better(self, rivals: Rivals, steps: int, goal: Goal | None) -> bool:
        """Whether tokens are worth it."""
        plain = rivals.call * steps
        try:
            tokens = _seconds(rivals.by_tokens(goal), rivals, steps, _WITHIN)
        except SplitError:  # its steps cannot be bridged
            return False
        try:
            components = _seconds(rivals.by_components(goal), rivals, steps, rivals.link)
        except SplitError:
            components = plain
        count = self._context.schedule.components
        logger.info(
            "%r: %d steps take %.3g s, with tokens=%d %.3g s, with components=%d %.3g s, as modelled by "
            "what was measured here",
            *(self._context.name, steps, plain, count, tokens, count, components),
        )
        return tokens * _LEAST_SPEEDUP <= plain and tokens * _ENOUGH <= components


def _seconds(division: Division, rivals: Rivals, steps: int, link: Link) -> float:
    """A generation, as the plan models it."""
    rounds, bridged = forecast_shares(division, rivals.of_a_byte)
    load = Load(
        call=rivals.call,
        calls=1,
        part=1.0,
        prediction=rivals.prediction,
        groups=1,
        rounds=tuple(rivals.call * share for share in rounds),
        bridged=rivals.call * bridged,
    )
    return timeline(division, Course(division.schedule, steps - 1), load, link).seconds


def measured_link(exchange: Exchange, ranks: int, device: torch.device) -> Link:
    """How fast bytes travel when every rank sends to every other, as keys and values do."""
    everyone = Moment(results=tuple((rank, rank) for rank in range(ranks)))

    def send(size: int) -> float:
        given = {rank: [torch.zeros(size, dtype=torch.uint8, device=device)] for rank in range(ranks)}
        return seconds_of(lambda: exchange.share(given, everyone, "the link, measured with part").finish(), device)

    with uncounted(exchange.traffic):
        least, most = send(_SMALL), send(_LARGE)
    # Where a small message took as long as a large one, it had to wait for something else.
    return Link("measured", (ranks - 1) * _LARGE / max(most - least, most / 2), least)


@contextlib.contextmanager
def uncounted(traffic: Traffic) -> Iterator[None]:
    """What is sent within is no part of what the generation sends."""
    before = replace(traffic)
    yield
    traffic.bytes_sent, traffic.seconds_waited = before.bytes_sent, before.seconds_waited


def seconds_of(call: Callable[[], Any], device: torch.device) -> float:
    """What a call takes; the least of several times, since what else a machine does only ever adds to one."""
    return min(times_of(call, device, range(_REPEATS)))


def times_of(call: Callable[[], Any], device: torch.device, repeats: Iterable[Any]) -> list[float]:
    """What a call takes, time after time, in seconds."""
    taken = []
    for _ in repeats:
        finish(device)
        begin = time.perf_counter()
        call()
        finish(device)
        taken.append(time.perf_counter() - begin)
    return taken
