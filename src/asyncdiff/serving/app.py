"""The routes: HTTP in, HTTP out. No traceback leaves here, no picture is written to disk, and no wait has no limit."""

import asyncio
import contextlib
import dataclasses
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Collection
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from asyncdiff.serving.front import Front
from asyncdiff.serving.keys import is_key
from asyncdiff.serving.limits import BODY_BYTES
from asyncdiff.serving.orders import Drawn, Failed, Outcome, Progress
from asyncdiff.serving.pictures import Pictures
from asyncdiff.serving.site import Site
from asyncdiff.serving.waiting import FullError, Job
from asyncdiff.serving.ways import sequential_way, ways_of
from asyncdiff.serving.wire import (
    ImageRequest,
    RequestError,
    Service,
    answer,
    as_base64,
    completed_event,
    event,
    progress_event,
    read_request,
)

logger = logging.getLogger(__name__)

_OPEN = re.compile(r"/health|/v1/images/[^/]+\.png")  # the second: a picture's name is as good as a key
_SECONDS_OF_SILENCE = 10.0  # after which an event stream says that it is still there
_SECONDS_TO_READ = 30.0  # a request that is this slow to arrive is given up
_MOST_SEED = 2**32 - 1  # of those that are chosen here
_GONE_AWAY = 499  # as nginx counts it
_STATUS = {"refused": 400, "memory": 400, "gone": 503, "stopped": 503, "error": 500}
_CODES = {"refused": "invalid_value", "memory": "out_of_memory", "gone": "replica_lost"}


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
        await front.end()

    app = Starlette(
        routes=[
            *site.routes,
            Route("/v1/images/generations", routes.generate, methods=["POST"]),
            Route("/v1/images/{name}.png", routes.picture, methods=["GET"]),
            Route("/v1/models", routes.models, methods=["GET"]),
            Route("/v1/models/{name:path}", routes.model, methods=["GET"]),
            Route("/health", routes.health, methods=["GET"]),
            Route("/metrics", routes.metrics, methods=["GET"]),
        ],
        exception_handlers={HTTPException: _no_route, RequestError: _refusal, Exception: _failure},
        lifespan=lifespan,
    )
    return _Door(app, keys, site.paths) if keys else app


class _Routes:
    def __init__(self, front: Front, service: Service) -> None:
        self._front = front
        self._service = service
        self._pictures = Pictures()
        self._created = int(time.time())

    async def generate(self, request: Request) -> Response:
        begin, status, is_over = time.monotonic(), _GONE_AWAY, True
        try:
            response = await self._generate(request, begin)
            status, is_over = response.status_code, not isinstance(response, StreamingResponse)
            return response
        except RequestError as error:
            status = error.status
            raise
        except ClientDisconnect:
            return Response(status_code=status)
        finally:
            if is_over:
                self._front.metrics.count_request(status, time.monotonic() - begin)

    async def _generate(self, request: Request, begin: float) -> Response:
        wanted = read_request(await _body_of(request), self._service, self._front.signature)
        seed = secrets.randbelow(_MOST_SEED + 1) if wanted.seed is None else wanted.seed
        try:
            job = self._front.submit(dict(wanted.arguments), seed, dict(wanted.settings), wanted.is_timed)
        except FullError as error:
            raise RequestError(
                f"{self._front.waiting} requests are waiting already; try again later",
                429,
                code="queue_full",
                retry_after=self._front.retry_after,
            ) from error
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

        return answer(drawn, [image(each) for each in drawn.pictures], int(time.time()), job.order.seed)

    def _too_late(self) -> RequestError:
        seconds = self._service.limits.seconds
        return RequestError(
            f"the picture was not there within {seconds:g} s", 504, code="too_late", retry_after=self._front.retry_after
        )

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


class _Door:
    """Lets those in who have a key."""

    def __init__(self, app: ASGIApp, keys: Collection[bytes], open_paths: Collection[str]) -> None:
        self._app = app
        self._keys = keys
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_open(scope) or self._has_key(scope):
            await self._app(scope, receive, send)
            return
        error = RequestError("a key is needed: Authorization: Bearer <key>", 401, code="invalid_api_key")
        await _response(error, {"WWW-Authenticate": "Bearer"})(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        path = scope["path"]
        return scope["method"] == "GET" and (path in self._open_paths or _OPEN.fullmatch(path) is not None)

    def _has_key(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"").decode("latin-1")
        kind, _, key = given.partition(" ")
        return kind.lower() == "bearer" and is_key(key.strip(), self._keys)


async def _body_of(request: Request) -> bytes:
    """The body, if it is JSON and short; read no further than it may be long.

    A page in a browser cannot send JSON to another origin unasked; so it cannot draw on a service on the loopback.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError("the request must be of Content-Type: application/json", 415, code="invalid_content_type")
    too_long = RequestError(f"the request is longer than {BODY_BYTES} bytes", 413, code="too_long")
    if _length(request) > BODY_BYTES:
        raise too_long
    body = bytearray()

    async def read() -> None:
        async for part in request.stream():
            body.extend(part)
            if len(body) > BODY_BYTES:
                raise too_long

    try:
        await asyncio.wait_for(read(), _SECONDS_TO_READ)
    except asyncio.TimeoutError:
        raise RequestError(f"the request did not arrive within {_SECONDS_TO_READ:g} s", 408, code="too_slow") from None
    return bytes(body)


def _length(request: Request) -> int:
    """As the request tells it, or zero."""
    told = request.headers.get("content-length", "")
    return int(told) if told.isascii() and told.isdecimal() else 0


def _drawn(outcome: Outcome) -> Drawn:
    if isinstance(outcome, Failed):
        after = 1 if outcome.why in ("gone", "stopped") else None
        raise RequestError(outcome.text, _STATUS[outcome.why], None, _CODES.get(outcome.why, ""), after)
    return outcome


def _response(error: RequestError, headers: dict[str, str] | None = None) -> JSONResponse:
    after = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return JSONResponse(error.body(), error.status, {**(headers or {}), **after})


async def _refusal(request: Request, error: Any) -> Response:
    return _response(error)


async def _no_route(request: Request, error: Any) -> Response:
    return _response(
        RequestError(f"{error.detail}: {request.method} {request.url.path}", error.status_code),
        dict(error.headers or {}),
    )


async def _failure(request: Request, error: Exception) -> Response:
    logger.error("%s %s", request.method, request.url.path, exc_info=error)
    return _response(RequestError("something went wrong in the service; its log says what", 500))
