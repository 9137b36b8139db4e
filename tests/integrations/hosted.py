"""The service's own routes on a port of the loopback, with replicas that draw nothing."""

import asyncio
import contextlib
import dataclasses
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn

from asyncdiff.request.signature import Signature
from asyncdiff.serving.app import build
from tests.serving.stand_ins import LIMITS, SECONDS, SIGNATURE, StandIn, front_of
from tests.serving.stand_ins import SERVICE as SHORT

# It gives up nothing by itself while a test waits.
SERVICE = dataclasses.replace(SHORT, limits=dataclasses.replace(LIMITS, seconds=6 * SECONDS))


class Hosted:
    """A service.

    Attributes:
        address: of its root.
        replica: the one that there is.
    """

    def __init__(self, keys: tuple[bytes, ...], service: Any, port: int, signature: Signature) -> None:
        self.replica = StandIn(signature=signature)
        self.front = front_of(self.replica, waiting=service.limits.waiting)
        config = uvicorn.Config(
            build(self.front, service, keys), port=port, log_level="error", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        until(lambda: self._server.started)
        (listening,) = self._server.servers[0].sockets
        self.port = listening.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        until(lambda: self.front.states == ["ready"])

    def go_on(self) -> None:
        """Let the picture be drawn whose prompt is "wait"."""
        self._loop.call_soon_threadsafe(self.replica.go_on.set)

    def refused(self) -> float:
        """How many requests were told to come later."""
        found = re.search(r'requests_total{status="429"} (.+)', self.front.metrics.as_text().decode())
        return float(found[1]) if found else 0.0

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._server.serve())
        self._loop.close()


@contextlib.contextmanager
def hosted(
    keys: tuple[bytes, ...] = (), service: Any = SERVICE, port: int = 0, signature: Signature = SIGNATURE
) -> Iterator[Hosted]:
    own = Hosted(keys, service, port, signature)
    try:
        yield own
    finally:
        own.close()


def until(condition: Any, seconds: float = SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
