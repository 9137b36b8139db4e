"""`asyncdiff generate --server`: services that listen, with replicas that draw nothing, asked from the command line."""

import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from asyncdiff.commands.app import app
from asyncdiff.made.files import write_video
from asyncdiff.request.words import Request
from asyncdiff.serving.app import build
from asyncdiff.serving.client import Answer, Client
from asyncdiff.serving.keys import read_keys
from asyncdiff.serving.orders import Drawn, Order
from tests.serving.browser import listening
from tests.serving.stand_ins import FILM, SECONDS, SERVICE, StandIn, front_of, picture

KEY = "a-key-that-nobody-guesses"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ASYNCDIFF_API_KEY", raising=False)
    Image.new("RGB", (8, 4), "red").save("dog.png")
    return tmp_path


@contextmanager
def served(replica: Any, keys: tuple[bytes, ...] = ()) -> Iterator[str]:
    with listening(build(front_of(replica), SERVICE, keys)) as address:
        yield address


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served(StandIn()) as own:
        yield own


def generate(address: str, *words: str) -> Result:
    return CliRunner().invoke(app, ["generate", "--server", address, *words])


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
def test_a_picture_from_a_service(address: str, place: Path, path: str) -> None:
    done = generate(address + path, "one", "--steps", "7", "--out", "a.png")
    assert done.exit_code == 0, done.output
    with Image.open("a.png") as found:
        assert found.convert("RGB").tobytes() == Image.new("RGB", (8, 4)).tobytes()
    assert done.stdout == f"a.png: stand-in at {address + path} in 0.50 s; steps: 2 full\n"


def test_several_in_another_format(address: str, place: Path) -> None:
    assert generate(address, "one", "--steps", "7", "--count", "2", "--out", "a.jpg").exit_code == 0
    assert sorted(path.name for path in place.glob("a*")) == ["a-1.jpg", "a-2.jpg"]


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["one", "--steps", "50"], 2, "steps must be a whole number of at most 20, not 50"),
        (["one", "--steps", "7", "--size", "512x512"], 2, "the width in size must be a whole number of at most 256"),
        (["one", "--steps", "7", "--set", "strenth=1"], 2, "takes no 'strenth'"),
        (["one", "--steps", "7", "--image", "dog.png"], 2, "takes no image"),
        (
            ["one", "--steps", "7", "--set", "latents=@dog.png"],
            2,
            "latents is Image, which cannot be sent to a service",
        ),
        (["one", "--steps", "7", "--components", "3"], 2, "3 devices, not devices=2; use devices=3"),
        (["one", "--steps", "7", "--shard"], 2, "--shard cannot be given together with --server"),
        (["one", "--steps", "7", "--model", "demo-dit"], 2, "--model: the service has 'stand-in'"),
        (["one", "--devices", "2"], 2, "--devices cannot be given together with --server"),
        (["one", "--compare", "--report"], 2, "--compare, --report cannot be given together with --server"),
        (["one", "--out", "a.nonsense"], 2, ".nonsense is no format to write"),
        (["memory", "--steps", "7"], 1, "because of memory"),
        (["error", "--steps", "7"], 1, "because of error"),
    ],
    ids=str,
)
def test_what_the_service_refuses_is_said(
    address: str, place: Path, words: list[str], code: int, sentence: str
) -> None:
    done = generate(address, *words)
    assert done.exit_code == code and sentence in done.stderr, done.output
    assert "\n" not in done.stderr.strip() and not [path for path in place.iterdir() if path.name != "dog.png"]


def test_what_is_not_typed_is_left_to_the_service_and_what_is_typed_is_sent(place: Path) -> None:
    """Also where it is what asyncdiff has by itself: the service may have something else."""
    replica = StandIn()
    with served(replica) as own:
        assert generate(own, "one").exit_code == 0
        assert generate(own, "one", "--warmup", "3", "--stride", "1", "--steps", "7").exit_code == 0
    plain, typed = replica.orders
    assert plain.arguments["num_inference_steps"] == SERVICE.steps and plain.settings == SERVICE.settings
    assert typed.arguments["num_inference_steps"] == 7
    assert typed.settings == {**SERVICE.settings, "warmup": 3, "stride": 1}


def test_keys(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "keys.txt").write_text(f"{KEY}\n")
    with served(StandIn(), read_keys(place / "keys.txt")) as own:
        done = generate(own, "one", "--steps", "7")
        assert done.exit_code == 2 and "a key is needed" in done.stderr
        monkeypatch.setenv("ASYNCDIFF_API_KEY", KEY)
        assert generate(own, "one", "--steps", "7").exit_code == 0


class Filming(StandIn):
    """A replica that makes real films."""

    def __init__(self, folder: Path) -> None:
        super().__init__(signature=FILM)
        self.folder = folder

    async def draw(self, order: Order) -> Any:
        self.orders.append(order)
        frames = tuple(Image.new("RGB", (32, 16), (60 * number, 0, 0)) for number in range(4))
        write_video(frames, self.folder / "film.mp4", order.frames_per_second)
        yield Drawn(((self.folder / "film.mp4").read_bytes(),), "mp4", 32, 16, 0.5, {"full": 1, "round": 3}, 7)


def test_a_video_from_a_service(
    place: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncdiff.serving.client._SECONDS_BETWEEN_QUESTIONS", 0.05)
    replica = Filming(tmp_path_factory.mktemp("films"))
    words = [
        "one",
        "--steps",
        "7",
        "--frames",
        "4",
        "--image",
        "dog.png",
        "--set",
        "fps=5",
        "--fps",
        "5",
        "--seed",
        "3",
    ]
    with served(replica) as own:
        done = generate(own, *words)
        assert done.exit_code == 0, done.output
        assert generate(own, *words, "--out", "a.gif").exit_code == 0
        assert Client(own).about()["makes"] == "video"
    assert done.stdout.startswith("out.mp4: stand-in at ") and done.stdout.endswith("steps: 1 full, 3 round\n")
    assert (place / "out.mp4").read_bytes() == (replica.folder / "film.mp4").read_bytes()
    with Image.open("a.gif") as film:
        assert film.n_frames == 4  # type: ignore[attr-defined]
    order = replica.orders[0]
    assert (order.arguments["num_frames"], order.arguments["fps"], order.seed) == (4, 5, 3)
    assert order.frames_per_second == 5 and order.arguments["image"].getpixel((0, 0)) == (255, 0, 0)


def test_a_service_makes_one_video_at_a_time(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with served(Filming(tmp_path_factory.mktemp("films"))) as own:
        done = generate(own, "one", "--count", "2")
    assert done.exit_code == 2 and "one video at a time: leave --count out" in done.stderr


class Other(http.server.BaseHTTPRequestHandler):
    """A server that is none of ours, and one that ends in the middle."""

    def do_GET(self) -> None:
        text = b"hello"
        if self.path == "/v1/models" and self.server.is_ours:  # type: ignore[attr-defined]
            about = {"makes": "picture"}
            text = json.dumps({"data": [{"id": "demo-unet", "asyncdiff": about}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text)

    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'event: x\ndata: {"type": "image_generation.progress", "step": 1, "steps": 2}\n\n')
        self.wfile.write(self.server.rest)  # type: ignore[attr-defined]

    def log_message(self, *given: Any) -> None:
        del given


@contextmanager
def other(is_ours: bool, rest: bytes = b"") -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), Other) as server:
        server.is_ours, server.rest = is_ours, rest  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_what_is_no_service_or_goes_away(place: Path) -> None:
    with other(is_ours=False) as own:
        done = generate(own, "one")
        assert done.exit_code == 2 and "is no service of asyncdiff" in done.stderr
    with other(is_ours=True) as own:
        done = generate(own, "one")
        assert done.exit_code == 1 and "has ended the answer before the picture was there" in done.stderr
    with other(is_ours=True, rest=b'data: {"type": "im') as own:
        done = generate(own, "one")
        assert done.exit_code == 1 and "the service is gone" in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=lambda: listener.accept()[0].sendall(b"SSH-2.0-OpenSSH\r\n"), daemon=True).start()
        done = generate(f"http://127.0.0.1:{listener.getsockname()[1]}", "one")
        assert done.exit_code == 1 and "nobody answers at" in done.stderr
    done = generate(own, "one")
    assert done.exit_code == 1 and "nobody answers at http://127.0.0.1" in done.stderr
    for wrong in ("127.0.0.1:8000", "ftp://here", "http://here/v2", "http://", "http://[::1"):
        done = generate(wrong, "one")
        assert done.exit_code == 2 and "is no address of a service" in done.stderr


def test_ctrl_c_tells_of_the_service(place: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    def interrupted(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "draw", interrupted)
    done = generate(address, "one")
    assert done.exit_code == 130
    assert done.stderr.endswith("Interrupted (SIGINT); the service draws no more of it.\n")


def test_a_full_line_is_waited_for(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    replica = StandIn()
    front = front_of(replica)

    def draw(address: str, prompt: str) -> Answer:
        return Client(address).draw(Request(prompt, steps=4), 0, {}, lambda done, total: None, 10)

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        replica.go_on.set()

    with listening(build(front, SERVICE, ())) as own, ThreadPoolExecutor(3) as pool:
        until(lambda: front.signature)
        first = pool.submit(draw, own, "wait")
        until(lambda: replica.drawn)
        others = [pool.submit(draw, own, "one") for _ in range(2)]
        until(lambda: front.waiting == 2)
        with monkeypatch.context() as patch:
            patch.setattr("asyncdiff.serving.client._wait", sleep)
            answer = draw(own, "one")
        assert {each.result(SECONDS).files for each in (first, *others)} == {answer.files} == {(picture(),)}
    assert waited and all(seconds >= 1 for seconds in waited)


def until(condition: Any) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
