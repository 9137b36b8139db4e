"""Videos as jobs: asked for, asked about, fetched, forgotten; as OpenAI's client does it, and in JSON."""

import asyncio
import base64
import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from PIL import Image
from starlette.testclient import TestClient

from asyncdiff.serving.app import build
from asyncdiff.serving.limits import BODY_BYTES_WITH_PICTURES
from asyncdiff.serving.orders import Drawn, Failed, Order
from asyncdiff.serving.videos import SECONDS as KEPT
from asyncdiff.serving.videos import Video, Videos
from asyncdiff.serving.waiting import Job
from tests.serving.stand_ins import FILE, FILM, SECONDS, SERVICE, StandIn, as_text, front_of

VIDEOS = "/v1/videos"
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")  # its shape is what others have


@contextmanager
def served() -> Iterator[tuple[StandIn, TestClient]]:
    replica = StandIn(losses=2, signature=FILM)
    with TestClient(build(front_of(replica), SERVICE, ()), raise_server_exceptions=False) as client:
        until(lambda: client.get("/health").json()["status"] == "ok")
        yield replica, client


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[StandIn, TestClient]]:
    with served() as own:
        yield own


@pytest.fixture
def client(service: tuple[StandIn, TestClient]) -> TestClient:
    return service[1]


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def ended(client: TestClient, name: str) -> dict[str, Any]:
    until(lambda: client.get(f"{VIDEOS}/{name}").json()["status"] in ("completed", "failed"))
    return dict(client.get(f"{VIDEOS}/{name}").json())


def test_a_video_is_a_job(client: TestClient) -> None:
    asked = {"prompt": "one", "seed": 5, "fps": 7, "size": "64x32", "asyncdiff": {"frames": 4, "warmup": 2}}
    first = client.post(VIDEOS, json=asked).json()
    assert first["object"] == "video" and first["status"] in ("queued", "in_progress", "completed")
    assert len(first["id"]) > 30 and abs(first["created_at"] - time.time()) < SECONDS
    done = ended(client, first["id"])
    assert done["status"] == "completed" and done["progress"] == 100 and done["error"] is None
    assert done["asyncdiff"] == {"seed": 5, "seconds": 0.5, "steps": {"full": 2}, "format": "mp4"}
    assert (done["prompt"], done["size"], done["model"]) == ("one", "64x32", "stand-in")
    content = client.get(f"{VIDEOS}/{first['id']}/content")
    assert content.content == FILE + b"7" and content.headers["content-type"] == "video/mp4"
    assert first["id"] in [each["id"] for each in client.get(VIDEOS).json()["data"]]
    assert client.delete(f"{VIDEOS}/{first['id']}").json()["deleted"] is True
    for path in (first["id"], f"{first['id']}/content", "..%2f..%2fetc%2fpasswd"):
        assert client.get(f"{VIDEOS}/{path}").status_code == 404


def test_the_client_of_openai(service: tuple[StandIn, TestClient]) -> None:
    """It sends a form, its numbers as text, and a picture as a file."""
    replica, http = service
    own = openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=http, max_retries=0)
    written = io.BytesIO(base64.b64decode(as_text(Image.new("RGB", (8, 4)))))
    more = {"seed": 3, "fps": 2, "asyncdiff": {"steps": 7, "arguments": {"strength": 0.5}}}
    video = own.videos.create(
        prompt="7", seconds="2", size="64x32", input_reference=("dog.png", written, "image/png"), extra_body=more
    )
    until(lambda: own.videos.retrieve(video.id).status == "completed")
    assert own.videos.download_content(video.id).read() == FILE + b"2"
    assert replica.orders[-1].arguments["strength"] == 0.5 and replica.orders[-1].seed == 3
    assert replica.drawn[-1] == "7" and own.videos.retrieve(video.id).seconds == "2"
    assert video.id in [each.id for each in own.videos.list()]
    assert own.videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError):
        own.videos.retrieve(video.id)


@pytest.mark.parametrize(
    ("prompt", "code"), [("refused", "refused"), ("memory", "memory"), ("gone", "gone"), ("error", "error")]
)
def test_a_video_that_fails_says_why(client: TestClient, prompt: str, code: str) -> None:
    done = ended(client, client.post(VIDEOS, json={"prompt": prompt}).json()["id"])
    assert done["status"] == "failed" and done["error"] == {"code": code, "message": f"because of {prompt}"}
    answer = client.get(f"{VIDEOS}/{done['id']}/content")
    assert answer.status_code >= 400 and answer.json()["error"]["message"] == f"because of {prompt}"


def test_one_that_is_forgotten_is_ended_and_the_line_is_bounded() -> None:
    with served() as (replica, client):
        first = client.post(VIDEOS, json={"prompt": "wait"}).json()["id"]
        until(lambda: replica.drawn)
        until(lambda: client.get(f"{VIDEOS}/{first}").json()["progress"] == 50)
        answer = client.get(f"{VIDEOS}/{first}/content")
        assert answer.status_code == 409 and answer.json()["error"]["code"] == "not_ready"
        others = [client.post(VIDEOS, json={"prompt": "one"}) for _ in range(3)]
        assert [answer.status_code for answer in others] == [200, 200, 429] and others[-1].headers["retry-after"]
        assert client.delete(f"{VIDEOS}/{first}").status_code == 200
        until(lambda: replica.stopped)
        assert all(ended(client, answer.json()["id"])["status"] == "completed" for answer in others[:2])


def test_a_form_of_a_page_from_elsewhere_is_refused(client: TestClient) -> None:
    """A page may send forms to the loopback unasked, but not JSON."""
    for origin, status in (("https://example.com", 403), ("null", 403), ("http://testserver", 200)):
        answer = client.post(VIDEOS, data={"prompt": "one"}, headers={"origin": origin})
        assert answer.status_code == status, answer.text


def test_forms_that_cannot_be_read(client: TestClient) -> None:
    for fields in (
        {"a b": "1"},
        {"prompt": "x", "asyncdiff[a][b][c]": "1"},
        {"asyncdiff": "1", "asyncdiff[steps]": "2"},
    ):
        assert client.post(VIDEOS, data=fields).json()["error"]["type"] == "invalid_request_error"
    many = {f"f{number}": "1" for number in range(200)}
    assert client.post(VIDEOS, data=many, files={"x": b"1"}).status_code == 400
    kind = {"content-type": "multipart/form-data; boundary=x"}
    assert client.post(VIDEOS, content=b"no form", headers=kind).status_code == 400
    assert client.post(VIDEOS, content=b" " * (BODY_BYTES_WITH_PICTURES + 1), headers=kind).status_code == 413


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def drawn(size: int) -> Drawn:
    return Drawn((b"x" * size,), "mp4", 8, 4, 0.5, {}, 0)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_they_are_kept_for_an_hour_and_not_too_many(anyio_backend: str) -> None:
    clock, left = Clock(), []
    videos = Videos(left.append, seconds_to_draw=SECONDS, most=2, clock=clock)

    async def add(is_done: bool = True) -> Video:
        job = Job(Order(0, {"image": "large"}, 0, {}))
        video = videos.add(job, {"asyncdiff": {}})
        if is_done:
            job.finish(drawn(9))
            assert video.follower is not None
            await video.follower
        return video

    first, second, third = [await add() for _ in range(3)]
    assert second.job.order.arguments == {}, "pictures that were sent are kept no longer"
    assert videos.get(first.id) is None and videos.all() == [third, second]
    clock.now = KEPT
    waiting = await add(is_done=False)
    assert videos.all() == [waiting] and not left
    clock.now = 2 * KEPT
    assert videos.all() == [] and left == [waiting.job]
    await videos.end()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_one_that_is_not_there_in_time_has_failed(anyio_backend: str) -> None:
    left: list[Job] = []
    videos = Videos(left.append, seconds_to_draw=0.05)
    video = videos.add(Job(Order(0, {}, 0, {})), {"asyncdiff": {}})
    assert video.follower is not None
    await asyncio.wait_for(video.follower, SECONDS)
    assert video.status == "failed" and isinstance(video.outcome, Failed) and left == [video.job]
    await videos.end()
