"""HTTP in, HTTP out, with replicas that draw nothing."""

import asyncio
import base64
import contextlib
import dataclasses
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from asyncdiff.errors import ConfigurationError
from asyncdiff.serving.app import build
from asyncdiff.serving.door import body_of
from asyncdiff.serving.front import Front
from asyncdiff.serving.keys import is_key, read_keys
from asyncdiff.serving.limits import BODY_BYTES
from asyncdiff.serving.orders import Drawn, Order, Progress
from asyncdiff.serving.pictures import Pictures
from asyncdiff.serving.refusals import RequestError
from asyncdiff.timeline import Row, Span, Timeline
from tests.serving.stand_ins import SECONDS, SERVICE, StandIn, front_of, picture

GENERATIONS = "/v1/images/generations"
KEY = "a-key-that-nobody-guesses"


class Served:
    """A service of stand-ins, and a client of it."""

    def __init__(self, replicas: int = 1, keys: tuple[bytes, ...] = (), service: Any = SERVICE) -> None:
        self.replicas = [StandIn(losses=2) for _ in range(replicas)]
        self.front: Front = front_of(*self.replicas)
        self.client = TestClient(build(self.front, service, keys), raise_server_exceptions=False)

    def ask(self, prompt: str, **more: Any) -> Any:
        return self.client.post(GENERATIONS, json={"prompt": prompt, **more})

    def until(self, status: str) -> Any:
        end = time.monotonic() + SECONDS
        while (found := self.client.get("/health").json())["status"] != status:
            assert time.monotonic() < end, found
            time.sleep(0.01)
        return found


@contextlib.contextmanager
def served(**given: Any) -> Iterator[Served]:
    own = Served(**given)
    with own.client:
        own.until("ok")
        yield own


@pytest.fixture(scope="module")
def service() -> Iterator[Served]:
    with served() as own:
        yield own


def error_of(answer: Any) -> dict[str, Any]:
    (found,) = answer.json().values()
    assert found.keys() == {"message", "type", "param", "code"} and "Traceback" not in answer.text
    return dict(found)


def test_pictures_in_the_answer(service: Served) -> None:
    answer = service.ask("one", n=2, seed=5)
    assert answer.status_code == 200
    body = answer.json()
    assert [base64.b64decode(image["b64_json"]) for image in body["data"]] == [picture()] * 2
    assert body["asyncdiff"] == {"seed": 5, "seconds": 0.5, "steps": {"full": 2}} and body["size"] == "8x4"
    assert abs(body["created"] - time.time()) < SECONDS


def test_a_seed_is_chosen_and_told(service: Served) -> None:
    assert len({service.ask("one").json()["asyncdiff"]["seed"] for _ in range(3)}) == 3


def test_pictures_at_an_address_that_cannot_be_guessed_and_nothing_on_the_disk(
    service: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any, **named: Any) -> Any:
        pytest.fail("a file was opened")

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", refuse)
        patch.setattr(os, "open", refuse)
        first, second = (service.ask("one", response_format="url").json()["data"][0]["url"] for _ in range(2))
        got = service.client.get(first)
    assert first != second and first.startswith("http://testserver/v1/images/") and first.endswith(".png")
    assert len(first.rpartition("/")[2]) > 40
    assert got.content == picture() and got.headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/images/../../../../etc/passwd",
        "/v1/images/..%2f..%2fetc%2fpasswd.png",
        "/v1/images/none.png",
        "/v1/images/.png",
    ],
)
def test_no_path_reaches_the_file_system(service: Served, path: str) -> None:
    answer = service.client.get(path)
    assert answer.status_code == 404
    assert "root:" not in answer.text and error_of(answer)


@pytest.mark.parametrize(
    ("prompt", "status", "code"),
    [
        ("refused", 400, "invalid_value"),
        ("memory", 400, "out_of_memory"),
        ("gone", 503, "replica_lost"),
        ("error", 500, None),
    ],
)
def test_what_fails_fails_alone(service: Served, prompt: str, status: int, code: str | None) -> None:
    answer = service.ask(prompt)
    assert answer.status_code == status
    assert error_of(answer)["code"] == code and error_of(answer)["message"] == f"because of {prompt}"
    assert service.ask("one").status_code == 200


def test_what_the_wire_refuses_is_not_drawn(service: Served) -> None:
    (replica,) = service.replicas
    before = len(replica.drawn)
    for more in ({"n": 9}, {"asyncdiff": {"steps": 99}}, {"size": "512x512"}, {"asyncdiff": {"height": 8}}):
        assert service.ask("one", **more).status_code == 400
    assert len(replica.drawn) == before


def test_bodies_that_are_too_long_or_of_another_kind(service: Served) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(BODY_BYTES // 1024 + 2):
            yield b" " * 1024

    as_json = {"content-type": "application/json"}
    for content in (b" " * (BODY_BYTES + 1), chunks()):
        answer = service.client.post(GENERATIONS, content=content, headers=as_json)
        assert answer.status_code == 413 and "this pipeline takes no pictures" in error_of(answer)["message"]
    for kind in ("text/plain", "application/x-python-pickle", "multipart/form-data; boundary=x", ""):
        answer = service.client.post(GENERATIONS, content=b'{"prompt": "x"}', headers={"content-type": kind})
        assert answer.status_code == 415 and error_of(answer)["code"] == "invalid_content_type"
    answer = service.client.post(GENERATIONS, content=b"\x80\x04K\x01.", headers=as_json)
    assert answer.status_code == 400 and error_of(answer)["code"] == "invalid_json"


def test_a_body_that_is_too_long_is_let_through_to_its_end() -> None:
    """Whoever is answered while still sending sees a broken connection in place of the answer."""
    taken = []

    async def receive() -> dict[str, Any]:
        taken.append(1)
        return {"type": "http.request", "body": b" " * BODY_BYTES, "more_body": len(taken) < 5}

    request = Request({"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}, receive)
    with pytest.raises(RequestError, match="is longer than") as raised:
        asyncio.run(body_of(request, BODY_BYTES))
    assert raised.value.status == 413 and len(taken) == 5


def test_what_there_is_not(service: Served) -> None:
    assert error_of(service.client.get("/v1/nothing"))["type"] == "invalid_request_error"
    answer = service.client.get(GENERATIONS)
    assert answer.status_code == 405 and error_of(answer)
    assert service.client.get("/v1/models").json()["data"][0]["id"] == "stand-in"
    assert service.client.get("/v1/models/stand-in").json()["object"] == "model"
    assert service.client.get("/v1/models/../../etc").status_code == 404


def test_an_error_that_nobody_has_foreseen_is_one_sentence(service: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncdiff.serving.app.read_request", lambda *given: 1 / 0)
    answer = service.ask("one")
    assert answer.status_code == 500 and "ZeroDivision" not in answer.text and error_of(answer)


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for block in text.strip().split("\n\n"):
        if not block.startswith(":"):
            kind, data = block.split("\n")
            found.append((kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_progress_as_events(service: Served) -> None:
    answer = service.ask("one", n=2, stream=True, seed=3)
    assert answer.headers["content-type"].startswith("text/event-stream")
    kinds, data = zip(*events_of(answer.text), strict=True)
    assert kinds[0] == "image_generation.queued" and kinds[-2:] == ("image_generation.completed",) * 2
    assert all(kind == each["type"] for kind, each in zip(kinds, data, strict=True))
    assert base64.b64decode(data[-1]["b64_json"]) == picture() and data[-1]["asyncdiff"]["seed"] == 3
    (*_, last) = events_of(service.ask("error", stream=True).text)
    assert last[0] == "error" and last[1]["error"]["message"] == "because of error"


def test_the_kind_of_each_step(service: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def draw(order: Order) -> AsyncIterator[Progress | Drawn]:
        for kinds in ((), ("full",), ("full", None)):
            await asyncio.sleep(0.05)  # but for the last, which is told all the same
            yield Progress(0, len(kinds), 2, kinds)
        yield Drawn((picture(),), "png", 8, 4, 0.5, {"full": 1}, 7)

    monkeypatch.setattr(service.replicas[0], "draw", draw)
    kind = "image_generation.progress"
    expected = [(0, None, []), (1, "full", ["full"]), (2, None, ["full", None])]
    assert [data for each, data in events_of(service.ask("one", stream=True).text) if each == kind] == [
        {"type": kind, "bar": 0, "step": step, "steps": 2, "kind": newest, "kinds": kinds}
        for step, newest, kinds in expected
    ]


def test_what_the_ranks_did_if_it_is_asked_for(service: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[bool] = []

    async def draw(order: Order) -> AsyncIterator[Drawn]:
        timed.append(order.is_timed)
        row = Row(1, (Span("step", 0.0, 0.25, "round", 3),), 0.125)
        yield Drawn((picture(),), "png", 8, 4, 0.5, {"round": 1}, 7, Timeline((row,), 0.25) if order.is_timed else None)

    monkeypatch.setattr(service.replicas[0], "draw", draw)
    assert "timeline" not in service.ask("one").json()["asyncdiff"]
    asked = {"asyncdiff": {"timeline": True}}
    span = {"what": "step", "begin": 0.0, "end": 0.25, "name": "round", "step": 3}
    expected = {"seconds": 0.25, "ranks": [{"rank": 1, "seconds_waited": 0.125, "spans": [span]}]}
    assert service.ask("one", **asked).json()["asyncdiff"]["timeline"] == expected
    assert events_of(service.ask("one", stream=True, **asked).text)[-1][1]["asyncdiff"]["timeline"] == expected
    assert timed == [False, True, True]


def test_what_a_model_says_of_itself(service: Served) -> None:
    about = service.client.get("/v1/models/stand-in").json()["asyncdiff"]
    assert {name: about[name] for name in ("devices", "replicas", "steps", "max_steps", "max_prompt")} == {
        "devices": 2,
        "replicas": 1,
        "steps": 4,
        "max_steps": 20,
        "max_prompt": 40,
    }
    for settings in (*(way["settings"] for way in about["ways"]), about["sequential"]):
        assert service.ask("one", asyncdiff=settings).status_code == 200


def test_a_full_line_health_and_figures() -> None:
    with served() as own, ThreadPoolExecutor(4) as pool:
        (replica,) = own.replicas
        first = pool.submit(own.ask, "wait")
        while not replica.drawn:
            time.sleep(0.01)
        others = [pool.submit(own.ask, "one") for _ in range(2)]
        while own.front.waiting < 2:
            time.sleep(0.01)
        health = own.client.get("/health")  # answers while a picture is drawn
        assert health.status_code == 200
        assert health.json() == {
            "status": "ok",
            "waiting": 2,
            "replicas": [{"state": "drawing", "processes": [1, 2]}],
        }
        refused = own.ask("three")
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert error_of(refused)["code"] == "queue_full" and error_of(refused)["type"] == "rate_limit_error"
        own.client.portal.call(replica.go_on.set)  # type: ignore[union-attr]
        assert [each.result(SECONDS).status_code for each in (first, *others)] == [200] * 3
        figures = own.client.get("/metrics").text
    for line in (
        'asyncdiff_requests_total{status="200"} 3.0',
        'asyncdiff_requests_total{status="429"} 1.0',
        "asyncdiff_pictures_total 3.0",
        'asyncdiff_steps_total{kind="full"} 6.0',
        "asyncdiff_sent_bytes_total 21.0",
        "asyncdiff_requests_waiting 0.0",
        "asyncdiff_request_seconds_count 4.0",
        "asyncdiff_drawing_seconds_sum 1.5",
        'asyncdiff_replicas{state="ready"} 1.0',
    ):
        assert f"\n{line}\n" in figures, figures


def test_health_says_which_replica_is_not_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncdiff.serving.front._SECONDS_BETWEEN_CHECKS", 0.1)
    with served(replicas=2) as own:
        own.replicas[1].is_well = False
        found = own.until("degraded")
        assert found["replicas"][1] == {"state": "starting", "processes": [], "error": "it is not well"}
        own.replicas[0].is_well = False
        own.until("unavailable")
        assert own.client.get("/health").status_code == 503
        for replica in own.replicas:
            replica.is_well = True
        own.until("ok")


def test_a_lost_replica_is_an_answer_all_the_same() -> None:
    with served() as own:
        answer = own.ask("lose")  # it is lost twice
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
        assert error_of(answer)["code"] == "replica_lost"
        assert own.ask("lose").status_code == 200


def test_what_takes_too_long_is_given_up() -> None:
    limits = dataclasses.replace(SERVICE.limits, seconds=0.2)
    with served(service=dataclasses.replace(SERVICE, limits=limits)) as own:
        for streams in (False, True):
            answer = own.ask("wait", stream=streams)
            found = events_of(answer.text)[-1][1] if streams else answer.json()
            assert found["error"]["code"] == "too_late"
        assert own.ask("one").status_code == 200  # nobody draws any longer for those that are gone


def test_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(f"\n{KEY}\n  another-key-of-somebody  \n", encoding="utf-8")
    keys = read_keys(file)
    assert KEY.encode() not in b"".join(keys)
    with served(keys=keys) as own:
        for path in ("/v1/models", "/metrics", "/v1/nothing", GENERATIONS):
            for given in (
                "",
                "Bearer",
                "Bearer wrong",
                f"Basic {KEY}",
                f"Bearer {KEY}x",
                f"Bearer {KEY[:-1]}",
                "Bearer \xe4",
            ):
                answer = own.client.get(path, headers={"authorization": given.encode("latin-1")})
                assert answer.status_code == 401 and error_of(answer)["code"] == "invalid_api_key"
        assert own.ask("one").status_code == 401 and own.replicas[0].drawn == []
        for key in (KEY, "another-key-of-somebody"):
            own.client.headers["authorization"] = f"Bearer {key}"
            assert own.client.get("/v1/models").status_code == 200
        address = own.ask("one", response_format="url").json()["data"][0]["url"]
        del own.client.headers["authorization"]
        assert own.client.get("/health").status_code == 200
        assert own.client.get(address).content == picture()


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda one, other: compared.append(len(one)) or one == other)
    digests = (b"\0" * 32, b"\1" * 32)
    assert not is_key("x", digests) and not is_key("x" * 1000, digests)
    assert compared == [32] * 4


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read"),
        (b"\n \n", "has no key in it"),
        (b"short\n", "less than 16"),
        (b"\xff" * 20, "cannot be read"),
    ],
    ids=["none", "empty", "short", "no text"],
)
def test_files_without_good_keys(content: bytes | None, sentence: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "keys").write_bytes(content)
    with pytest.raises(ConfigurationError, match=sentence):
        read_keys(tmp_path / "keys")


def test_pictures_are_let_go() -> None:
    now = 0.0
    held = Pictures(most_bytes=10, seconds=5, clock=lambda: now)
    names = [held.add(bytes(4)) for _ in range(3)]
    assert [held.get(name) is None for name in names] == [True, False, False]
    now = 5.1
    assert [held.get(name) for name in names] == [None] * 3
    assert held.get(held.add(bytes(11))) is None
