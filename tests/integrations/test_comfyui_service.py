"""Workflows that ask a service as a user starts it."""

import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.serving import OPTIONS, PROMPTS, Served, expected, served
from tests.integrations.comfyui import ComfyUI, InterruptionError, workflow
from tests.integrations.hosted import until
from tests.integrations.test_comfyui_asking import ask_too_long
from tests.integrations.test_comfyui_folder import example

pytestmark = pytest.mark.whole
KEY = "a-key-that-nobody-guesses"
STEPS = 4
SECONDS = 60.0


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    file.write_text(f"{KEY}\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def service(keys: Path) -> Iterator[Served]:
    options = ("--devices", "2", "--steps", str(STEPS), "--queue", "1", "--api-key-file", str(keys), *OPTIONS)
    with served(*options) as own:
        yield own


@pytest.fixture
def asking(comfyui: ComfyUI, service: Served, monkeypatch: pytest.MonkeyPatch) -> ComfyUI:
    """One that has the key."""
    monkeypatch.setenv("ASYNCDIFF_ADDRESS", service.address)
    monkeypatch.setenv("ASYNCDIFF_API_KEY", KEY)
    return comfyui


def test_the_picture_of_one_process(asking: ComfyUI, service: Served) -> None:
    """And no process is started for it."""
    right, before = expected("demo-unet", STEPS), psutil.Process().children()
    for prompt in PROMPTS:
        asking.run(workflow(service.address, prompt=prompt, seed=1))
        assert asking.saved["4"].pixels == [right[prompt, 1]]
        assert "picture of 128x128 by demo-unet, seed 1" in asking.saved["5"]
    assert asking.bars and all(total == STEPS for _, total in asking.bars)
    assert psutil.Process().children() == before


def test_settings(asking: ComfyUI, service: Served) -> None:
    settings = {"warmup": 1, "cooldown": 1, "method": "paper"}
    asking.run(workflow(service.address, settings, prompt="a red apple", steps=6, width=64, height=128, batch_size=2))
    saved = asking.saved["4"]
    assert (saved.width, saved.height) == (64, 128) and len({*saved.pixels}) == 2
    assert asking.saved["5"].endswith("denoiser calls: 2 full, 4 round")


def test_the_example(asking: ComfyUI, service: Served) -> None:
    asking.run(example(service.address))
    assert len(asking.saved["4"].pixels) == 2 and "4 full, 16 round" in asking.saved["5"]


def test_what_only_the_pipeline_can_see(asking: ComfyUI, service: Served) -> None:
    with pytest.raises(RuntimeError, match="have to be divisible by 8"):
        asking.run(workflow(service.address, width=100, height=100))


def test_a_request_that_is_too_long(asking: ComfyUI, service: Served) -> None:
    ask_too_long(asking, service.address)


def test_a_wrong_key(asking: ComfyUI, service: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYNCDIFF_API_KEY", f"{KEY}x")
    with pytest.raises(RuntimeError, match=r"a key is needed.*ASYNCDIFF_API_KEY"):
        asking.run(workflow(service.address))


def test_cancel_frees_the_place(asking: ComfyUI, service: Served) -> None:
    def is_as(waiting: int, state: str) -> bool:
        health = service.health()
        return health["waiting"] == waiting and health["replicas"][0]["state"] == state

    with ThreadPoolExecutor() as pool:
        drawn = pool.submit(asking.run, workflow(service.address, prompt="rocket", steps=100))
        until(lambda: asking.bars, SECONDS)
        assert is_as(0, "drawing")
        asking.interrupt()
        with pytest.raises(InterruptionError):
            drawn.result(SECONDS)
    until(lambda: is_as(0, "ready"), SECONDS)


def test_a_full_line_is_waited_out(asking: ComfyUI, service: Served) -> None:
    def ask(steps: int) -> Any:
        own = {"seed": 0, "asyncdiff": {"steps": steps}}
        return service.client(KEY).images.generate(prompt="rocket", extra_body=own)

    others = [threading.Thread(target=ask, args=(steps,)) for steps in (40, STEPS)]
    for waiting, other in enumerate(others):
        other.start()
        until(lambda: service.health()["replicas"][0]["state"] == "drawing", SECONDS)
        until(lambda: service.health()["waiting"] == waiting, SECONDS)  # noqa: B023
    asking.run(workflow(service.address))
    for other in others:
        other.join(SECONDS)
    ask = urllib.request.Request(f"{service.address}/metrics", headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(ask, timeout=SECONDS) as figures:
        assert b'asyncdiff_requests_total{status="429"}' in figures.read()
    assert asking.saved["4"].pixels


def test_a_service_that_ends_on_the_way(asking: ComfyUI, service: Served) -> None:
    """The last test: the service is not there any longer."""
    with ThreadPoolExecutor() as pool:
        run = pool.submit(asking.run, workflow(service.address, steps=100))
        until(lambda: asking.bars, SECONDS)
        service.process.terminate()
        with pytest.raises(RuntimeError, match=r"the connection to the service at .* broke"):
            run.result(SECONDS)
    service.process.wait(SECONDS)
    with pytest.raises(RuntimeError, match="nobody answers"):
        asking.run(workflow(service.address))
