"""Requests and answers in the shape of OpenAI's images and videos, as plain data that is checked. Pure."""

import base64
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from asyncdiff.errors import ConfigurationError
from asyncdiff.made.files import FRAMES_PER_SECOND
from asyncdiff.made.media import Kind, kind_by
from asyncdiff.plan.numbers import check_number, check_whole_number, shown
from asyncdiff.request.signature import Signature
from asyncdiff.serving.asked import WORDS, read_asked
from asyncdiff.serving.limits import Limits
from asyncdiff.serving.orders import Drawn, Progress
from asyncdiff.serving.refusals import RequestError, check_names, checked, mapping, refuse
from asyncdiff.settings import knobs
from asyncdiff.workers.fitting import settings_for

FIELDS = ("prompt", "model", "n", "size", "response_format", "seed", "stream", "user", "asyncdiff")
VIDEO_FIELDS = ("prompt", "model", "size", "seconds", "fps", "input_reference", "seed", "user", "asyncdiff")
FORMATS = ("b64_json", "url")
SETTINGS = tuple(knob.name for knob in knobs() if not knob.is_fixed)
"""The settings that a request may choose: those with which the processes need not be started anew."""

_TIMELINE = "timeline"  # whether the answer tells what every rank did, and when
_ROUTES: Mapping[Kind | None, str] = {"picture": "/v1/images/generations", "video": "/v1/videos"}
_MOST_SEED = 2**64 - 1
_MOST_SECONDS = 3600.0


@dataclass(frozen=True)
class Service:
    """What requests are read by.

    Attributes:
        model: the name of the model.
        devices: of each replica.
        settings: of AsyncDiff, where a request says nothing.
        steps: where a request says nothing.
        limits: of all requests.
    """

    model: str
    devices: int
    settings: Mapping[str, Any]
    steps: int
    limits: Limits


@dataclass(frozen=True)
class Wanted:
    """A request that can be met, as far as can be seen without drawing.

    Attributes:
        arguments: of the pipeline's call, but for the generator.
        seed: of the generator; None for any.
        settings: of AsyncDiff, those of the service and of the request.
        is_timed: whether the answer tells what every rank did, and when.
    """

    arguments: Mapping[str, Any]
    seed: int | None
    settings: Mapping[str, Any]
    is_timed: bool


@dataclass(frozen=True)
class ImageRequest(Wanted):
    """One for pictures.

    Attributes:
        as_url: whether pictures are fetched from an address, or are in the answer.
        streams: whether progress is told.
    """

    as_url: bool
    streams: bool


@dataclass(frozen=True)
class VideoRequest(Wanted):
    """One for a video.

    Attributes:
        frames_per_second: of the file.
        seconds: as the request says it, if it does.
    """

    frames_per_second: int
    seconds: str | None


def read_request(body: bytes, service: Service, signature: Signature | None) -> ImageRequest:
    """The request for pictures that the body of an HTTP request is.

    Args:
        signature: of the pipeline's call, if it is known yet.

    Raises:
        RequestError: it is none, or cannot be met.
    """
    given = parsed(body)
    check_names("the request", given, FIELDS)
    known = _known(given, service, signature, "picture")
    form, streams = given.get("response_format") or "b64_json", given.get("stream")
    if form not in FORMATS:
        refuse(f"response_format must be 'b64_json' or 'url', not {shown(form)}", "response_format")
    if not isinstance(streams, (bool, type(None))):
        refuse(f"stream must be true or false, not {shown(streams)}", "stream")
    return ImageRequest(**_wanted(given, known, service, given.get("n")), as_url=form == "url", streams=bool(streams))


def read_video_request(given: Mapping[str, Any], service: Service, signature: Signature | None) -> VideoRequest:
    """The request for a video that these fields are.

    Raises:
        RequestError: as of `read_request`.
    """
    check_names("the request", given, VIDEO_FIELDS)
    known = _known(given, service, signature, "video")
    rate = checked(service.limits.check_rate, "fps", _or(given.get("fps"), FRAMES_PER_SECOND))
    own = dict(mapping(given.get("asyncdiff") or {}, "asyncdiff"))
    seconds, picture = given.get("seconds"), given.get("input_reference")
    if seconds is not None:
        own["frames"] = checked(_frames_of, "seconds", seconds, rate)
    if picture is not None:
        own["image"] = picture
    wanted = _wanted({**given, "asyncdiff": own}, known, service, None)
    return VideoRequest(**wanted, frames_per_second=rate, seconds=None if seconds is None else str(seconds))


def answer(drawn: Drawn, images: Collection[Mapping[str, str]], created: int, seed: int) -> dict[str, Any]:
    """The body of an answer.

    Args:
        images: an object for each picture, `b64_json` or `url`.
        created: seconds since 1970.
    """
    about: dict[str, Any] = {"seed": seed, "seconds": round(drawn.seconds, 3), "steps": dict(drawn.steps)}
    about |= {} if drawn.timeline is None else {"timeline": drawn.timeline.as_data()}
    return {
        "created": created,
        "data": list(images),
        "size": f"{drawn.width}x{drawn.height}",
        "output_format": "png",
        "asyncdiff": about,
    }


def as_base64(picture: bytes) -> dict[str, str]:
    """A picture in the answer itself."""
    return {"b64_json": base64.b64encode(picture).decode("ascii")}


def progress_event(progress: Progress) -> str:
    """What is told of a step."""
    kind = "image_generation.progress"
    kinds = list(progress.kinds)
    about = {"bar": progress.bar, "step": progress.done, "steps": progress.total}
    return event(kind, {"type": kind, **about, "kind": kinds[-1] if kinds else None, "kinds": kinds})


def completed_event(body: Mapping[str, Any], image: Mapping[str, str]) -> str:
    """What is told of a picture that is there: OpenAI's event, and what an answer says beside its pictures."""
    kind = "image_generation.completed"
    about = {"created_at": body["created"], **{name: body[name] for name in ("size", "output_format", "asyncdiff")}}
    return event(kind, {"type": kind, **image, **about})


def event(kind: str, data: Mapping[str, Any]) -> str:
    """One of server-sent events."""
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"


def parsed(body: bytes) -> dict[str, Any]:
    """The object that a body of JSON is.

    Raises:
        RequestError: it is none.
    """

    def refuse_constant(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        value = json.loads(body, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the request is no JSON: {error}", code="invalid_json") from error
    return mapping(value)


def _known(given: Mapping[str, Any], service: Service, signature: Signature | None, kind: Kind) -> Signature:
    """The signature of a pipeline that makes such things, if the request names no other model."""
    if given.get("model") not in (None, service.model):
        refuse(f"there is no model {shown(given['model'])} here; {service.model!r} is", "model", "model_not_found", 404)
    if not isinstance(given.get("user"), (str, type(None))):
        refuse(f"user must be text, not {shown(given['user'])}", "user")
    if signature is None:
        raise RequestError("the pipeline is not there yet; try again later", 503, code="starting", retry_after=5)
    makes = kind_by(signature)
    if makes not in (None, kind):
        where = _ROUTES.get(makes)
        refuse(
            f"{signature.pipeline} makes {makes}s: " + (f"POST {where}" if where else "no route here sends those"),
            code="wrong_kind",
        )
    return signature


def _wanted(given: Mapping[str, Any], signature: Signature, service: Service, count: Any) -> dict[str, Any]:
    """The fields of a `Wanted`."""
    own = mapping(given.get("asyncdiff") or {}, "asyncdiff")
    check_names("asyncdiff", own, (*WORDS, _TIMELINE, *SETTINGS))
    is_timed = own.get(_TIMELINE)
    if not isinstance(is_timed, (bool, type(None))):
        refuse(f"timeline must be true or false, not {shown(is_timed)}", "asyncdiff")
    if given.get("prompt") is None and "prompt" in signature.names:
        refuse("the request needs a prompt", "prompt")
    arguments = read_asked(given.get("prompt"), given.get("size"), count, own, service.steps, service.limits, signature)
    settings = checked(_settings, "asyncdiff", own, service)
    seed = checked(_seed, "seed", given.get("seed"))
    return {"arguments": arguments, "seed": seed, "settings": settings, "is_timed": bool(is_timed)}


def _settings(own: Mapping[str, Any], service: Service) -> dict[str, Any]:
    settings = {**service.settings, **{name: value for name, value in own.items() if name in SETTINGS}}
    settings_for(service.devices, settings)
    return settings


def _frames_of(seconds: Any, rate: int) -> int:
    """How many frames so many seconds are, which clients send as text."""
    try:
        number = seconds if isinstance(seconds, bool) else float(seconds)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigurationError(f"seconds must be a number above 0, not {shown(seconds)}") from error
    return round(check_number("seconds", number, 0, _MOST_SECONDS) * rate) or 1


def _seed(value: Any) -> int | None:
    return None if value is None else check_whole_number("seed", value, 0, _MOST_SEED)


def _or(value: Any, default: int) -> Any:
    return default if value is None else value
