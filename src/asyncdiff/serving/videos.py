"""Videos that were asked for: each a job that can be asked how far it is, and whose file is kept for a while."""

import asyncio
import contextlib
import dataclasses
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from asyncdiff.serving.orders import Drawn, Failed, Outcome, Progress
from asyncdiff.serving.waiting import Job

Status = Literal["queued", "in_progress", "completed", "failed"]

SECONDS = 3600.0
_MOST_BYTES = 512 * 2**20
_ID_BYTES = 24
_SECONDS_BETWEEN_NEWS = 10.0
_TOO_LATE = Failed("late", "the video was not there in time")


@dataclass
class Video:
    """A job, and what has become of it.

    Attributes:
        id: a name that nobody can guess.
        about: what its record says of the request.
        created, completed: seconds since 1970.
        progress: percent of its steps.
        outcome: what it has come to, as soon as it has.
    """

    id: str
    job: Job
    about: dict[str, Any]
    created: int
    expires: float
    progress: int = 0
    completed: int | None = None
    outcome: Outcome | None = None
    follower: "asyncio.Task[None] | None" = None

    @property
    def status(self) -> Status:
        if isinstance(self.outcome, Drawn):
            return "completed"
        if self.outcome is not None:
            return "failed"
        return "in_progress" if self.job.attempts else "queued"

    def record(self) -> dict[str, Any]:
        """As OpenAI has it, and what asyncdiff did."""
        error = None
        if isinstance(self.outcome, Failed):
            error = {"code": self.outcome.why, "message": self.outcome.text}
        return {
            "id": self.id,
            "object": "video",
            "status": self.status,
            "progress": 100 if self.status == "completed" else self.progress,
            "created_at": self.created,
            "completed_at": self.completed,
            "expires_at": self.created + int(SECONDS),
            "error": error,
            **self.about,
            "asyncdiff": {**self.about["asyncdiff"], **self._done()},
        }

    def _done(self) -> dict[str, Any]:
        """What asyncdiff did, as soon as it has."""
        if not isinstance(self.outcome, Drawn):
            return {}
        drawn = self.outcome
        return {"seconds": round(drawn.seconds, 3), "steps": dict(drawn.steps), "format": drawn.form}


class Videos:
    """Those that are kept.

    Args:
        leave: told of a job that nobody waits for any more.
        most: that are kept; the oldest that are done go first.
        seconds: for which each is kept, and that a job may take.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        leave: Callable[[Job], None],
        seconds_to_draw: float,
        most: int = 256,
        seconds: float = SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._leave = leave
        self._seconds_to_draw = seconds_to_draw
        self._most = most
        self._seconds = seconds
        self._clock = clock
        self._held: OrderedDict[str, Video] = OrderedDict()

    def add(self, job: Job, about: dict[str, Any]) -> Video:
        """Keep a job, and hear of how far it is."""
        video = Video(
            f"video_{secrets.token_urlsafe(_ID_BYTES)}", job, about, int(time.time()), self._clock() + self._seconds
        )
        self._held[video.id] = video
        video.follower = asyncio.create_task(self._follow(video))
        self._let_go()
        return video

    def get(self, name: str) -> Video | None:
        """The one of this id, if it is still kept."""
        self._let_go()
        return self._held.get(name)

    def all(self) -> list[Video]:
        """Those that are kept, the newest first."""
        self._let_go()
        return list(reversed(self._held.values()))

    def remove(self, video: Video) -> None:
        """Forget it; if it is not there yet, nobody waits for it any more."""
        del self._held[video.id]
        if video.outcome is None:
            self._leave(video.job)

    async def end(self) -> None:
        """Hear of nothing any more."""
        followers = [video.follower for video in self._held.values() if video.follower is not None]
        for follower in followers:
            follower.cancel()
        await asyncio.gather(*followers, return_exceptions=True)

    async def _follow(self, video: Video) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            video.outcome = await asyncio.wait_for(self._outcome(video), self._seconds_to_draw)
        if video.outcome is None:
            video.outcome = _TOO_LATE
            self._leave(video.job)
        video.completed = int(time.time())
        video.job.order = dataclasses.replace(video.job.order, arguments={})  # pictures may be among them
        self._let_go()

    async def _outcome(self, video: Video) -> Outcome:
        while True:
            news = await video.job.news(_SECONDS_BETWEEN_NEWS)
            if isinstance(news, (Drawn, Failed)):
                return news
            if isinstance(news, Progress) and news.total:
                video.progress = min(99, 100 * news.done // news.total)

    def _let_go(self) -> None:
        """Forget those that are too old and, where there are too many, the oldest that are done."""
        for video in [video for video in self._held.values() if video.expires <= self._clock()]:
            self.remove(video)
        done = [video for video in self._held.values() if video.outcome is not None]
        held = sum(len(file) for video in done if isinstance(video.outcome, Drawn) for file in video.outcome.files)
        for video in done:
            if len(self._held) <= self._most and held <= _MOST_BYTES:
                return
            held -= sum(map(len, video.outcome.files)) if isinstance(video.outcome, Drawn) else 0
            self.remove(video)
