"""The routes: HTTP in, HTTP out. No traceback leaves here, no picture is written to disk, and no wait has no limit."""

import asyncio
import contextlib
import dataclasses
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from asyncdiff.made.media import kind_by
from asyncdiff.serving.asked import takes_pictures
from asyncdiff.serving.door import Door, body_of, form_of, is_form, response
from asyncdiff.serving.front import Front
from asyncdiff.serving.limits import BODY_BYTES, BODY_BYTES_WITH_PICTURES
from asyncdiff.serving.orders import Drawn, Failed, Outcome, Progress
from asyncdiff.serving.pictures import Pictures
from asyncdiff.serving.refusals import RequestError
from asyncdiff.serving.site import Site
from asyncdiff.serving.videos import Video, Videos
from asyncdiff.serving.waiting import FullError, Job
from asyncdiff.serving.ways import sequential_way, ways_of
from asyncdiff.serving.wire import (
    ImageRequest,
    Service,
    Wanted,
    answer,
    as_base64,
    completed_event,
    event,
    parsed,
    progress_event,
    read_request,
    read_video_request,
)

logger = logging.getLogger(__name__)

_SECONDS_OF_SILENCE = 10.0  # after which an event stream says that it is still there
_MOST_SEED = 2**32 - 1  # of those that are chosen here
_GONE_AWAY = 499  # as nginx counts it
_STATUS = {"refused": 400, "memory": 400, "gone": 503, "stopped": 503, "late": 504, "error": 500}
_MEDIA_TYPES = {"mp4": "video/mp4", "gif": "image/gif", "png": "image/png"}
_CODES = {"refused": "invalid_value", "memory": "out_of_memory", "gone": "replica_lost", "late": "too_late"}


def build(front: Front, service: Service, keys: Collection[bytes]) -> ASGIApp:
    """The application.

    Args:
        keys: the digests of those that are let in; none for whoever comes.
    """
    routes, site = _Routes(front, service), Site()

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        front.begin()
        yield
        await routes.end()
        await front.end()

    app = Starlette(
        routes=[
            *site.routes,
            Route("/v1/images/generations", routes.generate, methods=["POST"]),
            Route("/v1/images/{name}.png", routes.picture, methods=["GET"]),
            Route("/v1/videos", routes.make_video, methods=["POST"]),
            Route("/v1/videos", routes.videos, methods=["GET"]),
            Route("/v1/videos/{name}", routes.video, methods=["GET"]),
            Route("/v1/videos/{name}", routes.forget_video, methods=["DELETE"]),
            Route("/v1/videos/{name}/content", routes.video_content, methods=["GET"]),
            Route("/v1/models", routes.models, methods=["GET"]),
            Route("/v1/models/{name:path}", routes.model, methods=["GET"]),
            Route("/health", routes.health, methods=["GET"]),
            Route("/metrics", routes.metrics, methods=["GET"]),
        ],
        exception_handlers={HTTPException: _no_route, RequestError: _refusal, Exception: _failure},
        lifespan=lifespan,
    )
    return Door(app, keys, site.paths) if keys else app


class _Routes:
    def __init__(self, front: Front, service: Service) -> None:
        self._front = front
        self._service = service
        self._pictures = Pictures()
        self._videos = Videos(front.leave, service.limits.seconds)
        self._created = int(time.time())

    async def end(self) -> None:
        await self._videos.end()

    async def generate(self, request: Request) -> Response:
        return await self._counted(self._generate, request)

    async def make_video(self, request: Request) -> Response:
        return await self._counted(self._make_video, request)

    async def _counted(self, answer: Callable[[Request, float], Awaitable[Response]], request: Request) -> Response:
        """What a request is answered with; one that goes on as a stream counts itself when it is over."""
        begin, status, is_over = time.monotonic(), _GONE_AWAY, True
        try:
            found = await answer(request, begin)
            status, is_over = found.status_code, not isinstance(found, StreamingResponse)
            return found
        except RequestError as error:
            status = error.status
            raise
        except ClientDisconnect:
            return Response(status_code=status)
        finally:
            if is_over:
                self._front.metrics.count_request(status, time.monotonic() - begin)

    @property
    def _most_bytes(self) -> int:
        """How long a request may be."""
        signature = self._front.signature
        return BODY_BYTES_WITH_PICTURES if signature is not None and takes_pictures(signature) else BODY_BYTES

    def _submit(self, wanted: Wanted, **more: Any) -> Job:
        seed = secrets.randbelow(_MOST_SEED + 1) if wanted.seed is None else wanted.seed
        try:
            return self._front.submit(
                dict(wanted.arguments), seed, dict(wanted.settings), is_timed=wanted.is_timed, **more
            )
        except FullError as error:
            raise RequestError(
                f"{self._front.waiting} requests are waiting already; try again later",
                429,
                code="queue_full",
                retry_after=self._front.retry_after,
            ) from error

    async def _generate(self, request: Request, begin: float) -> Response:
        wanted = read_request(await body_of(request, self._most_bytes), self._service, self._front.signature)
        job = self._submit(wanted)
        address = str(request.url_for("picture", name="NAME"))
        if wanted.streams:
            stream = self._stream(job, wanted, address, begin)
            return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        try:
            outcome = await asyncio.wait_for(job.outcome(), self._service.limits.seconds)
        except asyncio.TimeoutError:
            raise self._too_late() from None
        finally:
            self._front.leave(job)
        return JSONResponse(self._answer(_drawn(outcome), job, wanted, address))

    async def _stream(self, job: Job, wanted: ImageRequest, address: str, begin: float) -> AsyncIterator[str]:
        """Server-sent events: progress, and at last a picture each, or an error."""
        status, end = _GONE_AWAY, begin + self._service.limits.seconds
        try:
            yield event(
                "image_generation.queued", {"type": "image_generation.queued", "before": self._front.waiting - 1}
            )
            while True:
                left = end - time.monotonic()
                if left <= 0:
                    raise self._too_late()
                news = await job.news(min(left, _SECONDS_OF_SILENCE))
                if isinstance(news, Progress):
                    yield progress_event(news)
                elif news is None:
                    yield ": still here\n\n"
                else:
                    break
            body = self._answer(_drawn(news), job, wanted, address)
            for image in body["data"]:
                yield completed_event(body, image)
            status = 200
        except RequestError as error:
            status = error.status
            yield event("error", {"type": "error", **error.body()})
        finally:
            self._front.leave(job)
            self._front.metrics.count_request(status, time.monotonic() - begin)

    def _answer(self, drawn: Drawn, job: Job, wanted: ImageRequest, address: str) -> dict[str, Any]:
        def image(picture: bytes) -> dict[str, str]:
            if wanted.as_url:
                return {"url": address.replace("NAME", self._pictures.add(picture))}
            return as_base64(picture)

        return answer(drawn, [image(each) for each in drawn.files], int(time.time()), job.order.seed)

    def _too_late(self) -> RequestError:
        seconds = self._service.limits.seconds
        return RequestError(
            f"the picture was not there within {seconds:g} s", 504, code="too_late", retry_after=self._front.retry_after
        )

    async def _make_video(self, request: Request, begin: float) -> Response:
        del begin
        most = self._most_bytes
        given = await form_of(request, most) if is_form(request) else parsed(await body_of(request, most))
        wanted = read_video_request(given, self._service, self._front.signature)
        job = self._submit(wanted, frames_per_second=wanted.frames_per_second)
        size = given.get("size")
        about = {
            "model": self._service.model,
            "prompt": given.get("prompt"),
            "seconds": wanted.seconds,
            "size": size,
            "asyncdiff": {"seed": job.order.seed},
        }
        return JSONResponse(self._videos.add(job, about).record())

    async def videos(self, request: Request) -> Response:
        del request
        records = [video.record() for video in self._videos.all()]
        ends = {"first_id": records[0]["id"], "last_id": records[-1]["id"]} if records else {}
        return JSONResponse({"object": "list", "data": records, "has_more": False, **ends})

    async def video(self, request: Request) -> Response:
        return JSONResponse(self._video(request).record())

    async def video_content(self, request: Request) -> Response:
        outcome = self._video(request).outcome
        if outcome is None:
            raise RequestError("the video is not there yet; ask for its status", 409, code="not_ready", retry_after=1)
        drawn = _drawn(outcome)
        headers = {"Cache-Control": "private, no-store"}
        return Response(drawn.files[0], media_type=_MEDIA_TYPES[drawn.form], headers=headers)

    async def forget_video(self, request: Request) -> Response:
        video = self._video(request)
        self._videos.remove(video)
        return JSONResponse({"id": video.id, "object": "video.deleted", "deleted": True})

    def _video(self, request: Request) -> Video:
        found = self._videos.get(request.path_params["name"])
        if found is None:
            raise RequestError("there is no such video; they are kept for an hour", 404, code="not_found")
        return found

    async def picture(self, request: Request) -> Response:
        found = self._pictures.get(request.path_params["name"])
        if found is None:
            raise RequestError("there is no such picture; they are kept for some minutes", 404, code="not_found")
        return Response(found, media_type="image/png", headers={"Cache-Control": "private, no-store"})

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        if request.path_params["name"] != self._service.model:
            raise RequestError(
                f"there is no such model here; {self._service.model!r} is", 404, "model", "model_not_found"
            )
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        own = self._service
        about = {
            "devices": own.devices,
            "replicas": len(self._front.states),
            "steps": own.steps,
            "max_steps": own.limits.steps,
            "max_prompt": own.limits.prompt,
            "makes": None if self._front.signature is None else kind_by(self._front.signature),
            "ways": [dataclasses.asdict(way) for way in ways_of(own)],
            "sequential": sequential_way(own),
        }
        named = {"id": own.model, "object": "model", "created": self._created, "owned_by": "asyncdiff"}
        return {**named, "asyncdiff": about}

    async def health(self, request: Request) -> Response:
        states = self._front.states
        are_there = ["starting" not in state for state in states]
        status = "ok" if all(are_there) else "degraded" if any(are_there) else "unavailable"
        replicas = [
            {"state": state, "processes": processes, **({} if failure is None else {"error": failure.text})}
            for state, processes, failure in zip(states, self._front.processes, self._front.failures, strict=True)
        ]
        body = {"status": status, "waiting": self._front.waiting, "replicas": replicas}
        return JSONResponse(body, 200 if any(are_there) else 503)

    async def metrics(self, request: Request) -> Response:
        return Response(self._front.metrics.as_text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _drawn(outcome: Outcome) -> Drawn:
    if isinstance(outcome, Failed):
        after = 1 if outcome.why in ("gone", "stopped") else None
        raise RequestError(outcome.text, _STATUS[outcome.why], None, _CODES.get(outcome.why, ""), after)
    return outcome


async def _refusal(request: Request, error: Any) -> Response:
    return response(error)


async def _no_route(request: Request, error: Any) -> Response:
    return response(
        RequestError(f"{error.detail}: {request.method} {request.url.path}", error.status_code),
        dict(error.headers or {}),
    )


async def _failure(request: Request, error: Exception) -> Response:
    logger.error("%s %s", request.method, request.url.path, exc_info=error)
    return response(RequestError("something went wrong in the service; its log says what", 500))
