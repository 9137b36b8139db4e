"""What is a request and what is not: every other ends in a sentence, and nothing else."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncdiff.errors import ConfigurationError
from asyncdiff.request.words import Size, read_size
from asyncdiff.serving.limits import Limits
from asyncdiff.serving.wire import FIELDS, SETTINGS, ImageRequest, RequestError, read_request
from asyncdiff.settings import Settings
from tests.serving.stand_ins import SERVICE, SIGNATURE

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
    ({"prompt": "x", "asyncdiff": {"timeline": "yes"}}, "timeline must be true or false, not 'yes'", "asyncdiff"),
    # The sentences of the settings and of the workers themselves.
    ({"prompt": "x", "asyncdiff": {"warmup": 0}}, "warmup must be a whole number of at least 1, not 0", "asyncdiff"),
    ({"prompt": "x", "asyncdiff": {"components": 3}}, "= 3 devices, not devices=2; use devices=3", "asyncdiff"),
    ({"prompt": "x", "asyncdiff": {"tokens": 2, "bridge": 2}}, "does not go together with", "asyncdiff"),
    ({"prompt": "x", "asyncdiff": {"method": {"module": "os"}}}, "method", "asyncdiff"),
    ({"prompt": "x", "asyncdiff": {"split": "os"}}, "split", "asyncdiff"),
]


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
    assert found == ImageRequest(
        {"prompt": "apple", "num_images_per_prompt": 1, "num_inference_steps": 4}, None, {"components": 2}, False, False
    )


def test_a_pipeline_that_takes_less_says_so() -> None:
    signature = dataclasses.replace(SIGNATURE, names=("prompt", "num_inference_steps", "generator"))
    body = json.dumps({"prompt": "x"}).encode()
    assert "num_images_per_prompt" not in read_request(body, SERVICE, signature).arguments
    with pytest.raises(RequestError, match="StandIn takes no 'num_images_per_prompt'"):
        read_request(json.dumps({"prompt": "x", "n": 2}).encode(), SERVICE, signature)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
_OWN = st.dictionaries(st.sampled_from(("steps", "guidance_scale", "negative_prompt", *SETTINGS)), _JSON, max_size=4)


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
    assert arguments["num_images_per_prompt"] <= limits.pictures
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
