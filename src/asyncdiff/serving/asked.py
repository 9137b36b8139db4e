"""What a request asks of the pipeline: plain data, pictures among it, within the limits. Pure."""

import base64
import binascii
import io
import math
from collections.abc import Iterable, Mapping
from typing import Any

from PIL import Image, UnidentifiedImageError

from asyncdiff.errors import ConfigurationError
from asyncdiff.plan.numbers import shown
from asyncdiff.request.files import rgb_of
from asyncdiff.request.signature import Signature
from asyncdiff.request.values import check_kind
from asyncdiff.request.words import GOVERNED, OURS, Request, lacking
from asyncdiff.serving.limits import Limits
from asyncdiff.serving.refusals import checked, mapping, refuse

WORDS = (
    *("steps", "guidance_scale", "negative_prompt"),
    *("image", "mask", "control_image", "video", "frames", "arguments"),
)
"""What the field `asyncdiff` of a request may say of the pipeline's call."""

_PICTURES = ("image", "images", "mask_image", "mask", "control_image", "conditioning_frames", "control_video", "video")
_FORMATS = ("PNG", "JPEG", "WEBP")
_MOST_PICTURES = 8
_MOST_NUMBER = 1024  # of what may be tokens of a text, or frames
_MOST_PIXELS = 2**24  # of all pictures of a request
_MOST_SCALE = 1000.0
_OURS = (*OURS, "output_type")


def takes_pictures(signature: Signature) -> bool:
    """Whether a request for this pipeline may hold pictures, and be long."""
    return any(name in signature.names for name in _PICTURES)


def read_asked(
    prompt: Any, size: Any, count: Any, own: Mapping[str, Any], steps: int, limits: Limits, signature: Signature
) -> dict[str, Any]:
    """The arguments of the pipeline's call, but for the generator.

    Args:
        prompt, size, count: fields of the request.
        own: its field `asyncdiff`.
        steps: where the request says nothing.

    Raises:
        RequestError: what is asked for cannot be, or is beyond the limits.
    """
    param = "asyncdiff"
    request = Request(
        prompt=_prompt(prompt, limits, signature),
        negative_prompt=_if_given(own, "negative_prompt", lambda text: limits.check_prompt("negative_prompt", text)),
        image=_pictures(own, "image", _MOST_PICTURES, limits),
        mask=next(iter(_pictures(own, "mask", 1, limits)), None),
        control_image=_pictures(own, "control_image", max(_MOST_PICTURES, limits.frames), limits),
        video=_pictures(own, "video", limits.frames, limits),
        size=None if size in (None, "auto") else checked(limits.check_size, "size", size),
        frames=_if_given(own, "frames", limits.check_frames),
        count=_count(count, limits),
        guidance=_if_given(own, "guidance_scale", _scale),
        steps=checked(limits.check_steps, param, steps if own.get("steps") is None else own["steps"]),
        arguments=_arguments(own.get("arguments"), limits, signature),
    )
    _check_pixels((*request.image, *request.control_image, *request.video, *filter(None, [request.mask])))
    arguments = checked(request.arguments_for, None, signature)
    missing = lacking(request, signature)
    if missing is not None:
        word, sentence = missing
        refuse(f"{sentence}: {word!r} in 'asyncdiff'", param)
    return arguments


def read_picture(name: str, value: Any, limits: Limits) -> Image.Image:
    """A picture that is written in base64, or as a data URI.

    Raises:
        ConfigurationError: it is none, or larger than pictures may be.
    """
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} must be a picture in base64, not {shown(value)}")
    head, comma, data = value.partition(",")
    if not (comma and head.startswith("data:")):
        data = value
    try:
        held = base64.b64decode("".join(data.split()), validate=True)
        picture = Image.open(io.BytesIO(held), formats=_FORMATS)
        limits.check_picture(name, picture.width, picture.height)
        return rgb_of(name, picture)
    except ConfigurationError:
        raise
    except (binascii.Error, UnidentifiedImageError) as error:
        raise ConfigurationError(f"{name} must be a PNG, JPEG or WebP file in base64") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigurationError(f"{name} is a picture that cannot be read") from error


def _pictures(own: Mapping[str, Any], name: str, most: int, limits: Limits) -> tuple[Image.Image, ...]:
    """One, or a list of them."""
    given = own.get(name)
    if given is None:
        return ()
    several = given if isinstance(given, list) else [given]
    if len(several) > most:
        refuse(f"{name} may be at most {most} pictures, not {len(several)}", "asyncdiff")
    pictures: list[Image.Image] = []
    for each in several:
        pictures.append(checked(read_picture, "asyncdiff", name, each, limits))
        _check_pixels(pictures)
    return tuple(pictures)


def _check_pixels(pictures: Iterable[Image.Image]) -> None:
    if sum(picture.width * picture.height for picture in pictures) > _MOST_PIXELS:
        refuse(f"the pictures of a request may have {_MOST_PIXELS} pixels together", "asyncdiff")


def _arguments(given: Any, limits: Limits, signature: Signature) -> dict[str, Any]:
    """Further arguments of the pipeline: numbers, text, true and false. None of them can load anything."""
    found = {} if given is None else mapping(given, "arguments")
    told = {name: value for name, value in found.items() if value is not None}
    return {name: checked(_argument, "asyncdiff", name, value, limits, signature) for name, value in told.items()}


def _argument(name: str, value: Any, limits: Limits, signature: Signature) -> Any:
    kinds = signature.kinds.get(name, ())
    if type(value) in (int, float) and "str" in kinds and not {"int", "float"} & {*kinds}:
        value = str(value)  # forms, and who types --set, do not tell text from numbers
    if name in GOVERNED or name in _OURS:
        raise ConfigurationError(f"arguments cannot have {name!r}: the request has another word for it, or the service")
    if isinstance(value, str):
        limits.check_prompt(name, value)
    elif not isinstance(value, (bool, int, float)):
        raise ConfigurationError(f"{name} in arguments must be a number, text, true or false, not {shown(value)}")
    elif abs(value) > _MOST_NUMBER or not math.isfinite(value):
        raise ConfigurationError(f"{name} must be a number of at most {_MOST_NUMBER:g}, not {shown(value)}")
    return check_kind(name, value, kinds)


def _prompt(given: Any, limits: Limits, signature: Signature) -> str | None:
    """Clients have to send one; of a pipeline that takes none it may be empty."""
    if given is None or (given == "" and "prompt" not in signature.names):
        return None
    return checked(limits.check_prompt, "prompt", "prompt", given)


def _count(given: Any, limits: Limits) -> int | None:
    """One is what every pipeline makes, also those that cannot make several."""
    count = 1 if given is None else checked(limits.check_pictures, "n", given)
    return None if count == 1 else count


def _if_given(own: Mapping[str, Any], name: str, check: Any) -> Any:
    return None if own.get(name) is None else checked(check, "asyncdiff", own[name])


def _scale(value: Any) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or abs(value) > _MOST_SCALE or not math.isfinite(value):
        raise ConfigurationError(
            f"guidance_scale must be a number from {-_MOST_SCALE:g} to {_MOST_SCALE:g}, not {shown(value)}"
        )
    return float(value)
