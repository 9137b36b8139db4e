"""Requests and answers in the shape of OpenAI's images, as plain data that is checked. Pure."""

import base64
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from asyncdiff.errors import ConfigurationError, SplitError
from asyncdiff.plan.numbers import check_whole_number, shown
from asyncdiff.request.signature import Signature, near
from asyncdiff.serving.limits import Limits
from asyncdiff.serving.orders import Drawn, Progress
from asyncdiff.settings import knobs
from asyncdiff.workers.workers import settings_for

FIELDS = ("prompt", "model", "n", "size", "response_format", "seed", "stream", "user", "asyncdiff")
FORMATS = ("b64_json", "url")
# Of `asyncdiff`, beside the settings: what the pipeline's call takes.
_OF_CALL = ("steps", "guidance_scale", "negative_prompt")
_TIMELINE = "timeline"  # whether the answer tells what every rank did, and when
SETTINGS = tuple(knob.name for knob in knobs() if not knob.is_fixed)
"""The settings that a request may choose: those with which the processes need not be started anew."""

_MOST_SEED = 2**64 - 1
_MOST_SCALE = 1000.0


class RequestError(Exception):
    """A request that is not answered with pictures.

    Args:
        message: a sentence for whoever has asked.
        status: HTTP's number.
        param: the part of the request that is wrong.
        code: a word for programs.
        retry_after: seconds after which the same may succeed.
    """

    def __init__(
        self, message: str, status: int = 400, param: str | None = None, code: str = "", retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """As OpenAI has it."""
        kind = "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code or None}}


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
class ImageRequest:
    """A request that can be met, as far as can be seen without drawing.

    Attributes:
        arguments: of the pipeline's call, but for the generator.
        seed: of the generator; None for any.
        settings: of AsyncDiff, those of the service and of the request.
        as_url: whether pictures are fetched from an address, or are in the answer.
        streams: whether progress is told.
        is_timed: whether the answer tells what every rank did, and when.
    """

    arguments: Mapping[str, Any]
    seed: int | None
    settings: Mapping[str, Any]
    as_url: bool
    streams: bool
    is_timed: bool = False


def read_request(body: bytes, service: Service, signature: Signature | None) -> ImageRequest:
    """The request that the body of an HTTP request is.

    Args:
        signature: of the pipeline's call, if it is known yet.

    Raises:
        RequestError: it is none, or cannot be met.
    """
    given = _mapping(_parsed(body))
    _check_names("the request", given, FIELDS)
    own = _mapping(given.get("asyncdiff") or {}, "asyncdiff")
    _check_names("asyncdiff", own, (*_OF_CALL, _TIMELINE, *SETTINGS))
    if given.get("model") not in (None, service.model):
        _refuse(
            f"there is no model {shown(given['model'])} here; {service.model!r} is", "model", "model_not_found", 404
        )
    if not isinstance(given.get("user"), (str, type(None))):
        _refuse(f"user must be text, not {shown(given['user'])}", "user")
    form, streams = given.get("response_format") or "b64_json", given.get("stream")
    if form not in FORMATS:
        _refuse(f"response_format must be 'b64_json' or 'url', not {shown(form)}", "response_format")
    if not isinstance(streams, (bool, type(None))):
        _refuse(f"stream must be true or false, not {shown(streams)}", "stream")
    is_timed = own.get(_TIMELINE)
    if not isinstance(is_timed, (bool, type(None))):
        _refuse(f"timeline must be true or false, not {shown(is_timed)}", "asyncdiff")
    if "prompt" not in given:
        _refuse("the request needs a prompt", "prompt")
    return ImageRequest(
        arguments=_checked_arguments(given, own, service, signature),
        seed=_checked(_seed, "seed", given.get("seed")),
        settings=_checked(_settings, "asyncdiff", own, service),
        as_url=form == "url",
        streams=bool(streams),
        is_timed=bool(is_timed),
    )


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


def _parsed(body: bytes) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        return json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the request is no JSON: {error}", code="invalid_json") from error


def _mapping(value: Any, param: str | None = None) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(f"{param or 'the request'} must be an object, not {shown(value)}", param)
    return value


def _check_names(what: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        advice = near(unknown, known) or f"it may have {', '.join(known)}"
        _refuse(f"{what} has a field {shown(unknown)}, which is not known here; {advice}", unknown, "unknown_field")


def _checked_arguments(
    given: Mapping[str, Any], own: Mapping[str, Any], service: Service, signature: Signature | None
) -> dict[str, Any]:
    limits = service.limits
    arguments: dict[str, Any] = {
        "prompt": _checked(limits.check_prompt, "prompt", "prompt", given["prompt"]),
        "num_images_per_prompt": _checked(limits.check_pictures, "n", _or(given.get("n"), 1)),
        "num_inference_steps": _checked(limits.check_steps, "asyncdiff", _or(own.get("steps"), service.steps)),
    }
    if given.get("size") not in (None, "auto"):
        size = _checked(limits.check_size, "size", given["size"])
        arguments |= {"width": size.width, "height": size.height}
    if own.get("guidance_scale") is not None:
        arguments["guidance_scale"] = _checked(_scale, "asyncdiff", own["guidance_scale"])
    if own.get("negative_prompt") is not None:
        negative = _checked(limits.check_prompt, "asyncdiff", "negative_prompt", own["negative_prompt"])
        arguments["negative_prompt"] = negative
    if signature is not None:
        if arguments["num_images_per_prompt"] == 1 and signature.unknown(("num_images_per_prompt",)):
            del arguments["num_images_per_prompt"]
        _checked(signature.call, None, (), arguments)
    return arguments


def _checked(check: Any, param: str | None, *given: Any) -> Any:
    """What a check returns; the sentence of our own error for whoever has asked."""
    try:
        return check(*given)
    except (ConfigurationError, SplitError) as error:
        _refuse(str(error), param)


def _settings(own: Mapping[str, Any], service: Service) -> dict[str, Any]:
    settings = {**service.settings, **{name: value for name, value in own.items() if name in SETTINGS}}
    settings_for(service.devices, settings)
    return settings


def _seed(value: Any) -> int | None:
    return None if value is None else check_whole_number("seed", value, 0, _MOST_SEED)


def _scale(value: Any) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or abs(value) > _MOST_SCALE:
        raise ConfigurationError(
            f"guidance_scale must be a number from {-_MOST_SCALE:g} to {_MOST_SCALE:g}, not {shown(value)}"
        )
    return float(value)


def _or(value: Any, default: int) -> Any:
    return default if value is None else value


def _refuse(message: str, param: str | None = None, code: str = "invalid_value", status: int = 400) -> NoReturn:
    raise RequestError(message, status, param, code)
