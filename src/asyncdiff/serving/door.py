"""What comes in: who may, how long it may be, and of what kind; and how it is refused over HTTP."""

import asyncio
import base64
import json
import re
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from asyncdiff.serving.keys import is_key
from asyncdiff.serving.limits import BODY_BYTES
from asyncdiff.serving.refusals import RequestError

_OPEN = re.compile(r"/health|/v1/images/[^/]+\.png")  # the second: a picture's name is as good as a key
_SECONDS_TO_READ = 30.0  # a request that is this slow to arrive is given up
_MOST_BYTES_LET_GO = 2**26  # of a request that is too long: so much of it is read and forgotten before that is said
_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
_FIELD = re.compile(r"\w+(?:\[\w+\]){0,2}")  # of a form: name, name[part], name[part][part]
_MOST_FIELDS = 100
_TEXTS = ("prompt", "negative_prompt", "model", "user", "size", "seconds")  # text, even where it looks like a number


class Door:
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
        await response(error, {"WWW-Authenticate": "Bearer"})(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        path = scope["path"]
        return scope["method"] == "GET" and (path in self._open_paths or _OPEN.fullmatch(path) is not None)

    def _has_key(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"").decode("latin-1")
        kind, _, key = given.partition(" ")
        return kind.lower() == "bearer" and is_key(key.strip(), self._keys)


async def body_of(request: Request, most: int) -> bytes:
    """The body, if it is JSON and no longer than so many bytes; no more of it is read.

    A page in a browser cannot send JSON to another origin unasked; so it cannot draw on a service on the loopback.
    """
    if _kind_of(request) != "application/json":
        raise RequestError("the request must be of Content-Type: application/json", 415, code="invalid_content_type")
    return await _read(request, most)


def is_form(request: Request) -> bool:
    """Whether the body is a form, as some clients send it; one from a page of another origin is refused.

    Raises:
        RequestError: it is from another origin: pages may send forms unasked.
    """
    if _kind_of(request) not in _FORMS:
        return False
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise RequestError("a page of another origin cannot ask for anything here", 403, code="other_origin")
    return True


async def form_of(request: Request, most: int) -> dict[str, Any]:
    """The fields of a form, if it is no longer than so many bytes: values as JSON has them, files in base64.

    Raises:
        RequestError: it is no form, or too long.
    """
    body = await _read(request, most)

    async def receive() -> Mapping[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    again = Request(request.scope, receive)  # type: ignore[arg-type]
    try:
        async with again.form(max_files=1, max_fields=_MOST_FIELDS, max_part_size=most) as form:
            return await _fields(form)
    except MultiPartException as error:
        raise RequestError(f"the form cannot be read: {error.message}", code="invalid_form") from error


async def _fields(form: FormData) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in form.multi_items():
        if not _FIELD.fullmatch(name):
            raise RequestError(f"the form has a field {name[:60]!r}, which cannot be", code="unknown_field")
        *way, last = re.findall(r"\w+", name)
        place = found
        for part in way:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise RequestError(f"the form has {part!r} twice", code="unknown_field")
        if isinstance(value, UploadFile):
            place[last] = base64.b64encode(await value.read()).decode()
        else:
            place[last] = value if last in _TEXTS else _plain(value)
    return found


def _plain(text: str) -> Any:
    """What a field's text says as JSON, or the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


async def _read(request: Request, most: int) -> bytes:
    why = ", and this pipeline takes no pictures" if most == BODY_BYTES else ""
    too_long = RequestError(f"the request is longer than {most} bytes{why}", 413, code="too_long")
    if _length(request) > _MOST_BYTES_LET_GO:
        raise too_long
    body, size = bytearray(), 0

    async def read() -> None:
        nonlocal size
        async for part in request.stream():
            size += len(part)
            if size <= most:
                body.extend(part)
            # Who is answered while still sending sees a broken connection, and not the answer.
            elif size > _MOST_BYTES_LET_GO:
                raise too_long
        if size > most:
            raise too_long

    try:
        await asyncio.wait_for(read(), _SECONDS_TO_READ)
    except asyncio.TimeoutError:
        raise RequestError(f"the request did not arrive within {_SECONDS_TO_READ:g} s", 408, code="too_slow") from None
    return bytes(body)


def _kind_of(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _length(request: Request) -> int:
    """As the request tells it, or zero."""
    told = request.headers.get("content-length", "")
    return int(told) if told.isascii() and told.isdecimal() else 0


def response(error: RequestError, headers: dict[str, str] | None = None) -> JSONResponse:
    after = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return JSONResponse(error.body(), error.status, {**(headers or {}), **after})
