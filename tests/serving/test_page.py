"""The page in a real browser: on an application whose replica draws nothing, and on a real service."""

import asyncio
import base64
import contextlib
import dataclasses
import io
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from asyncdiff import AsyncDiff, load_demo
from asyncdiff.evaluation.compare import pixels, psnr
from asyncdiff.serving.app import build
from asyncdiff.serving.keys import read_keys
from asyncdiff.serving.limits import Size
from asyncdiff.serving.orders import Drawn, Order, Outcome, Progress
from asyncdiff.timeline import Row, Span, Timeline
from benchmarks.serving import served
from tests.serving.browser import chromium, listening
from tests.serving.stand_ins import LIMITS, SERVICE, StandIn, front_of

KEY = "a-key-that-nobody-guesses"
MARKUP = "<img src=x onerror=alert(1)><b>bold</b>"
WAYS = ("full", "full", "round", "bridged")
SECONDS = 20.0
SHOWN = ("own", "sequential")
NARROW, WIDE = 390, 1280
# In the page: the pixels of a picture that is shown, as a PNG file.
_WRITTEN = """image => {
    const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
    canvas.getContext("2d").drawImage(image, 0, 0);
    return canvas.convertToBlob().then(blob => new Promise(done => {
        const reader = new FileReader();
        reader.onload = () => done(reader.result);
        reader.readAsDataURL(blob);
    }));
}"""


def noise(seed: int, is_sequential: bool) -> bytes:
    """A picture for each seed; the sequential one is a little like it."""
    numbers = np.random.default_rng(seed).integers(0, 256, (24, 40, 3))
    other = np.random.default_rng(seed + 1).integers(-30, 30, numbers.shape)
    written = io.BytesIO()
    Image.fromarray(np.clip(numbers + is_sequential * other, 0, 255).astype(np.uint8)).save(written, "png")
    return written.getvalue()


def kinds_of(order: Order) -> tuple[str, ...]:
    steps = order.arguments["num_inference_steps"]
    is_sequential = order.settings.get("warmup", 3) >= steps
    return ("full",) * steps if is_sequential else (*WAYS, *("round",) * steps)[:steps]


def timeline_of(kinds: tuple[str, ...]) -> Timeline:
    spans = [Span("part", 0.0, 0.01, "text_encoder")]
    spans += [Span("step", 0.01 + 0.1 * at, 0.1 * (at + 1), kind, at) for at, kind in enumerate(kinds)]
    spans += [Span("waiting", 0.05, 0.08), Span("exchange", 0.02, 0.09)]
    return Timeline(tuple(Row(rank, tuple(spans), 0.03) for rank in range(2)), 0.1 * len(kinds))


class Painter(StandIn):
    """Says how far it is, with kinds of steps, and gives pictures of noise. Other prompts do what `StandIn` does."""

    def __init__(self) -> None:
        super().__init__(losses=2)

    async def draw(self, order: Order) -> AsyncIterator[Progress | Outcome]:
        if not order.arguments["prompt"].startswith(("a ", "<")):
            async for told in super().draw(order):
                yield told
            return
        self.orders.append(order)
        kinds = kinds_of(order)
        for done in range(len(kinds) + 1):
            yield Progress(0, done, len(kinds), kinds[:done])
            await asyncio.sleep(0.02)
        picture = noise(order.seed, {*kinds} == {"full"})
        counts = {kind: kinds.count(kind) for kind in kinds}
        yield Drawn(
            (picture,), "png", 40, 24, 0.1 * len(kinds), counts, 7, timeline_of(kinds) if order.is_timed else None
        )


class Looked:
    """A page that somebody looks at.

    Attributes:
        page: Playwright's own.
        asked: the addresses that the page has asked for.
        complaints: what the browser's console says of it.
    """

    def __init__(self, browser: Any, address: str, width: int = WIDE) -> None:
        self.page = browser.new_page()
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.set_default_timeout(SECONDS * 1000)
        self.address = address
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda told: self.complaints.append(f"{told.type}: {told.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(f"{address}/")

    def draw(self, prompt: str, **fields: str) -> None:
        self.page.wait_for_selector("#draw:enabled")
        self.page.get_by_label("Prompt").fill(prompt)
        for name, value in fields.items():
            self.page.get_by_label(name.capitalize(), exact=True).fill(value)
        self.page.get_by_role("button", name="Draw", exact=True).click()

    def wait_for_picture(self) -> None:
        self.page.wait_for_selector("#own:not([hidden])")
        self.page.wait_for_selector("#draw:enabled")

    def draw_sequential(self) -> None:
        self.page.get_by_role("button", name="Draw the sequential one").click()
        self.page.wait_for_selector("#comparison:not([hidden])")

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector)).replace("\u00a0", " ")

    def picture(self, name: str) -> Image.Image:
        """As it is shown, in its own size."""
        written = self.page.eval_on_selector(f"#{name} img", _WRITTEN)
        return Image.open(io.BytesIO(base64.b64decode(written.partition(",")[2]))).convert("RGB")

    def problem(self) -> str:
        self.page.wait_for_selector("#problem:not([hidden])")
        return self.text("#problem")

    def classes(self, selector: str) -> list[str]:
        return [str(each) for each in self.page.eval_on_selector_all(selector, "all => all.map(e => e.className)")]


class Place:
    """An application with a page, and its replica."""

    def __init__(self, browser: Any, address: str, painter: Painter, client: TestClient) -> None:
        self.browser, self.address, self.painter, self.client = browser, address, painter, client

    @contextlib.contextmanager
    def look(self, width: int = WIDE) -> Iterator[Looked]:
        looked = Looked(self.browser, self.address, width)
        try:
            yield looked
        finally:
            looked.page.close()


@contextlib.contextmanager
def place_of(browser: Any, keys: tuple[bytes, ...] = (), service: Any = None) -> Iterator[Place]:
    painter = Painter()
    limits = dataclasses.replace(LIMITS, size=Size(256, 256), prompt=200, seconds=SECONDS)
    app = build(front_of(painter), service or dataclasses.replace(SERVICE, limits=limits), keys)
    with listening(app) as address:
        yield Place(browser, address, painter, TestClient(app))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as own:
        yield own


@pytest.fixture
def place(browser: Any) -> Iterator[Place]:
    with place_of(browser) as own:
        yield own


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_files_of_the_page_and_nothing_else() -> None:
    """They need no key, let nothing in from elsewhere, and name no other address."""
    client = TestClient(build(front_of(StandIn()), SERVICE, (b"\0" * 32,)))
    page = client.get("/")
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=", page.text), (
        "nothing stands in the page itself"
    )
    names = {*re.findall(r'(?:src|href)="(page/[^"]+)"', page.text)}
    left = list(names)
    while left:
        answer = client.get(f"/{left.pop()}")
        assert answer.status_code == 200 and answer.headers["content-security-policy"] == policy
        assert "http" not in answer.text.replace("http://www.w3.org/2000/svg", "").replace(
            "https://html.spec.whatwg.org", ""
        )
        found = {f"page/{name}" for name in re.findall(r'from "\./([^"]+)"', answer.text)} - names
        names |= found
        left += found
    assert {"page/page.js", "page/page.css", "page/timeline.js"} <= names
    for path in ("/page/none.js", "/page/", "/page/../app.py", "/page/..%2fapp.py", "/page/index.html"):
        assert client.get(path).status_code == 401, path
    assert client.post("/").status_code == 401 and client.get("/v1/models").status_code == 401


def test_a_picture_and_the_sequential_one_beside_it(place: Place) -> None:
    with place.look() as looked:
        looked.draw("a red apple", steps="7", seed="5")
        looked.wait_for_picture()
        (order,) = place.painter.orders
        assert order.seed == 5 and order.is_timed and order.arguments["num_inference_steps"] == 7
        kinds = list(kinds_of(order))
        assert looked.classes("#bar > span") == kinds
        assert "2 full, 4 round, 1 bridged" in looked.text("#status") and "0.70 s" in looked.text("#status")
        legend = looked.text("#bar-legend")
        assert all(f"{kind}:" in legend for kind in kinds)
        assert "a red apple, seed 5, 7 steps" in looked.text("#own figcaption")
        assert looked.classes("#own .bar > span") == kinds
        assert looked.page.eval_on_selector("#own img", "image => [image.naturalWidth, image.naturalHeight]") == [
            40,
            24,
        ]
        assert looked.page.locator("#sequential").is_hidden()

        looked.page.get_by_label("Prompt").fill("a prompt that comes later")  # the same as before is drawn all the same
        looked.draw_sequential()
        _, other = place.painter.orders
        assert other.arguments == order.arguments and other.seed == 5 and other.is_timed
        assert other.settings["warmup"] == SERVICE.limits.steps and other.settings["components"] == 2
        assert looked.classes("#bar > span") == ["full"] * 7
        pictures = [pixels(Image.open(io.BytesIO(noise(5, each)))) for each in (False, True)]
        assert all((pixels(looked.picture(name)) == each).all() for name, each in zip(SHOWN, pictures, strict=True))
        found = float(looked.page.get_attribute("#psnr", "data-value"))
        assert found == pytest.approx(psnr(*pictures), rel=1e-12) and f"{found:.2f} dB" in looked.text("#psnr")
        assert looked.text("#times").split("\n")[1].split("\t")[1:] == ["0.70 s", "0.70 s", "1.00×"]
        assert "as one device alone would" in looked.text("#times-hint")
        assert looked.complaints == []
        assert {address.split("/")[2] for address in looked.asked if not address.startswith("blob:")} == {
            place.address.removeprefix("http://")
        }


def test_a_sequential_picture_that_is_the_same(place: Place) -> None:
    with place.look() as looked:
        looked.draw("a red apple", steps="2")
        looked.wait_for_picture()
        looked.draw_sequential()
        until(lambda: 'asyncdiff_requests_total{status="200"} 2.0' in place.client.get("/metrics").text)
        assert len({order.seed for order in place.painter.orders}) == 1, "the seed that the service has chosen"
        assert looked.text("#psnr") == "The two are equal, bit for bit."


def test_a_choice_of_devices(place: Place) -> None:
    with place.look() as looked:
        looked.page.wait_for_selector("#draw:enabled")
        assert "2 devices" in looked.text("#about") and "1 replica of 2 devices" in looked.text("#devices")
        looked.page.get_by_label("Devices").select_option("guidance-bridge")
        assert "every second step is forecast" in looked.text("#meaning")
        looked.draw("a red apple")
        looked.wait_for_picture()
        (order,) = place.painter.orders
        assert order.arguments["num_inference_steps"] == SERVICE.steps
        assert (order.settings["guidance"], order.settings["components"], order.settings["bridge"]) == (2, 1, 2)


def test_what_the_ranks_did(place: Place) -> None:
    with place.look() as looked:
        looked.draw("a red apple", steps="4")
        looked.wait_for_picture()
        kinds = kinds_of(place.painter.orders[0])
        for name, count in (*((kind, 2 * kinds.count(kind)) for kind in kinds), ("part", 2), ("exchange", 2)):
            assert looked.page.locator(f"#charts rect.{name}").count() == count, name
        assert looked.page.locator("#charts rect[fill^='url(#waiting']").count() == 2
        drawn = looked.page.locator("#charts svg text").all_text_contents()
        assert {"rank 0", "rank 1", "0 ms", "100", "400"} <= {*drawn}
        bars = looked.page.locator("#charts rect.full").evaluate_all(
            "all => all.map(e => [e.x, e.width].map(l => l.baseVal.value))"
        )
        (begin, width), (after, _) = bars[:2]
        assert (after - begin) / width == pytest.approx(0.1 / 0.09), "lengths are times"
        assert "waiting for another rank" in looked.text("#timeline-legend")
        title = looked.page.locator("#charts rect.round title").first.text_content()
        assert title == "step 3, round: 90 ms, from 210 ms on"
        looked.page.get_by_text("The same in numbers").click()
        numbers = looked.text("#numbers")
        assert "2 calls, 180 ms" in numbers and re.search(r"waiting.*\s30 ms\s+30 ms", numbers)
        inner = "e => [e.scrollWidth, e.clientWidth]"
        assert len({*looked.page.eval_on_selector("#charts", inner)}) == 1
        looked.page.get_by_label("Enlarged").select_option("4")
        whole, seen = looked.page.eval_on_selector("#charts", inner)
        assert whole == pytest.approx(4 * seen, rel=0.05)


def test_what_comes_from_others_is_text(browser: Any) -> None:
    """A prompt, the model's name, and what an error says."""
    named = dataclasses.replace(SERVICE, model=MARKUP, limits=dataclasses.replace(LIMITS, prompt=200))
    with place_of(browser, service=named) as place, place.look() as looked:
        looked.draw(MARKUP)
        looked.wait_for_picture()
        assert MARKUP in looked.text("#about") and MARKUP in looked.text("#own figcaption")
        body = {"error": {"message": MARKUP, "type": "", "param": None, "code": None}}
        looked.page.route("**/generations", lambda route: route.fulfill(status=400, json=body))
        looked.draw(MARKUP)
        assert MARKUP in looked.problem()
        assert looked.page.locator("b").count() == 0 and looked.page.locator("img").count() == 2
        assert not [each for each in looked.complaints if "400" not in each]


def test_a_key_is_asked_for_and_kept_nowhere(browser: Any, tmp_path: Any) -> None:
    (tmp_path / "keys").write_text(KEY)
    with place_of(browser, keys=read_keys(tmp_path / "keys")) as place, place.look() as looked:
        assert looked.problem() == "The service asks for a key."
        assert looked.page.get_by_role("button", name="Draw", exact=True).is_disabled()
        looked.page.get_by_label("Key").fill("wrong")
        looked.page.get_by_role("button", name="Use it").click()
        looked.page.get_by_text("The service does not know this key.").wait_for()
        looked.page.get_by_label("Key").fill(KEY)
        looked.page.get_by_label("Key").press("Enter")
        looked.draw("a red apple")
        looked.wait_for_picture()
        assert looked.page.locator("#problem").is_hidden()
        kept = looked.page.evaluate("[localStorage.length, sessionStorage.length, document.cookie, location.href]")
        assert kept == [0, 0, "", f"{place.address}/"] and not any(KEY in address for address in looked.asked)
        looked.page.reload()
        assert looked.problem() == "The service asks for a key." and looked.page.get_by_label("Key").input_value() == ""


def test_stop_frees_the_place(place: Place) -> None:
    with place.look() as looked:
        looked.draw("wait")
        until(lambda: place.painter.orders)
        looked.page.get_by_text("step 1 of 2").wait_for()
        looked.page.get_by_role("button", name="Stop").click()
        until(lambda: place.painter.stopped == [place.painter.orders[0].number])
        assert looked.text("#status") == "stopped" and looked.page.locator("#problem").is_hidden()
        looked.draw("a red apple")
        looked.wait_for_picture()


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("refused", "Because of refused."),
        pytest.param("memory", "Because of memory.", marks=pytest.mark.whole),
        ("lose", "The process that was drawing has died."),
        ("unforeseen", "What was asked for could not be made (KeyError)."),
    ],
)
def test_what_the_service_says(place: Place, prompt: str, sentence: str) -> None:
    with place.look() as looked:
        looked.draw(prompt)
        assert looked.problem() == sentence and looked.text("#status") == "no picture"
        looked.draw("a red apple")
        looked.wait_for_picture()
        assert looked.page.locator("#problem").is_hidden()


def test_a_full_line(place: Place) -> None:
    with contextlib.ExitStack() as stack:
        first, second, third, last = (stack.enter_context(place.look()) for _ in range(4))
        first.draw("wait")
        first.page.get_by_text("step 1 of 2").wait_for()
        for number, looked in enumerate((second, third)):
            looked.draw("a red apple")
            looked.page.get_by_text(("it is the next one", "waiting; 1 request before this one")[number]).wait_for()
        last.draw("a red apple")
        assert re.fullmatch(r"2 requests are waiting already.*\. There may be room in \d+ s\.", last.problem())
        first.page.get_by_role("button", name="Stop").click()
        third.wait_for_picture()


def test_a_service_that_is_not_there(place: Place) -> None:
    queued = 'event: image_generation.queued\ndata: {"type": "image_generation.queued", "before": 0}\n\n'
    answers: list[tuple[Callable[[Any], None], str]] = [
        (lambda route: route.abort(), "The service does not answer. Is it still running?"),
        (lambda route: route.fulfill(status=502, body="<html>"), "The service has answered with status 502."),
        (
            lambda route: route.fulfill(status=200, content_type="text/event-stream", body=queued),
            "The connection to the service broke off before the picture was there.",
        ),
    ]
    with place.look() as looked:
        for answer, sentence in answers:
            looked.page.route("**/v1/images/generations", answer)
            looked.draw("a red apple")
            looked.page.get_by_text(sentence, exact=True).wait_for()
            looked.page.unroute("**/v1/images/generations")
        looked.page.route("**/v1/models", lambda route: route.abort())
        looked.page.reload()
        assert looked.problem() == "The service does not answer. Is it still running?"


def test_what_a_request_cannot_be_is_said_by_the_browser(place: Place) -> None:
    """Limits are in the fields: nothing is sent."""
    with place.look() as looked:
        for fields in ({"steps": "21"}, {"steps": ""}, {"seed": "-1"}, {"seed": "9007199254740993"}):
            looked.draw("a red apple", **{"steps": "4", "seed": "", **fields})
        looked.draw("", steps="4", seed="")
        looked.draw("a red apple", steps="4", seed="9007199254740991")
        looked.wait_for_picture()
        (order,) = place.painter.orders
        assert order.seed == 9007199254740991


def test_a_narrow_window_and_keys_alone(place: Place) -> None:
    with place.look(NARROW) as looked:
        looked.page.wait_for_selector("#draw:enabled")
        looked.page.get_by_label("Prompt").focus()
        looked.page.keyboard.press("Control+A")
        looked.page.keyboard.type(f"a {'very' * 30} long word")
        for _ in range(3):  # the model, the devices, the steps
            looked.page.keyboard.press("Tab")
        looked.page.keyboard.type("6")
        looked.page.keyboard.press("Enter")
        looked.wait_for_picture()
        assert place.painter.orders[0].arguments["num_inference_steps"] == 6
        looked.draw_sequential()
        looked.page.get_by_text("The same in numbers").click()
        assert looked.page.evaluate("document.documentElement.scrollWidth") == NARROW
        wide = looked.page.evaluate(
            """[...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1
               && !e.closest(".scroll")).map(e => e.outerHTML)"""
        )
        assert wide == []
        unnamed = looked.page.eval_on_selector_all(
            "input, select, textarea", "all => all.filter(e => !e.labels.length)"
        )
        assert unnamed == []


@pytest.mark.whole
def test_a_real_service(browser: Any) -> None:
    """Both pictures are those that one process draws, and the steps those that it takes."""
    steps = 8
    with served("--devices", "2", "--steps", str(steps), "--timeout", "60") as service:
        looked = Looked(browser, service.address)
        looked.page.wait_for_selector("#draw:enabled")
        looked.page.get_by_label("Devices").select_option("components")
        looked.draw("a red apple", seed="3")
        looked.wait_for_picture()
        looked.draw_sequential()
        own, sequential = looked.picture("own"), looked.picture("sequential")
        pipe: Any = load_demo("unet")
        torch.set_num_threads(1)

        def draw() -> Image.Image:
            generator = torch.Generator().manual_seed(3)
            picture: Image.Image = pipe("a red apple", num_inference_steps=steps, generator=generator).images[0]
            return picture

        assert sequential.tobytes() == draw().tobytes()
        with AsyncDiff(pipe, components=2, executor="local") as attached:
            assert own.tobytes() == draw().tobytes()
            kinds = [kind.value for kind in attached.counts()["unet"].kinds]
        found = float(looked.page.get_attribute("#psnr", "data-value"))
        assert found == pytest.approx(psnr(pixels(own), pixels(sequential)), rel=1e-9) and found < 100
        for kind in kinds:
            expected = 2 * kinds.count(kind) + (2 * steps if kind == "full" else 0)
            assert looked.page.locator(f"#charts rect.{kind}").count() == expected
        assert looked.page.locator("#charts rect.exchange").count() and looked.complaints == []
        looked.page.get_by_label("Steps").fill("100")
        looked.page.get_by_role("button", name="Draw", exact=True).click()
        looked.page.get_by_text(re.compile(r"step \d+ of 100")).wait_for()
        looked.page.get_by_role("button", name="Stop").click()
        until(lambda: service.health()["replicas"][0]["state"] == "ready")
        looked.page.close()
