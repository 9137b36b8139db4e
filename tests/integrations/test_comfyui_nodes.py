"""The nodes themselves: their interface, and what they make of their widgets, without a service."""

import inspect
import json
from pathlib import Path
from typing import Any, get_args

import pytest

from asyncdiff.serving.wire import Service, read_request
from asyncdiff.settings import Knob, MethodName, knobs
from tests.integrations.comfyui import ComfyUI, RefusalError, workflow
from tests.serving.stand_ins import LIMITS, SIGNATURE

NOWHERE = "http://127.0.0.1:1"
FREE = [knob for knob in knobs() if not knob.is_fixed]


@pytest.fixture
def settings(comfyui: ComfyUI) -> Any:
    return comfyui.package.settings


def kind_of(knob: Knob) -> str:
    for kind, name in ((bool, "switch"), (int, "whole"), (float, "number")):
        if kind in knob.kinds:
            return name
    return "choice" if MethodName in knob.kinds else "split"


def test_the_interface(comfyui: ComfyUI) -> None:
    nodes = comfyui.package.NODE_CLASS_MAPPINGS
    assert [*nodes] == [*comfyui.titles] == ["AsyncDiffService", "AsyncDiffSettings", "AsyncDiffSampler"]
    for node in nodes.values():
        types = node.INPUT_TYPES()
        widgets = {**types["required"], **types["optional"]}
        inspect.signature(getattr(node, node.FUNCTION)).bind(None, **dict.fromkeys(widgets))
        assert len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS) == len(node.RETURN_TYPES)
        assert all(told[1]["tooltip"] for told in widgets.values()) and node.DESCRIPTION and node.CATEGORY


def test_settings_are_those_of_asyncdiff(settings: Any) -> None:
    """By name, order, text and kind: whoever changes one there is told to change it here."""
    own = [(knob.name, knob.help, kind_of(knob)) for knob in FREE]
    assert [(setting.name, setting.help, setting.kind) for setting in settings.SETTINGS] == own
    (method,) = (setting for setting in settings.SETTINGS if setting.kind == "choice")
    assert method.choices == get_args(MethodName)


def test_what_is_not_touched_is_not_told(settings: Any) -> None:
    untouched = {name: options["default"] for name, (_, options) in settings.widgets().items()}
    assert settings.chosen(untouched) == settings.chosen({}) == {}


VALUES = {
    "components": (2, 2),
    "stride": (2, 2),
    "warmup": (5, 5),
    "guidance": (2, 2),
    "tokens": (2, 2),
    "fresh": ("off", False),
    "time_shift": ("off", False),
    "split": ('[["a"], ["b"]]', [["a"], ["b"]]),
    "bridge": (2, 2),
    "target_speedup": (1.5, 1.5),
    "max_error": (0.05, 0.05),
    "cooldown": (0, 0),
    "resync_every": (3, 3),
    "share_decode": ("on", True),
    "method": ("paper", "paper"),
}


@pytest.mark.parametrize("name", [knob.name for knob in FREE])
def test_the_service_understands_each(settings: Any, name: str) -> None:
    """Of a service that has other settings, which are left out."""
    given, meant = VALUES[name]
    told = settings.chosen({name: given, "left_out": "bridge" if name != "bridge" else ""})
    body = json.dumps({"prompt": "x", "asyncdiff": told}).encode()
    service = Service("x", 2, {} if name == "bridge" else {"bridge": 3}, 4, LIMITS)
    found = read_request(body, service, SIGNATURE).settings
    assert found[name] == meant and found.get("bridge") == (2 if name == "bridge" else None)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"split": "down_blocks"}, "split must be lists of module names"),
        ({"split": '{"a": 1}'}, "split must be lists of module names"),
        ({"left_out": "components, component"}, "'component', which is no setting; there are components, stride"),
        ({"components": 1.5, "left_out": "components"}, "components is given a value and left out too"),
        ({"method": "best"}, "Value not in list: method: 'best'"),
        ({"warmup": -2}, "smaller than min"),
        ({"warmup": "few"}, "Failed to convert"),
    ],
)
def test_settings_that_are_none(comfyui: ComfyUI, given: dict[str, Any], sentence: str) -> None:
    with pytest.raises((RefusalError, ValueError), match=sentence):
        comfyui.run({"2": {"class_type": "AsyncDiffSettings", "inputs": given}, **shown("2")})


def shown(number: str) -> dict[str, Any]:
    return {"9": {"class_type": "PreviewAny", "inputs": {"source": [number, 0]}}}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"width": 64}, "width and height must both be numbers of pixels, or both 0 .* not 64 and 0"),
        ({"width": -64, "height": -64}, "not -64 and -64"),
        ({"arguments": "strength=1"}, "arguments must be names and values"),
        ({"batch_size": 0}, "smaller than min of 1"),
        ({"seed": 2**64}, "bigger than max"),
    ],
)
def test_requests_that_are_none(comfyui: ComfyUI, given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RefusalError, match=sentence):
        comfyui.run(workflow(NOWHERE, **given))


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        (" http://127.0.0.1:8000/v1\n", "http://127.0.0.1:8000"),
        ("http://Box/", "http://box:80"),
        ("https://example.org/pictures/v1/", "https://example.org:443/pictures"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
    ],
)
def test_addresses(comfyui: ComfyUI, text: str, meant: str) -> None:
    address = comfyui.package.address.Address.of(text)
    assert str(address) == meant and comfyui.package.address.Address.of(meant) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1:8000",
        "ftp://127.0.0.1",
        "http://",
        "http://x:0",
        "http://x:99999",
        "http://x:port",
        "http://name@x",
        "http://x/?a",
        "http://x/#a",
        "http://x/a b",
        "http://x/ä",
        "http://[x",
        f"http://{'x' * 64}.org",
    ],
)
def test_what_is_no_address(comfyui: ComfyUI, text: str) -> None:
    with pytest.raises(RefusalError, match=r"must be like http://127\.0\.0\.1:8000, not "):
        comfyui.run(workflow(text))


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    file = tmp_path / "keys.txt"
    file.write_text("\nhttp://one:8000/v1 key-of-one\nhttps://two  key-of-two\n", encoding="utf-8")
    return {"ASYNCDIFF_KEYS_FILE": str(file), "ASYNCDIFF_ADDRESS": "http://three:3", "ASYNCDIFF_API_KEY": "of-three"}


def test_a_key_belongs_to_an_address(comfyui: ComfyUI, environment: dict[str, str]) -> None:
    keys, of = comfyui.package.keys, comfyui.package.address.Address.of
    places = ("http://one:8000", "https://two", "http://three:3", "http://two", "http://one", "http://four")
    found = [keys.key_for(of(place), environment) for place in places]
    assert found == ["key-of-one", "key-of-two", "of-three", None, None, None]
    assert keys.usual_address(environment) == "http://three:3"
    local = {"ASYNCDIFF_API_KEY": "of-mine"}
    assert keys.key_for(of(keys.usual_address(local)), local) == "of-mine"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("http://one:8000", "line 1 of .* must have an address and its key"),
        ("http://one:8000 a b", "line 1 of .* must have an address and its key"),
        ("\nnowhere key", "must be like http://127.0.0.1:8000, not 'nowhere'"),
        ("http://one:8000 schlüssel", "the key in line 1 of .* of ASCII alone"),
    ],
)
def test_what_is_no_file_of_keys(comfyui: ComfyUI, tmp_path: Path, text: str, sentence: str) -> None:
    keys, of = comfyui.package.keys, comfyui.package.address.Address.of
    file = tmp_path / "keys.txt"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=sentence):
        keys.key_for(of("http://one:8000"), {"ASYNCDIFF_KEYS_FILE": str(file)})
    with pytest.raises(ValueError, match="the file that ASYNCDIFF_KEYS_FILE names cannot be read"):
        keys.key_for(of("http://one:8000"), {"ASYNCDIFF_KEYS_FILE": str(tmp_path)})
