"""What is a request and what is not: every other ends in a sentence, and nothing else."""

import base64
import dataclasses
import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from asyncdiff.errors import ConfigurationError
from asyncdiff.request.words import Size, read_size
from asyncdiff.serving.asked import WORDS
from asyncdiff.serving.limits import Limits
from asyncdiff.serving.refusals import RequestError
from asyncdiff.serving.wire import FIELDS, SETTINGS, ImageRequest, read_request, read_video_request
from asyncdiff.settings import Settings
from tests.serving.stand_ins import FILM, SERVICE, SIGNATURE, as_text

BAD: list[tuple[Any, str, str | None]] = [
    ([], "the request must be an object, not []", None),
    ({}, "the request needs a prompt", "prompt"),
    ({"prompt": 3}, "prompt must be text, not 3", "prompt"),
    ({"prompt": ["a"]}, "prompt must be text, not ['a']", "prompt"),
    ({"prompt": "x" * 41}, "prompt must have at most 40 characters, not 41", "prompt"),
    ({"prompt": "\ud800"}, "prompt must be text; it holds half of a character", "prompt"),
    ({"prompts": "x"}, "'prompts', which is not known here; is 'prompt' meant?", "prompts"),
    ({"prompt": "x", "n": 3}, "n must be a whole number of at most 2, not 3", "n"),
    ({"prompt": "x", "n": 0}, "n must be a whole number of at least 1, not 0", "n"),
    ({"prompt": "x", "n": True}, "n must be a whole number of at least 1, not True", "n"),
    ({"prompt": "x", "n": 1.5}, "n must be a whole number of at least 1, not 1.5", "n"),
    ({"prompt": "x", "size": "264x128"}, "the width in size must be a whole number of at most 256, not 264", "size"),
    ({"prompt": "x", "size": "256x136"}, "the height in size must be a whole number of at most 128", "size"),
    ({"prompt": "x", "size": "0x0"}, "size must be a width and a height in pixels", "size"),
    ({"prompt": "x", "size": 128}, "size must be a width and a height in pixels", "size"),
    ({"prompt": "x", "seed": -1}, "seed must be a whole number of at least 0, not -1", "seed"),
    ({"prompt": "x", "seed": 2**64}, "seed must be a whole number of at most", "seed"),
    ({"prompt": "x", "model": "other"}, "there is no model 'other' here; 'stand-in' is", "model"),
    ({"prompt": "x", "model": "../../etc/passwd"}, "there is no model '../../etc/passwd' here", "model"),
    ({"prompt": "x", "response_format": "file"}, "response_format must be 'b64_json' or 'url'", "response_format"),
    ({"prompt": "x", "stream": 1}, "stream must be true or false, not 1", "stream"),
    ({"prompt": "x", "user": 1}, "user must be text, not 1", "user"),
    ({"prompt": "x", "quality": "high"}, "'quality', which is not known here", "quality"),
    ({"prompt": "x", "asyncdiff": 3}, "asyncdiff must be an object, not 3", "asyncdiff"),
    ({"prompt": "x", "asyncdiff": {"steps": 21}}, "steps must be a whole number of at most 20, not 21", "asyncdiff"),
    ({"prompt": "x", "asyncdiff": {"warm": 2}}, "'warm', which is not known here; is 'warmup' meant?", "warm"),
    ({"prompt": "x", "asyncdiff": {"guidance_scale": "7"}}, "guidance_scale must be a number from", "asyncdiff"),
    ({"prompt": "x", "asyncdiff": {"guidance_scale": 1e300}}, "guidance_scale must be a number from", "asyncdiff"),
    ({"prompt": "x", "asyncdiff": {"negative_prompt": 1}}, "negative_prompt must be text", "asyncdiff"),
    ({"prompt": "x", "asyncdiff": {"negative_prompt": "x" * 41}}, "at most 40 characters", "asyncdiff"),
    ({"prompt": "x", "asyncdiff": {"guidance_scale": 10**400}}, "guidance_scale must be a number from", "asyncdiff"),
    ({"prompt": "x", "asyncdiff": {"timeline": 1}}, "timeline must be true or false, not 1", "asyncdiff"),
    ({"prompt": "x", "asyncdiff": {"timeline": "yes"}}, "timeline must be true or false, not 'yes'", "asyncdiff"),
    # The sentences of the settings and of the workers themselves.
    ({"prompt": "x", "asyncdiff": {"warmup": 0}}, "warmup must be a whole number of at least 1, not 0", "asyncdiff"),
    ({"prompt": "x", "asyncdiff": {"components": 3}}, "= 3 devices, not devices=2; use devices=3", "asyncdiff"),
    ({"prompt": "x", "asyncdiff": {"tokens": 2, "stride": 2}}, "does not go together with", "asyncdiff"),
    ({"prompt": "x", "asyncdiff": {"method": {"module": "os"}}}, "method", "asyncdiff"),
    ({"prompt": "x", "asyncdiff": {"split": "os"}}, "split", "asyncdiff"),
]


def _film(**own: Any) -> dict[str, Any]:
    return {"prompt": "x", "asyncdiff": own}


DOG = as_text(Image.new("RGB", (8, 4), "red"))
BAD_OF_PICTURES: list[tuple[dict[str, Any], str]] = [
    (_film(image=3), "image must be a picture in base64, not 3"),
    (_film(image="/etc/passwd"), "image must be a PNG, JPEG or WebP file in base64"),
    (_film(image="http://127.0.0.1/dog.png"), "image must be a PNG, JPEG or WebP file in base64"),
    (_film(image=base64.b64encode(b"no picture").decode()), "image must be a PNG, JPEG or WebP file in base64"),
    (_film(image=DOG[:-40]), "image"),
    (_film(image=as_text(Image.new("RGB", (8, 4)), "gif")), "image must be a PNG, JPEG or WebP file in base64"),
    (_film(image=as_text(Image.new("1", (257, 4)))), "image may have at most 256x128 pixels, not 257x4"),
    (_film(image=as_text(Image.new("1", (20_000, 20_000)))), "image"),  # a bomb: some kilobytes that are 400 megapixels
    (_film(image=[DOG] * 9), "image may be at most 8 pictures, not 9"),
    (_film(mask=[DOG, DOG]), "mask may be at most 1 pictures, not 2"),
    (_film(video=[DOG] * 7), "video may be at most 6 pictures, not 7"),
    (_film(frames=7), "frames must be a whole number of at most 6, not 7"),
    (_film(frames="4"), "frames must be a whole number of at least 1, not '4'"),
    (_film(control_image=DOG), "takes no control image"),
    (_film(arguments=[]), "arguments must be an object, not []"),
    (_film(arguments={"num_frames": 1000}), "arguments cannot have 'num_frames': the request has another word for it"),
    (_film(arguments={"num_inference_steps": 1000}), "arguments cannot have 'num_inference_steps'"),
    (_film(arguments={"height": 10**6}), "arguments cannot have 'height'"),
    (_film(arguments={"output_type": "latent"}), "arguments cannot have 'output_type'"),
    (_film(arguments={"strength": [0.5]}), "strength in arguments must be a number, text, true or false, not [0.5]"),
    (_film(arguments={"strength": {"module": "os"}}), "strength in arguments must be a number, text, true or false"),
    (_film(arguments={"strength": "0.5"}), "strength must be a number, not '0.5'"),
    (_film(arguments={"fps": 1e9}), "fps must be a number of at most 1024"),
    (_film(arguments={"fps": 10**400}), "fps must be a number of at most 1024"),
    (_film(arguments={"max_sequence_length": 10_000}), "max_sequence_length must be a number of at most 1024"),
    (_film(arguments={"generator": 5}), "arguments cannot have 'generator'"),
    (_film(arguments={"tone": "x" * 41}), "tone must have at most 40 characters, not 41"),
    (_film(arguments={"strenth": 0.5}), "takes no 'strenth'; is 'strength' meant?"),
    ({"prompt": "x", "seconds": "long"}, "seconds must be a number above 0, not 'long'"),
    ({"prompt": "x", "seconds": 0}, "seconds must be a number above 0, not 0"),
    ({"prompt": "x", "seconds": True}, "seconds must be a number above 0, not True"),
    ({"prompt": "x", "seconds": 10**400}, "seconds must be a number above 0, not "),
    ({"prompt": "x", "seconds": 5000}, "seconds must be a number of at most 3600, not 5000"),
    ({"prompt": "x", "seconds": "nan"}, "seconds must be a number above 0"),
    ({"prompt": "x", "seconds": "9"}, "frames must be a whole number of at most 6, not 90"),
    ({"prompt": "x", "fps": 0}, "fps must be a whole number of at least 1, not 0"),
    ({"prompt": "x", "fps": 1000}, "fps must be a whole number of at most 240, not 1000"),
    ({"prompt": "x", "n": 2}, "'n', which is not known here"),
    ({"prompt": "x", "input_reference": {"file_id": "1"}}, "image must be a picture in base64"),
]


@pytest.mark.parametrize(("value", "sentence"), BAD_OF_PICTURES, ids=lambda value: str(value)[:60])
def test_what_is_refused_of_pictures_and_videos(value: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError) as raised:
        read_video_request(value, SERVICE, FILM)
    assert sentence in str(raised.value) and "\n" not in str(raised.value) and raised.value.status == 400


def test_a_video_with_everything() -> None:
    own = {"frames": 4, "image": DOG, "arguments": {"strength": 0.5, "tone": "warm"}, "steps": 3}
    found = read_video_request({"prompt": "x", "fps": 5, "size": "64x32", "asyncdiff": own}, SERVICE, FILM)
    picture = found.arguments["image"]
    assert (picture.size, picture.getpixel((0, 0))) == ((8, 4), (255, 0, 0))
    rest = {name: value for name, value in found.arguments.items() if name != "image"}
    assert rest == {
        "prompt": "x",
        "height": 32,
        "width": 64,
        "num_inference_steps": 3,
        "num_frames": 4,
        "strength": 0.5,
        "tone": "warm",
    }
    assert found.frames_per_second == 5


def test_all_pictures_of_a_request_are_not_too_many_pixels() -> None:
    service = dataclasses.replace(SERVICE, limits=dataclasses.replace(SERVICE.limits, size=Size(4096, 4096)))
    large = as_text(Image.new("1", (4096, 3000)))
    assert read_video_request(_film(image=large), service, FILM).arguments["image"].size == (4096, 3000)
    with pytest.raises(RequestError, match="the pictures of a request may have 16777216 pixels together"):
        read_video_request(_film(image=[large, large]), service, FILM)


def test_pictures_as_they_come() -> None:
    """In base64 with line breaks, lying on their side, with 16 bits; and a number where text is meant."""
    written = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (8, 4), "red").save(written, "jpeg", exif=exif)
    deep = Image.fromarray(np.full((4, 8), 0x8000, np.uint16))
    broken = base64.encodebytes(written.getvalue()).decode()
    found = read_video_request(_film(image=broken, mask=as_text(deep), arguments={"tone": 5}), SERVICE, FILM).arguments
    assert found["image"].size == (4, 8) and found["tone"] == "5"
    assert found["mask"].getpixel((0, 0)) == (128, 128, 128)


def test_what_the_pipeline_cannot_do_without() -> None:
    """The sentences of the command line."""
    painting = dataclasses.replace(FILM, names=(*FILM.names, "mask_image"))
    controlled = dataclasses.replace(FILM, parts=("controlnet",))
    for signature, own, sentence in (
        (
            painting,
            {"image": DOG},
            "StandIn paints a part of a picture anew, and needs the mask: 'mask' in 'asyncdiff'",
        ),
        (painting, {"mask": DOG}, "needs the image: 'image' in 'asyncdiff'"),
        (controlled, {}, "StandIn is controlled by a picture: 'control_image' in 'asyncdiff'"),
    ):
        with pytest.raises(RequestError, match=sentence) as raised:
            read_video_request(_film(**own), SERVICE, signature)
        assert raised.value.status == 400


def test_as_other_clients_ask() -> None:
    given = {"prompt": "x", "seconds": "2", "fps": 3, "input_reference": f"data:image/png;base64,{DOG}"}
    found = read_video_request(given, SERVICE, FILM)
    assert found.arguments["num_frames"] == 6 and found.arguments["image"].size == (8, 4)


def test_a_pipeline_makes_what_it_makes() -> None:
    body = json.dumps({"prompt": "x"}).encode()
    with pytest.raises(RequestError, match="StandIn makes videos: POST /v1/videos"):
        read_request(body, SERVICE, FILM)
    with pytest.raises(RequestError, match="StandIn makes pictures: POST /v1/images/generations"):
        read_video_request({"prompt": "x"}, SERVICE, SIGNATURE)
    sound = dataclasses.replace(SIGNATURE, names=("prompt", "num_waveforms_per_prompt"))
    with pytest.raises(RequestError, match="StandIn makes sounds: no route here sends those"):
        read_request(body, SERVICE, sound)
    with pytest.raises(RequestError, match="the pipeline is not there yet") as raised:
        read_request(body, SERVICE, None)
    assert raised.value.status == 503 and raised.value.retry_after


def read(value: Any) -> ImageRequest:
    return read_request(json.dumps(value).encode(), SERVICE, SIGNATURE)


@pytest.mark.parametrize(("value", "sentence", "param"), BAD, ids=lambda value: str(value)[:60])
def test_what_is_refused(value: Any, sentence: str, param: str | None) -> None:
    with pytest.raises(RequestError) as raised:
        read(value)
    found = raised.value.body()["error"]
    assert sentence in found["message"] and "\n" not in found["message"]
    assert found["param"] == param and found["type"] == "invalid_request_error"
    assert raised.value.status == (404 if param == "model" else 400)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b"[" * 100_000, b'{"prompt": NaN}', b"1" * 5000, b"\x80\x04K\x01."],
    ids=lambda body: body[:9],
)
def test_what_is_no_json(body: bytes) -> None:
    """A pickle, for instance."""
    with pytest.raises(RequestError, match=r"the request is no JSON|must be an object"):
        read_request(body, SERVICE, SIGNATURE)


@pytest.mark.parametrize("name", ["shard", "place", "executor", "process_group", "backend", "timeout", "allow_pickle"])
def test_what_would_load_something_or_need_other_processes_cannot_be_chosen(name: str) -> None:
    assert name not in SETTINGS
    with pytest.raises(RequestError, match=f"'{name}', which is not known here"):
        read({"prompt": "x", "asyncdiff": {name: True}})


def test_everything_at_once() -> None:
    own = {"steps": 7, "guidance_scale": 3, "negative_prompt": "pear", "components": None, "guidance": 2}
    given = {"prompt": "apple", "n": 2, "size": "128x64", "seed": 2**64 - 1, "stream": True, "response_format": "url"}
    found = read({**given, "user": "me", "model": "stand-in", "asyncdiff": own})
    assert found.arguments == {
        "prompt": "apple",
        "negative_prompt": "pear",
        "num_images_per_prompt": 2,
        "num_inference_steps": 7,
        "width": 128,
        "height": 64,
        "guidance_scale": 3.0,
    }
    assert (found.seed, found.as_url, found.streams) == (2**64 - 1, True, True)
    assert found.settings == {"components": None, "guidance": 2}


def test_what_is_not_said_is_the_services() -> None:
    found = read({"prompt": "apple"})
    arguments = {"prompt": "apple", "num_inference_steps": 4}
    assert found == ImageRequest(arguments, None, {"components": 2}, False, as_url=False, streams=False)


def test_a_pipeline_that_takes_less_says_so() -> None:
    signature = dataclasses.replace(SIGNATURE, names=("prompt", "num_inference_steps", "generator"))
    body = json.dumps({"prompt": "x"}).encode()
    assert read_request(body, SERVICE, signature).arguments.keys() == {"prompt", "num_inference_steps"}
    with pytest.raises(RequestError, match="StandIn takes no count; it takes prompt, "):
        read_request(json.dumps({"prompt": "x", "n": 2}).encode(), SERVICE, signature)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
_OWN = st.dictionaries(st.sampled_from((*WORDS, "timeline", *SETTINGS)), _JSON, max_size=4)


@given(st.dictionaries(st.sampled_from(FIELDS), _JSON) | _JSON, _OWN | _JSON)
def test_whatever_comes_is_a_request_within_the_limits_or_an_error(value: Any, own: Any) -> None:
    if isinstance(value, dict):
        value = {"prompt": "x", **value, "asyncdiff": own}
    try:
        found = read(value)
    except RequestError:
        return
    limits, arguments = SERVICE.limits, found.arguments
    assert len(arguments["prompt"]) <= limits.prompt and arguments["num_inference_steps"] <= limits.steps
    assert arguments.get("num_images_per_prompt", 1) <= limits.pictures
    assert arguments.get("width", 1) <= limits.size.width and arguments.get("height", 1) <= limits.size.height
    Settings(**found.settings)


@given(st.integers(1, 999_999), st.integers(1, 999_999))
def test_sizes(width: int, height: int) -> None:
    assert read_size("size", f"{width}x{height}") == Size(width, height)
    assert str(Size(width, height)) == f"{width}x{height}"


@pytest.mark.parametrize(
    "text", ["", "1x", "x1", "1X1", " 1x1", "1x1\n", "01x1", "-1x1", "1x1x1", "1000000x1", "١x١", None]
)
def test_what_is_no_size(text: Any) -> None:
    with pytest.raises(ConfigurationError, match="size must be a width and a height"):
        read_size("size", text)


@pytest.mark.parametrize("limit", [{"steps": 0}, {"waiting": True}, {"seconds": 0}, {"seconds": float("inf")}], ids=str)
def test_limits_that_are_none(limit: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Limits(**limit)
