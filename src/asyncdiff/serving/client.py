"""Ask a service that runs elsewhere: a request as JSON, progress as it comes, files in the end."""

import base64
import http.client
import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from asyncdiff.errors import AsyncDiffError, ConfigurationError
from asyncdiff.plan.numbers import shown
from asyncdiff.request.words import Request

_SECONDS_OF_SILENCE = 60.0  # a service says more often that it is there
_SECONDS_BETWEEN_QUESTIONS = 0.5
_SECONDS_TO_WAIT = 3600.0  # for a place in the line, and for a video
_MOST_BYTES = 2**30


class ServiceError(AsyncDiffError, RuntimeError):
    """A service cannot be reached, or could not make what was asked for."""


@dataclass(frozen=True)
class Answer:
    """What a service has made.

    Attributes:
        files: of pictures (PNG), or of a video.
        form: their ending: "png", "mp4", "gif".
        seconds: that it took, without waiting.
        steps: how many there were of each kind.
    """

    files: tuple[bytes, ...]
    form: str
    seconds: float
    steps: Mapping[str, int]


class Client:
    """A service at an address.

    Args:
        address: "http://127.0.0.1:8000", with or without "/v1".
        key: if it asks for one.

    Raises:
        ConfigurationError: this is no address.
    """

    def __init__(self, address: str, key: str | None = None) -> None:
        try:
            parts = urlsplit(address)
        except ValueError as error:
            raise ConfigurationError(f"{shown(address)} is no address of a service: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.rstrip("/") not in ("", "/v1"):
            raise ConfigurationError(f"{shown(address)} is no address of a service: http://127.0.0.1:8000 for instance")
        self._address = f"{parts.scheme}://{parts.netloc}/v1"
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def about(self) -> Mapping[str, Any]:
        """The model, as the service tells of it.

        Raises:
            ServiceError: nobody answers.
            ConfigurationError: what answers is no such service, or asks for a key.
        """
        answer = _read(self._ask("/models"))
        try:
            (model,) = json.loads(answer)["data"]
            return {**model, **model["asyncdiff"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f"what answers at {self._address} is no service of asyncdiff") from error

    def draw(
        self,
        request: Request,
        seed: int,
        settings: Mapping[str, Any],
        on_progress: Callable[[int, int], None],
        fps: int,
    ) -> Answer:
        """Have it made.

        Args:
            settings: of AsyncDiff, by name, that the service's own are to be put aside for.
            on_progress: told how many steps are done, of how many.
            fps: frames per second of a video's file.

        Raises:
            ServiceError: the service is gone, or could not make it.
            ConfigurationError: the service refuses it, in its own words.
        """
        body = {"prompt": request.prompt, "seed": seed, "asyncdiff": _own(request, settings)}
        if request.size is not None:
            body["size"] = str(request.size)
        if self.about()["makes"] == "video":
            if request.count not in (None, 1):
                raise ConfigurationError("a service makes one video at a time: leave --count out")
            return self._video({**body, "fps": fps}, on_progress)
        return self._pictures({**body, "n": request.count or 1, "stream": True}, on_progress)

    def _pictures(self, body: Mapping[str, Any], on_progress: Callable[[int, int], None]) -> Answer:
        files: list[bytes] = []
        about: Mapping[str, Any] = {}
        for event in _events(self._ask("/images/generations", body)):
            if event["type"] == "image_generation.progress" and event["steps"]:
                on_progress(event["step"], event["steps"])
            elif event["type"] == "image_generation.completed":
                files.append(base64.b64decode(event["b64_json"]))
                about = event["asyncdiff"]
            elif event["type"] == "error":
                raise ServiceError(event["error"]["message"])
        if not files:
            raise ServiceError("the service has ended the answer before the picture was there")
        return Answer(tuple(files), "png", about["seconds"], about["steps"])

    def _video(self, body: Mapping[str, Any], on_progress: Callable[[int, int], None]) -> Answer:
        path = f"/videos/{json.loads(_read(self._ask('/videos', body)))['id']}"
        end = time.monotonic() + _SECONDS_TO_WAIT
        try:
            while (record := json.loads(_read(self._ask(path))))["status"] not in ("completed", "failed"):
                on_progress(record["progress"], 100)
                if time.monotonic() > end:
                    raise ServiceError(f"the video was not there within {_SECONDS_TO_WAIT:g} s")
                time.sleep(_SECONDS_BETWEEN_QUESTIONS)
            if record["error"] is not None:
                raise ServiceError(record["error"]["message"])
            file = _read(self._ask(f"{path}/content"))
        finally:
            self._ask(path, method="DELETE")
        own = record["asyncdiff"]
        return Answer((file,), own["format"], own["seconds"], own["steps"])

    def _ask(self, path: str, body: Mapping[str, Any] | None = None, method: str | None = None) -> Any:
        """The open answer. Where the line is full it is asked again, when the service says."""
        data = None if body is None else json.dumps(body).encode()
        headers = self._headers if body is None else {**self._headers, "Content-Type": "application/json"}
        asked = urllib.request.Request(self._address + path, data, headers, method=method)
        end = time.monotonic() + _SECONDS_TO_WAIT
        while True:
            try:
                return urllib.request.urlopen(asked, timeout=_SECONDS_OF_SILENCE)
            except urllib.error.HTTPError as error:
                after = error.headers.get("Retry-After", "")
                if error.code == 429 and after.isdecimal() and time.monotonic() + int(after) < end:
                    _wait(int(after))
                    continue
                kind = ConfigurationError if error.code < 500 else ServiceError
                raise kind(_sentence(error)) from error
            except (OSError, ValueError, http.client.HTTPException) as error:  # urllib's own errors are OSErrors
                reason = getattr(error, "reason", error)
                said = " ".join(str(reason).split())
                if isinstance(reason, (BrokenPipeError, ConnectionResetError)):
                    size = 0 if data is None else len(data)
                    raise ServiceError(
                        f"{self._address} has ended the connection before it answered ({said}); a request of {size} "
                        "bytes may be longer than it takes"
                    ) from error
                raise ServiceError(f"nobody answers at {self._address}: {said}") from error


def _read(answer: Any) -> bytes:
    try:
        return bytes(answer.read(_MOST_BYTES))
    except (OSError, http.client.HTTPException) as error:
        raise ServiceError(f"the service is gone: {type(error).__name__}") from error


def _wait(seconds: float) -> None:
    time.sleep(seconds)


def _own(request: Request, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in the field `asyncdiff`: what is not left to the service."""
    for name, value in request.arguments.items():
        if not isinstance(value, (bool, int, float, str, type(None))):
            raise ConfigurationError(f"{name} is {type(value).__name__}, which cannot be sent to a service")
    words = {
        "steps": request.steps,
        "guidance_scale": request.guidance,
        "negative_prompt": request.negative_prompt,
        "image": [_as_text(picture) for picture in request.image],
        "mask": None if request.mask is None else _as_text(request.mask),
        "control_image": [_as_text(picture) for picture in request.control_image],
        "video": [_as_text(picture) for picture in request.video],
        "frames": request.frames,
        "arguments": dict(request.arguments),
    }
    return {**settings, **{name: value for name, value in words.items() if value not in (None, [], {})}}


def _as_text(picture: Image.Image) -> str:
    written = io.BytesIO()
    picture.save(written, "png")
    return base64.b64encode(written.getvalue()).decode()


def _events(answer: Any) -> Iterator[dict[str, Any]]:
    """The data of server-sent events."""
    try:
        for line in answer:
            if line.startswith(b"data: "):
                yield json.loads(line[6:])
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ServiceError(f"the service is gone: {type(error).__name__}") from error


def _sentence(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read(2**20))["error"]["message"])
    except (ValueError, KeyError, TypeError, OSError):
        return f"{error.url} answers {error.code} {error.reason}"
