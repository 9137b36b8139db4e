"""The requests that wait for a replica: in the order in which they came, and not too many."""

import asyncio
import itertools
from collections import deque
from typing import Protocol

from asyncdiff.serving.orders import Failed, Order, Outcome, Progress


class FullError(Exception):
    """As many wait as may."""


class Job:
    """A request on its way: it waits, is drawn, and is answered once.

    Attributes:
        order: what is to be drawn.
        attempts: how often a replica has begun with it.
        left: set when nobody waits for the answer any more.
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        self.attempts = 0
        self.left = asyncio.Event()
        self._outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._progress: Progress | None = None
        self._changed = asyncio.Event()

    def tell(self, progress: Progress) -> None:
        """Keep the newest progress for whoever watches."""
        self._progress = progress
        self._changed.set()

    def finish(self, outcome: Outcome) -> None:
        """Answer it; a second answer is an error."""
        self._outcome.set_result(outcome)
        self._changed.set()

    async def outcome(self) -> Outcome:
        """What it comes to. Who waits may go away, and the job stays."""
        return await asyncio.shield(self._outcome)

    async def news(self, seconds: float) -> Progress | Outcome | None:
        """What has happened since this was asked before: the newest progress, and then the outcome.

        None if nothing has in so many seconds.
        """
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except asyncio.TimeoutError:
            return None
        progress, self._progress = self._progress, None
        if self._outcome.done():
            return self._outcome.result() if progress is None else progress  # then it is still to be told
        self._changed.clear()
        return progress


class Watched(Protocol):
    """What is told how many wait."""

    def set(self, value: float) -> None: ...


class Waiting:
    """The line of jobs.

    Args:
        most: how many may wait.
        length: told how many do.
    """

    def __init__(self, most: int, length: Watched) -> None:
        self._most = most
        self._length = length
        self._jobs: deque[Job] = deque()
        self._changed = asyncio.Event()
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._jobs)

    def number(self) -> int:
        """One for the next order."""
        return next(self._numbers)

    def add(self, job: Job) -> None:
        """Let it wait behind the others.

        Raises:
            FullError: as many wait as may.
        """
        if len(self._jobs) >= self._most:
            raise FullError
        self._jobs.append(job)
        self._note()

    def put_back(self, job: Job) -> None:
        """Let one that was begun be the next again; it has its place, however many wait."""
        self._jobs.appendleft(job)
        self._note()

    def leave(self, job: Job) -> None:
        """Nobody waits for it any more: its place is free, or its generation ends."""
        job.left.set()
        if job in self._jobs:
            self._jobs.remove(job)
            job.finish(Failed("stopped", "the client has gone away"))
            self._note()

    async def take(self, seconds: float) -> Job | None:
        """The next one, if there is one within so many seconds."""
        if not self._jobs:
            try:
                await asyncio.wait_for(self._changed.wait(), seconds)
            except asyncio.TimeoutError:
                return None
        self._changed.clear()
        if not self._jobs:  # another replica has taken it
            return None
        job = self._jobs.popleft()
        self._note()
        return job

    def _note(self) -> None:
        self._length.set(len(self._jobs))
        if self._jobs:
            self._changed.set()
