"""Workflows that ask the service's own routes, behind which replicas draw nothing."""

import dataclasses
import hashlib
import io
import json
import re
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.integrations.comfyui import ComfyUI, InterruptionError, LoadImage, Saved, SaveImage, workflow
from tests.integrations.hosted import SERVICE, Hosted, hosted, until
from tests.integrations.odd import answer, broken_stream, odd
from tests.serving.stand_ins import LIMITS, SECONDS, SIGNATURE, picture

KEY = "a-key-that-nobody-guesses"
SENT = Saved([Image.open(io.BytesIO(picture())).tobytes()], 8, 4)


@pytest.fixture(scope="module")
def service() -> Iterator[Hosted]:
    with hosted() as own:
        yield own


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as own:
        yield own


def test_a_picture(comfyui: ComfyUI, service: Hosted) -> None:
    comfyui.run(workflow(service.address + "/v1", seed=5))
    assert comfyui.saved["4"] == SENT
    text = r"1 picture of 8x4 by stand-in, seed 5, in 0\.50 s \(\d+\.\d\d s with waiting\); denoiser calls: 2 full"
    assert re.fullmatch(text, comfyui.saved["5"])


def test_all_that_can_be_said(comfyui: ComfyUI, service: Hosted) -> None:
    own = {"warmup": 1, "components": -1, "time_shift": "on", "left_out": "components"}
    request = {"prompt": "ä", "negative_prompt": "b", "seed": 2**64 - 1, "steps": 7, "guidance_scale": 0.0}
    comfyui.run(workflow(service.address, own, **request, width=64, height=32, batch_size=2))
    order = service.replica.orders[-1]
    assert order.arguments == {
        "prompt": "ä",
        "negative_prompt": "b",
        "num_inference_steps": 7,
        "guidance_scale": 0.0,
        "width": 64,
        "height": 32,
        "num_images_per_prompt": 2,
    }
    assert order.seed == 2**64 - 1 and order.settings == {"components": None, "warmup": 1, "time_shift": True}
    assert comfyui.saved["4"] == SENT._replace(pixels=SENT.pixels * 2)
    assert comfyui.saved["5"].startswith("2 pictures of ")


def test_what_is_not_said_is_as_the_service_has_it(comfyui: ComfyUI, service: Hosted) -> None:
    comfyui.run(workflow(service.address, {}))
    order = service.replica.orders[-1]
    assert order.arguments == {"prompt": "one", "num_inference_steps": 4}
    assert order.settings == SERVICE.settings


def test_pictures_to_begin_with(comfyui: ComfyUI) -> None:
    """As they are, with a further argument; a pipeline that takes none says so."""
    names = ("image", "mask_image", "control_image", "strength")
    taking = dataclasses.replace(SIGNATURE, names=(*SIGNATURE.names, *names), kinds={"strength": ("float",)})
    sent = {"image": ["6", 0], "mask": ["6", 1], "control_image": ["6", 0], "arguments": '{"strength": 0.5}'}
    with hosted(signature=taking) as own, hosted() as other:
        asked = {"6": {"class_type": "LoadImage", "inputs": {"seed": 1}}, **workflow(own.address, **sent)}
        comfyui.run(asked)
        (order,) = own.replica.orders
        asked["1"]["inputs"]["address"] = other.address
        with pytest.raises(RuntimeError, match="StandIn takes no "):
            comfyui.run(asked)
    rows, mask = ((each[0] * 255).round().to(torch.uint8).numpy() for each in LoadImage().load(1))
    given = order.arguments
    assert np.array_equal(np.asarray(given["image"]), rows) and np.array_equal(np.asarray(given["control_image"]), rows)
    assert np.array_equal(np.asarray(given["mask_image"])[..., 0], mask) and given["strength"] == 0.5


def test_the_same_is_not_drawn_twice(comfyui: ComfyUI) -> None:
    with hosted() as own:
        asked = workflow(own.address)
        comfyui.run(asked)
        comfyui.run(asked)
        assert comfyui.executed == [] and len(own.replica.orders) == 1
        comfyui.run(workflow(own.address, seed=1))
        assert comfyui.executed[0] == "AsyncDiffSampler" and len(own.replica.orders) == 2
    with hosted(service=dataclasses.replace(SERVICE, model="another"), port=own.port) as own:
        comfyui.run(workflow(own.address, seed=1))
        assert len(own.replica.orders) == 1 and " by another," in comfyui.saved["5"]


@pytest.mark.parametrize("prompt", ["refused", "memory", "gone", "error"])
def test_the_services_own_sentence(comfyui: ComfyUI, service: Hosted, prompt: str) -> None:
    with pytest.raises(RuntimeError, match=f"^because of {prompt}$"):
        comfyui.run(workflow(service.address, prompt=prompt))


def test_what_the_service_refuses(comfyui: ComfyUI, service: Hosted) -> None:
    for given, sentence in (
        ({"batch_size": 9}, "^n must be "),
        ({"width": 512, "height": 512}, "^the width in size must be "),
        ({"guidance_scale": -0.5, "steps": 99}, "^steps must be "),
    ):
        with pytest.raises(RuntimeError, match=sentence):
            comfyui.run(workflow(service.address, **given))


def ended(comfyui: ComfyUI, run: Any) -> None:
    """Somebody presses "cancel", and the workflow ends by that."""
    comfyui.interrupt()
    with pytest.raises(InterruptionError):
        run.result(SECONDS)


def test_cancel_ends_the_drawing(comfyui: ComfyUI, service: Hosted, pool: ThreadPoolExecutor) -> None:
    run = pool.submit(comfyui.run, workflow(service.address, prompt="wait"))
    until(lambda: service.front.states == ["drawing"] and comfyui.bars)
    assert comfyui.bars == [(1, 2)]
    ended(comfyui, run)
    until(lambda: service.front.states == ["ready"])
    assert service.replica.stopped[-1] == service.replica.orders[-1].number
    comfyui.run(workflow(service.address))
    assert comfyui.saved["4"] == SENT


def occupy(service: Hosted, pool: ThreadPoolExecutor, waiting: int) -> None:
    """A picture that is drawn until `service.go_on()`, and so many that wait."""
    body = json.dumps({"prompt": "wait"}).encode()
    ask = urllib.request.Request(service.address + "/v1/images/generations", body, {"Content-Type": "application/json"})
    for number in range(1 + waiting):
        pool.submit(urllib.request.urlopen, ask, timeout=SECONDS)
        until(lambda: service.front.states == ["drawing"] and service.front.waiting == number)  # noqa: B023


def test_cancel_frees_the_place_in_the_line(comfyui: ComfyUI, pool: ThreadPoolExecutor) -> None:
    with hosted() as own:
        occupy(own, pool, waiting=0)
        run = pool.submit(comfyui.run, workflow(own.address))
        until(lambda: own.front.waiting == 1)
        ended(comfyui, run)
        until(lambda: own.front.waiting == 0)
        own.go_on()


def test_a_full_line_is_waited_out(comfyui: ComfyUI, pool: ThreadPoolExecutor) -> None:
    """When the service says, within the limit; or until somebody presses "cancel"."""
    with hosted() as own:
        occupy(own, pool, waiting=LIMITS.waiting)
        asked = workflow(own.address)
        asked["1"]["inputs"]["timeout"] = 1
        with pytest.raises(RuntimeError, match=r"^2 requests are waiting already.* \(no place was free within 1 s\)$"):
            comfyui.run(asked)
        run = pool.submit(comfyui.run, workflow(own.address))
        until(lambda: own.refused() == 2)
        ended(comfyui, run)
        own.front._recent.append(0.1)  # so that the service asks for a second alone
        run = pool.submit(comfyui.run, workflow(own.address))
        until(lambda: own.refused() == 3)
        own.go_on()
        run.result(SECONDS)
        assert comfyui.saved["4"] == SENT


def test_a_limit_for_all_of_it(comfyui: ComfyUI, service: Hosted) -> None:
    asked = workflow(service.address, prompt="wait")
    asked["1"]["inputs"]["timeout"] = 1
    with pytest.raises(RuntimeError, match=f"^the service at {service.address} was not done within 1 s$"):
        comfyui.run(asked)
    until(lambda: service.front.states == ["ready"])


def test_keys(comfyui: ComfyUI, monkeypatch: pytest.MonkeyPatch) -> None:
    with hosted(keys=(hashlib.sha256(KEY.encode()).digest(),)) as own, hosted() as other:
        monkeypatch.setenv("ASYNCDIFF_ADDRESS", own.address)
        for key in ("", "a-wrong-key-of-somebody", KEY):
            monkeypatch.setenv("ASYNCDIFF_API_KEY", key)
            if key != KEY:
                with pytest.raises(RuntimeError, match=r"a key is needed.*ASYNCDIFF_API_KEY") as raised:
                    comfyui.run(workflow(own.address))
                assert not key or key not in str(raised.value)
        comfyui.run(workflow(own.address))
        assert comfyui.saved["4"] == SENT
        handed = [value for outputs in comfyui.outputs() for value in outputs]
        assert KEY not in repr(handed) and not any(
            KEY in repr(vars(value)) for value in handed if hasattr(value, "model")
        )
        comfyui.run(workflow(other.address))  # that needs none


def test_no_key_goes_to_an_address_of_somebody_else(comfyui: ComfyUI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYNCDIFF_API_KEY", KEY)
    with odd(answer(b"{}")) as own, odd(answer(b"", status="302 Found", more=f"Location: {own.address}/\r\n")) as way:
        for place in (own, way):
            with pytest.raises(RuntimeError, match="does not speak as a service of asyncdiff"):
                comfyui.run(workflow(place.address))
            monkeypatch.setenv("ASYNCDIFF_ADDRESS", way.address)
        assert KEY not in b"".join(own.heard).decode() and KEY in way.heard[-1].decode()


def test_nobody_listens(comfyui: ComfyUI) -> None:
    with odd(b"") as own:
        pass
    with pytest.raises(RuntimeError, match=rf"^nobody answers at {own.address} \(.*\); is the service started"):
        comfyui.run(workflow(own.address))


def test_a_service_that_ends_between_two_workflows(comfyui: ComfyUI) -> None:
    with hosted() as own:
        comfyui.run(workflow(own.address))
    with pytest.raises(RuntimeError, match=r"^nobody answers at "):
        comfyui.run(workflow(own.address, seed=1))


HTML = b"<html>It works</html>"
STATES = b'{"status": "unavailable", "replicas": [{"state": "starting", "error": "no such model"}]}'


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (answer(HTML, "text/html"), "does not speak as a service of asyncdiff does"),
        (answer(HTML, "text/html", "404 Not Found"), "does not speak as a service of asyncdiff does"),
        (answer(b"[]"), "does not speak as a service of asyncdiff does"),
        (answer(b"[" * 100_000), "does not speak as a service of asyncdiff does"),
        (answer(b" " * 2**21), "says too much"),
        (answer(STATES), r"cannot draw: replica 0 is starting \(no such model\)"),
        (b"", "broke: "),
        (b"SSH-2.0\r\n", "broke: "),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "does not speak as"),
    ],
    ids=["html", "404", "list", "deep", "long", "unavailable", "closed", "ssh", "half"],
)
def test_somebody_else_answers(comfyui: ComfyUI, said: bytes, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comfyui.package.client, "_SECONDS_TO_COME_BACK", 0.1)
    with odd(said) as own, pytest.raises(RuntimeError, match=sentence) as raised:
        comfyui.run(workflow(own.address))
    assert own.address in str(raised.value)


def test_a_service_comes_back(comfyui: ComfyUI, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of its replicas is there, for a moment."""
    monkeypatch.setattr("asyncdiff.serving.front._SECONDS_BETWEEN_CHECKS", 0.1)
    with hosted() as own:
        own.replica.is_well = False
        until(lambda: own.front.states == ["starting"])
        run = pool.submit(comfyui.run, workflow(own.address))
        time.sleep(0.2)
        own.replica.is_well = True
        run.result(SECONDS)
        assert comfyui.saved["4"] == SENT


def ask_too_long(comfyui: ComfyUI, address: str) -> None:
    client = comfyui.package.client.Client(comfyui.package.address.Address.of(address))
    with pytest.raises(RuntimeError, match=r"^the request is longer than "):
        client.draw({"prompt": "x", "asyncdiff": {"image": "x" * 2**23}}, SECONDS, lambda done, total: None)


def test_a_request_that_is_too_long(comfyui: ComfyUI, service: Hosted) -> None:
    """It is answered before all of it is sent, and the answer is read."""
    ask_too_long(comfyui, service.address)


STEP = b'event: x\ndata: {"type": "image_generation.progress", "bar": 0, "step": 1, "steps": null}\n\n'
ABOUT = {"size": "8x4", "asyncdiff": {"seed": 1, "seconds": 0.1, "steps": {}}}
DONE = {"type": "image_generation.completed", "b64_json": "eA==", **ABOUT}


def event(**data: Any) -> bytes:
    return f"event: x\ndata: {json.dumps(data)}\n\n".encode()


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (broken_stream(STEP), "broke: "),
        (answer(STEP, "text/event-stream"), "broke before all pictures were there"),
        (answer(event(**DONE) * 2, "text/event-stream"), "broke before all pictures were there"),
        (answer(event(type="image_generation.progress"), "text/event-stream"), "does not speak as"),
        (answer(event(**{**DONE, "b64_json": "?"}), "text/event-stream"), "does not speak as"),
        (answer(b"data: 1\n\n", "text/event-stream"), "does not speak as"),
        (answer(b"data: {\n\n", "text/event-stream"), "does not speak as"),
        (answer(event(type="error", error="no"), "text/event-stream"), "does not speak as"),
        (None, "broke: it has said nothing for 0.3 s"),
    ],
    ids=["chunk", "none", "two", "progress", "base64", "number", "json", "error", "silence"],
)
def test_what_comes_of_a_picture(
    comfyui: ComfyUI, said: bytes | None, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, address = comfyui.package.client, comfyui.package.address
    monkeypatch.setattr(client, "_SECONDS_OF_SILENCE", 0.3)
    with odd(said) as own, pytest.raises(RuntimeError, match=sentence):
        client.Client(address.Address.of(own.address)).draw({"prompt": "x"}, SECONDS, lambda done, total: None)


def test_every_colour_comes_through(comfyui: ComfyUI) -> None:
    """To a file that ComfyUI saves; grey and transparent pictures too."""
    pixels = np.arange(3 * 256, dtype=np.uint8).reshape(16, 16, 3)
    for mode in ("RGB", "L", "RGBA"):
        image, file = Image.fromarray(pixels).convert(mode), io.BytesIO()
        image.save(file, "png")
        images = comfyui.package.pictures.images_of([file.getvalue()])
        assert SaveImage().save(images, "x").pixels == [image.convert("RGB").tobytes()]


def test_what_is_no_picture(comfyui: ComfyUI) -> None:
    pictures = comfyui.package.pictures
    gif = io.BytesIO()
    Image.new("RGB", (8, 4)).save(gif, "gif")
    for files in ([b"x"], [gif.getvalue()], [picture()[:40]]):
        with pytest.raises(RuntimeError, match="something that is no picture"):
            pictures.images_of(files)


def test_cancel_where_nobody_answers(
    comfyui: ComfyUI, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comfyui.package.nodes, "_SECONDS_TO_LOOK", 0.2)
    with odd(None) as own:
        run = pool.submit(comfyui.run, workflow(own.address))
        until(lambda: len(own.heard) == 2)  # whether something has changed, and then whether it can draw
        ended(comfyui, run)
