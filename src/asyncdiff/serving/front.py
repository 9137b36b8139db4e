"""Who draws what, and when: requests wait in one line, each replica takes the next. Nothing here knows Ray."""

import asyncio
import logging
import math
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal, Protocol

from asyncdiff.request.signature import Signature
from asyncdiff.serving.metrics import Metrics
from asyncdiff.serving.orders import Drawn, Failed, Order, Outcome, Progress, Ready
from asyncdiff.serving.waiting import Job, Waiting

logger = logging.getLogger(__name__)

State = Literal["starting", "ready", "drawing"]
STATES: tuple[State, ...] = ("starting", "ready", "drawing")

_ATTEMPTS = 2  # a request whose replica was lost is drawn once more
_SECONDS_BETWEEN_CHECKS = 1.0
_SECONDS_TO_START = 900.0  # libraries and weights may be read from a slow disk
_SECONDS_BETWEEN_STOPS = 0.5
_SECONDS_TO_STOP = 10.0
_RECENT = 20  # pictures of which the pace is known
_SECONDS_OF_A_PICTURE = 5.0  # before there was one


class Replica(Protocol):
    """A pipeline in its processes, somewhere else."""

    async def ready(self) -> Ready | Failed:
        """Start what is not there, or no longer; whether it can draw."""

    def draw(self, order: Order) -> AsyncIterator[Progress | Outcome]:
        """Draw; the last that is told is the outcome."""

    async def stop(self, number: int) -> None:
        """End the generation of the order with this number."""


class LostError(Exception):
    """A replica cannot be reached: its process has died."""


class Front:
    """The line of requests and the replicas that draw them.

    Args:
        replicas: all there are.
        waiting: how many requests may wait.
        metrics: where everything is counted.

    Attributes:
        signature: of the pipeline's call, as soon as one replica is there.
        states: of each replica.
        failures: why a replica could not be started the last time, if it could not.
    """

    def __init__(self, replicas: Sequence[Replica], waiting: int, metrics: Metrics) -> None:
        self.metrics = metrics
        self.signature: Signature | None = None
        self.states: list[State] = ["starting"] * len(replicas)
        self.failures: list[Failed | None] = [None] * len(replicas)
        self.processes: list[tuple[int, ...]] = [()] * len(replicas)
        self._replicas = replicas
        self._waiting = Waiting(waiting, metrics.waiting)
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._tasks: list[asyncio.Task[None]] = []
        self._note_states()

    def begin(self) -> None:
        """Let the replicas draw, from now on."""
        self._tasks = [asyncio.create_task(self._serve(place)) for place in range(len(self._replicas))]

    async def end(self) -> None:
        """Let nobody draw any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def submit(self, arguments: dict[str, Any], seed: int, settings: dict[str, Any], **more: Any) -> Job:
        """Let a request wait for its turn.

        Args:
            more: of the order, by name.

        Raises:
            FullError: as many wait as may.
        """
        job = Job(Order(self._waiting.number(), arguments, seed, settings, **more))
        self._waiting.add(job)
        return job

    def leave(self, job: Job) -> None:
        """Nobody waits for it any more."""
        self._waiting.leave(job)

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    @property
    def retry_after(self) -> int:
        """Seconds after which there may be room: those that the line takes at the pace of the last pictures."""
        pace = sum(self._recent) / len(self._recent) if self._recent else _SECONDS_OF_A_PICTURE
        return max(1, math.ceil(pace * (len(self._waiting) + 1) / len(self._replicas)))

    async def _serve(self, place: int) -> None:
        """One replica's work: ask whether it is well, take the next job, draw."""
        checked = -math.inf
        while True:
            if time.monotonic() - checked > _SECONDS_BETWEEN_CHECKS:
                if not await self._is_well(place):
                    await asyncio.sleep(_SECONDS_BETWEEN_CHECKS)
                    continue
                checked = time.monotonic()
            job = await self._waiting.take(_SECONDS_BETWEEN_CHECKS)
            if job is None:
                continue
            self._set(place, "drawing")
            outcome = await self._draw(self._replicas[place], job)
            checked = -math.inf if isinstance(outcome, Failed) else time.monotonic()
            is_lost = isinstance(outcome, Failed) and outcome.why in ("gone", "memory")
            self._set(place, "starting" if is_lost else "ready")
            self._conclude(job, outcome)

    async def _is_well(self, place: int) -> bool:
        """Whether a replica can draw; until it says so, and it was lost, it is starting."""
        asked = asyncio.create_task(asyncio.wait_for(self._replicas[place].ready(), _SECONDS_TO_START))
        done, _ = await asyncio.wait([asked], timeout=_SECONDS_BETWEEN_CHECKS)
        if not done:
            self._set(place, "starting")
        try:
            told = await asked
        except (LostError, asyncio.TimeoutError) as error:
            told = Failed("gone", str(error) or "it has not answered in time")
        except Exception as error:  # (whatever it is, whoever asks for the replica's health should know)
            logger.exception("replica %d", place)
            told = Failed("error", f"the replica cannot be asked ({type(error).__name__}); the service's log says why")
        if isinstance(told, Failed):
            self.failures[place] = told
            self.processes[place] = ()
            self._set(place, "starting")
            return False
        self.failures[place] = None
        self.signature, self.processes[place] = told.signature, told.processes
        self._set(place, "ready")
        return True

    async def _draw(self, replica: Replica, job: Job) -> Outcome:
        job.attempts += 1
        stopping = asyncio.create_task(_stop_when_left(replica, job))
        try:
            async for told in replica.draw(job.order):
                if isinstance(told, (Drawn, Failed)):
                    return told
                job.tell(told)
            return Failed("error", "the replica has said nothing")
        except LostError as error:
            return Failed("gone", str(error))
        except Exception as error:  # (one request fails, whatever it is; the line goes on)
            logger.exception("order %d", job.order.number)
            return Failed("error", f"what was asked for could not be made ({type(error).__name__})")
        finally:
            stopping.cancel()

    def _conclude(self, job: Job, outcome: Outcome) -> None:
        """Answer it, unless it is to be drawn again."""
        if isinstance(outcome, Drawn):
            self._recent.append(outcome.seconds)
            self.metrics.count_drawn(outcome)
        elif outcome.why == "gone":
            self.metrics.losses.inc()
            if job.attempts < _ATTEMPTS and not job.left.is_set():
                self._waiting.put_back(job)
                return
        job.finish(outcome)

    def _set(self, place: int, state: State) -> None:
        self.states[place] = state
        self._note_states()

    def _note_states(self) -> None:
        found = Counter(self.states)
        for state in STATES:
            self.metrics.replicas.labels(state).set(found[state])


async def _stop_when_left(replica: Replica, job: Job) -> None:
    """End a generation that nobody waits for; again and again, since it may not have begun yet."""
    await job.left.wait()
    while True:
        try:
            await asyncio.wait_for(replica.stop(job.order.number), _SECONDS_TO_STOP)
        except (LostError, asyncio.TimeoutError):
            return  # then it has ended, or will
        await asyncio.sleep(_SECONDS_BETWEEN_STOPS)
