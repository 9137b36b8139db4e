"""One service as a user starts it, asked by the clients that users have; the last test ends it."""

import base64
import concurrent.futures
import io
import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import torch
from PIL import Image

from asyncdiff import AsyncDiff, load_demo
from asyncdiff.demo import prompt_agreement
from asyncdiff.serving.limits import Limits
from benchmarks.serving import ASKED, OPTIONS, PROMPTS, Served, expected, served, under_load
from tests.docs.test_docs import blocks, commands

PAGE = Path(__file__).parents[2] / "docs/serving.md"
STEPS = 4
SECONDS = 60.0
LIMITS = ("--max-seconds", "60", "--timeout", "20")
ROOM = 256 * 2**20  # bytes: enough for all that is small


@pytest.fixture(scope="module")
def service() -> Iterator[Served]:
    with served("--devices", "2", "--steps", str(STEPS), "--queue", "2", *LIMITS, *OPTIONS) as own:
        yield own


@pytest.fixture(scope="module")
def client(service: Served) -> openai.OpenAI:
    return service.client()


@pytest.fixture(scope="module")
def right() -> dict[tuple[str, int], bytes]:
    return expected("demo-unet", STEPS, [(PROMPTS[0], 1), ("rocket", 3)])


@pytest.fixture(scope="module")
def all_right(right: dict[tuple[str, int], bytes]) -> dict[tuple[str, int], bytes]:
    return right | expected("demo-unet", STEPS, [each for each in ASKED if each not in right])


def image_of(picture: Any) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(picture.b64_json)))


def until(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def figure(service: Served, name: str) -> float:
    return float(service.figures().get(name, 0.0))


def send(service: Served, **body: Any) -> socket.socket:
    """A request of which the answer is not waited for."""
    host, port = service.address.removeprefix("http://").split(":")
    text = json.dumps(body).encode()
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection((host, int(port)), SECONDS)
    connection.sendall(f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text)
    return connection


def test_the_picture_of_one_process(client: openai.OpenAI, right: dict[tuple[str, int], bytes]) -> None:
    answer = client.images.generate(prompt=PROMPTS[0], response_format="b64_json", extra_body={"seed": 1})
    (picture,) = answer.data or ()
    assert image_of(picture).tobytes() == right[PROMPTS[0], 1] and answer.size == "128x128"
    assert [model.id for model in client.models.list()] == ["demo-unet"]


def test_settings_of_a_request(service: Served, client: openai.OpenAI) -> None:
    """They are attached in the same processes, and the next request has the service's again."""
    own = {"steps": 6, "warmup": 1, "cooldown": 1, "method": "paper", "guidance_scale": 3.0}
    before = service.processes()
    answer = client.images.generate(prompt="a red apple", size="64x128", extra_body={"seed": 2, "asyncdiff": own})
    pipe: Any = load_demo("unet")
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(2)
    with AsyncDiff(pipe, components=2, warmup=1, cooldown=1, method="paper", executor="local"):
        arguments: dict[str, Any] = {"num_inference_steps": 6, "guidance_scale": 3.0, "width": 64, "height": 128}
        wanted = pipe("a red apple", generator=generator, **arguments).images[0]
    (picture,) = answer.data or ()
    assert image_of(picture).tobytes() == wanted.tobytes()
    assert answer.model_extra is not None and answer.model_extra["asyncdiff"]["steps"]["full"] == 2
    assert service.processes() == before


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ({"extra_body": {"asyncdiff": {"components": None, "tokens": 2}}}, "cannot be divided by tokens"),
        ({"extra_body": {"asyncdiff": {"split": [["nothing"], ["mid_block"]]}}}, "'nothing' in the split is no module"),
        ({"size": "100x100"}, "have to be divisible by 8"),
    ],
    ids=str,
)
def test_what_only_the_pipeline_can_see(service: Served, own: dict[str, Any], sentence: str) -> None:
    before = service.processes()
    with pytest.raises(openai.BadRequestError, match=sentence):
        service.client().images.generate(prompt="rocket", **own)
    assert service.processes() == before and service.health()["status"] == "ok"


def test_progress(client: openai.OpenAI, right: dict[tuple[str, int], bytes]) -> None:
    events = list(client.images.generate(prompt="rocket", stream=True, extra_body={"seed": 3}))
    steps = [event.step for event in events if event.type == "image_generation.progress"]  # type: ignore[comparison-overlap]
    assert steps == sorted(steps) and steps
    assert events[-1].type == "image_generation.completed" and image_of(events[-1]).tobytes() == right["rocket", 3]


def test_who_goes_away_frees_the_place(service: Served) -> None:
    """One that is drawn, and two that wait; health answers meanwhile, and one more is too many."""
    long = {"prompt": "rocket", "asyncdiff": {"steps": Limits().steps}}
    connections = [send(service, **long, stream=True)]
    until(lambda: service.health()["replicas"][0]["state"] == "drawing")
    connections += [send(service, **long) for _ in range(2)]
    until(lambda: service.health()["waiting"] == 2)
    with pytest.raises(openai.RateLimitError) as raised:
        service.client().images.generate(prompt="rocket")
    assert int(raised.value.response.headers["retry-after"]) >= 1
    begin, pictures = time.monotonic(), figure(service, "asyncdiff_pictures_total")
    for connection in reversed(connections):
        connection.close()
    until(lambda: service.health()["waiting"] == 0 and service.health()["replicas"][0]["state"] == "ready")
    assert time.monotonic() - begin < 15
    until(lambda: figure(service, 'asyncdiff_requests_total{status="499"}') == 3)
    assert figure(service, "asyncdiff_pictures_total") == pictures, "it was ended, not drawn to its end"


@pytest.mark.whole
def test_too_little_memory_fails_alone(service: Served, all_right: dict[tuple[str, int], bytes]) -> None:
    """A process may take no more than it has; torch then says that it cannot allocate."""
    before = service.processes()
    limited = [psutil.Process(pid) for pid in before]
    for process in limited:
        process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms + ROOM, -1))
    try:
        with pytest.raises(openai.BadRequestError, match="not enough memory") as raised:
            service.client().images.generate(prompt="rocket", size="1024x1024", extra_body={"asyncdiff": {"steps": 1}})
    finally:
        for process in limited:
            process.rlimit(psutil.RLIMIT_AS, (-1, -1))
    assert raised.value.code == "out_of_memory"
    answer = service.client().images.generate(prompt="rocket", extra_body={"seed": 0})
    (picture,) = answer.data or ()
    assert image_of(picture).tobytes() == all_right["rocket", 0] and service.processes() == before


def test_it_listens_on_the_loopback_alone(service: Served) -> None:
    port = int(service.address.rpartition(":")[2])
    found = {
        each.laddr.ip for each in psutil.net_connections("tcp") if each.laddr.port == port and each.status == "LISTEN"
    }
    assert found == {"127.0.0.1"}


def test_what_the_page_says(service: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands for curl, and its code, as they stand there, but for the port."""
    asked = [command for command in commands(PAGE) if command.startswith("curl ")]
    assert asked
    for command in asked:
        done = subprocess.run(
            command.replace("http://127.0.0.1:8000", service.address),
            shell=True,
            cwd=tmp_path,
            capture_output=True,
            timeout=SECONDS,
            check=True,
        )
        assert b'"error"' not in done.stdout, done.stdout
    (code,) = blocks(PAGE, "python")
    script = code.replace("http://127.0.0.1:8000", service.address)
    monkeypatch.chdir(tmp_path)
    exec(compile(script, PAGE, "exec"), {"__name__": "__main__"})
    pictures = sorted(tmp_path.glob("*.png"))
    assert (
        pictures and prompt_agreement([Image.open(each) for each in pictures], ["a red apple"] * len(pictures)) == 100
    )


@pytest.mark.whole
def test_ranks_die_under_load(service: Served, all_right: dict[tuple[str, int], bytes]) -> None:
    found = under_load(service, 20, 3, STEPS, all_right)
    assert found["answers"] == {"right": 20}
    assert found["seconds_from_kill_to_whole"] < 30


@pytest.mark.whole
def test_a_replicas_own_process_dies(service: Served, all_right: dict[tuple[str, int], bytes]) -> None:
    """Ray Serve starts another; the request that it was drawing is drawn again."""
    parent = psutil.Process(service.process.pid)
    (victim,) = [each for each in parent.children(recursive=True) if "replica-0" in " ".join(each.cmdline())]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        asked = pool.submit(service.client().images.generate, prompt="rocket", extra_body={"seed": 2})
        until(lambda: service.health()["replicas"][0]["state"] == "drawing")
        victim.kill()
        (picture,) = asked.result(4 * SECONDS).data or ()
    assert image_of(picture).tobytes() == all_right["rocket", 2]
    until(lambda: service.health()["status"] == "ok")


def test_sigterm_ends_all_processes(service: Served) -> None:
    """The last test: in the middle of a picture."""
    own = psutil.Process(service.process.pid)
    processes = own.children(recursive=True)
    assert {*service.processes()} <= {each.pid for each in processes}
    connection = send(service, prompt="rocket", asyncdiff={"steps": Limits().steps})
    until(lambda: service.health()["replicas"][0]["state"] == "drawing")
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(SECONDS) == 128 + signal.SIGTERM
    connection.close()
    _, alive = psutil.wait_procs(processes, 10)
    assert alive == []
    assert re.search("all processes have ended", service.process.stdout.read())  # type: ignore[union-attr]
