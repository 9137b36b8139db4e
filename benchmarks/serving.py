"""`asyncdiff serve` under load: many clients at once, and a process that is killed on the way.

A service of one replica of two processes is started as a user starts it. Clients ask for pictures, each as soon as it
has the last one; when a third of them is there, one of the two processes is killed. Every picture that comes is
compared, bit for bit, with the one that this process draws with the same settings. Beside them somebody asks for
/health all the time: how long it takes to answer, and after how many seconds it says that the replica is whole again.
"""

import argparse
import base64
import contextlib
import io
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import torch
from PIL import Image

from asyncdiff import AsyncDiff
from asyncdiff.loading import load_pipeline
from benchmarks.machine import machine

PROMPTS = ("a red apple", "rocket")
SEEDS = 4
SETTINGS: Mapping[str, Any] = {"components": 2, "warmup": 2, "cooldown": 0}
OPTIONS = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]
SECONDS_TO_START = 300
SECONDS_TO_END = 60
SECONDS = 1800  # of one request, and of the whole
SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True)
class Served:
    """A service that runs.

    Attributes:
        address: of its root.
        process: the command that was typed.
        seconds: that it took to come up.
    """

    address: str
    process: "subprocess.Popen[str]"
    seconds: float

    def get(self, path: str, seconds: float = 30.0) -> bytes:
        """What is answered, whatever the status."""
        try:
            with urllib.request.urlopen(self.address + path, timeout=seconds) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            return error.read()

    def health(self) -> Any:
        return json.loads(self.get("/health"))

    def figures(self) -> dict[str, str]:
        """What it tells Prometheus, by name."""
        lines = (line.rpartition(" ") for line in self.get("/metrics").decode().splitlines())
        return {name: value for name, _, value in lines}

    def client(self, key: str = "none") -> openai.OpenAI:
        """One that does not try again by itself."""
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0, timeout=SECONDS)

    def processes(self) -> list[int]:
        """Of the first replica, rank by rank."""
        return [int(pid) for pid in self.health()["replicas"][0]["processes"]]


@contextlib.contextmanager
def served(*options: str) -> Iterator[Served]:
    """`asyncdiff serve` with these options, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "from asyncdiff.commands.app import main; main()"
    command = [sys.executable, "-c", code, "serve", "--port", str(port), *options]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    timer = threading.Timer(SECONDS_TO_START, process.kill)
    timer.start()
    try:
        told: list[str] = []  # libraries may say something first
        while not (told and ("is served at" in told[-1] or not told[-1])):
            told.append(process.stdout.readline() if process.stdout else "")
        timer.cancel()
        if not told[-1]:
            raise RuntimeError(f"the service has not come up: {''.join(told)}")
        yield Served(f"http://127.0.0.1:{port}", process, time.perf_counter() - begin)
    finally:
        timer.cancel()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(SECONDS_TO_END)
        finally:
            process.kill()


ASKED = tuple(itertools.product(PROMPTS, range(SEEDS)))
"""Prompts and seeds."""


def expected(model: str, steps: int, asked: Iterable[tuple[str, int]] = ASKED) -> dict[tuple[str, int], bytes]:
    """The pictures of one process, as their pixels, by prompt and seed."""
    torch.set_num_threads(1)
    pipe: Any = load_pipeline(model, None, torch.device("cpu"))
    pipe.set_progress_bar_config(disable=True)
    pictures = {}
    with AsyncDiff(pipe, executor="local", **SETTINGS):
        for prompt, seed in asked:
            generator = torch.Generator().manual_seed(seed)
            picture = pipe(prompt, num_inference_steps=steps, generator=generator).images[0]
            pictures[prompt, seed] = picture.tobytes()
    return pictures


def pixels(picture: str) -> bytes:
    """Those of a PNG file in base64."""
    return bytes(Image.open(io.BytesIO(base64.b64decode(picture))).tobytes())


class Watch:
    """Asks for /health all the time, in a thread of its own."""

    def __init__(self, service: Served) -> None:
        self.seconds: list[float] = []
        self.lost: float | None = None
        self.whole: float | None = None
        self._service = service
        self._killed: float | None = None
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def note_kill(self) -> None:
        self._killed = time.perf_counter()

    def end(self) -> None:
        self._is_over.set()
        self._thread.join(SECONDS_TO_END)

    def _look(self) -> None:
        while not self._is_over.wait(SECONDS_BETWEEN_LOOKS):
            begin = time.perf_counter()
            status = self._service.health()["status"]
            now = time.perf_counter()
            self.seconds.append(now - begin)
            if self._killed is None:
                continue
            if self.lost is None and status != "ok":
                self.lost = now - self._killed
            if self.lost is not None and self.whole is None and status == "ok":
                self.whole = now - self._killed


def under_load(service: Served, requests: int, clients: int, steps: int, right: Mapping[tuple[str, int], bytes]) -> Any:
    """Figures of so many requests from so many clients."""
    watch, answered = Watch(service), threading.Semaphore(0)

    def ask(number: int) -> tuple[str, float]:
        prompt, seed = PROMPTS[number % len(PROMPTS)], number // len(PROMPTS) % SEEDS
        begin = time.perf_counter()
        try:
            own = {"seed": seed, "asyncdiff": {"steps": steps}}
            answer = service.client().images.generate(prompt=prompt, response_format="b64_json", extra_body=own)
            images = [pixels(image.b64_json or "") for image in answer.data or ()]
            kind = "right" if images == [right[prompt, seed]] else "wrong picture"
        except openai.APIError as error:
            kind = str(error)
        answered.release()
        return kind, time.perf_counter() - begin

    def kill() -> None:
        for _ in range(requests // 3):
            answered.acquire(timeout=SECONDS)
        victim = service.processes()[-1]
        watch.note_kill()
        os.kill(victim, signal.SIGKILL)

    begin = time.perf_counter()
    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(ask, range(requests)))
    total = time.perf_counter() - begin
    killer.join(SECONDS_TO_END)
    watch.end()
    taken = sorted(seconds for _, seconds in answers)
    return {
        "requests": requests,
        "clients": clients,
        "steps": steps,
        "answers": dict(Counter(kind for kind, _ in answers)),
        "seconds": total,
        "seconds_of_a_request": {"median": statistics.median(taken), "longest": taken[-1]},
        "seconds_from_kill_to_loss_told": watch.lost,
        "seconds_from_kill_to_whole": watch.whole,
        "health": {
            "asked": len(watch.seconds),
            "median": statistics.median(watch.seconds),
            "longest": max(watch.seconds),
        },
        "counted": {
            name: value
            for name, value in service.figures().items()
            if name.startswith(
                ("asyncdiff_requests_total", "asyncdiff_pictures_total", "asyncdiff_replica_losses_total")
            )
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo-unet", help="a demo model, or a folder")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/serving.json"))
    arguments = parser.parse_args()
    right = expected(arguments.model, arguments.steps)
    with served("--model", arguments.model, "--devices", "2", *OPTIONS) as service:
        found = under_load(service, arguments.requests, arguments.clients, arguments.steps, right)
        found = {"model": arguments.model, "seconds_to_start": service.seconds, **found}
    arguments.output.write_text(json.dumps({"machine": machine(), "result": found}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
