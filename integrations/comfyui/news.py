"""What a service tells while it draws: lines of server-sent events in, news out."""

import base64
import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import FormError


@dataclass(frozen=True)
class Step:
    """So many steps are done, of so many, if that is known."""

    done: int
    total: int | None


@dataclass(frozen=True)
class Picture:
    """One is there.

    Attributes:
        file: PNG.
        size: "128x128", width and height in pixels.
        seconds: that drawing it, and those that were drawn with it, took.
        steps: denoiser calls of each kind.
    """

    file: bytes
    size: str
    seed: int
    seconds: float
    steps: Mapping[str, int]


@dataclass(frozen=True)
class Failure:
    """None will come, and why."""

    sentence: str


News = Step | Picture | Failure


def news(lines: Iterable[bytes]) -> Iterator[News]:
    """What the events of a stream say; those that say nothing of the picture are left out.

    Raises:
        FormError: an event is not as a service of asyncdiff has it.
    """
    data: list[bytes] = []
    for line in lines:
        text = line.rstrip(b"\r\n")
        if text.startswith(b"data:"):
            data.append(text.removeprefix(b"data:"))
        elif not text and data:
            yield from _told(b"\n".join(data))
            data = []


def _told(data: bytes) -> Iterator[News]:
    with readable():
        event: Any = json.loads(data)
        kind = event["type"]
        if kind == "image_generation.progress":
            told: News = Step(int(event["step"]), None if event["steps"] is None else int(event["steps"]))
        elif kind == "image_generation.completed":
            about = event["asyncdiff"]
            steps = {str(name): int(count) for name, count in about["steps"].items()}
            file = base64.b64decode(event["b64_json"], validate=True)
            told = Picture(file, str(event["size"]), int(about["seed"]), float(about["seconds"]), steps)
        elif kind == "error":
            told = Failure(sentence_of(event))
        else:
            return
    yield told


def sentence_of(body: Any) -> str:
    """What an error of OpenAI's shape says. To be called where it may be another one: within `readable()`."""
    return str(body["error"]["message"])


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """
    Raises:
        FormError: what is read here is of another form.
    """
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise FormError(str(error)) from error
