"""The service as a whole: started on a Ray of this machine's own, and ended with all of its processes."""

import logging
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from asyncdiff.collecting import uncollected
from asyncdiff.errors import ConfigurationError, ExchangeError
from asyncdiff.serving.app import build
from asyncdiff.serving.front import Front
from asyncdiff.serving.link import Link
from asyncdiff.serving.metrics import Metrics
from asyncdiff.serving.orders import Pipeline
from asyncdiff.serving.wire import Service
from asyncdiff.workers.cluster import Cluster, environment
from asyncdiff.workers.parcel import pack, unpack

_NAME = "asyncdiff"
# Ray Serve writes its log into files; what a terminal is told is our own.
_ENVIRONMENT = {"RAY_SERVE_LOG_TO_STDERR": "0"}
_MOST_AT_ONCE = 1000  # connections that the front has at a time; our own limits are below
_SECONDS_TO_START = 900.0
_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_TO_ANSWER = 30.0
_SECONDS_TO_END = 2.0
# A replica's process that does not answer for so long is ended and started anew.
_SECONDS_OF_SILENCE = 30.0


@dataclass(frozen=True)
class Plan:
    """What is served, and where.

    Attributes:
        pipeline: of every replica.
        replicas: how many.
        service: what requests are read by.
        host, port: where it listens.
        keys: the digests of the keys that are let in.
    """

    pipeline: Pipeline
    replicas: int
    service: Service
    host: str
    port: int
    keys: tuple[bytes, ...] = ()


class Running:
    """A service that runs until `close()`, or the end of `with`.

    Raises:
        ConfigurationError: the address is in use, or the model cannot be served so.
        ExchangeError: its processes did not come up.
    """

    def __init__(self, plan: Plan) -> None:
        _check_address(plan.host, plan.port)
        with environment(_ENVIRONMENT):
            self._cluster = Cluster(plan.pipeline.devices * plan.replicas, None)
            try:
                self._front = _start(plan)
                self._wait(plan.replicas)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """End all processes."""
        self._cluster.close()  # with its Ray ends all that Ray Serve has started

    def __enter__(self) -> "Running":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self, replicas: int) -> None:
        """Until every replica can draw."""
        end = time.monotonic() + _SECONDS_TO_START
        while True:
            states, failures = self._front.states.remote().result(timeout_s=_SECONDS_TO_ANSWER)
            if "starting" not in states:
                return
            for why, text in failures:
                raise ConfigurationError(text) if why == "refused" else ExchangeError(text)
            if time.monotonic() > end:
                raise ExchangeError(f"the {replicas} replicas have not come up within {_SECONDS_TO_START:g} s")
            time.sleep(_SECONDS_BETWEEN_LOOKS)


class _Entrance:
    """What runs in the process that all requests come to.

    Args:
        plan: a packed `Plan`.
        replicas: a handle of each.
    """

    def __init__(self, plan: bytes, *replicas: "DeploymentHandle[Any]") -> None:
        self._plan: Plan = unpack(plan)
        self._front = Front([Link(handle) for handle in replicas], self._plan.service.limits.waiting, Metrics())

    def __serve_build_asgi_app__(self) -> Any:  # Ray Serve's name
        return build(self._front, self._plan.service, self._plan.keys)

    async def states(self) -> tuple[list[str], list[tuple[str, str]]]:
        """Each replica's state, and why some could not be started."""
        failures = [failure for failure in self._front.failures if failure is not None]
        return list(self._front.states), [(failure.why, failure.text) for failure in failures]


class _Replica:
    """A `Drawer` in a process of its own. Whoever starts or reaches it imports nothing that draws.

    Args:
        pipeline: a packed `Pipeline`.
    """

    def __init__(self, pipeline: bytes) -> None:
        with uncollected():
            from asyncdiff.serving.replica import Drawer

        self._drawer = Drawer(pipeline)

    async def ready(self) -> bytes:
        return await self._drawer.ready()

    async def draw(self, parcel: bytes) -> AsyncIterator[bytes]:
        async for told in self._drawer.draw(parcel):
            yield told

    async def stop(self, number: int) -> None:
        await self._drawer.stop(number)


def _start(plan: Plan) -> "DeploymentHandle[Any]":
    """Start the processes of the service; a handle of its entrance."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(http_options={"host": plan.host, "port": plan.port}, proxy_location="HeadOnly")
    # A deployment each: the line knows which replica is free, and which one is not well.
    own: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": 0},
        "max_ongoing_requests": 8,
        "health_check_timeout_s": _SECONDS_OF_SILENCE,
        "graceful_shutdown_timeout_s": _SECONDS_TO_END,
    }
    deployment: Any = serve.deployment  # its types are those of a decorator
    drawers = [
        deployment(_Replica).options(name=f"replica-{number}", **own).bind(pack(plan.pipeline))
        for number in range(plan.replicas)
    ]
    entrance = deployment(serve.ingress()(_Entrance)).options(
        name="entrance", **{**own, "max_ongoing_requests": _MOST_AT_ONCE, "max_queued_requests": _MOST_AT_ONCE}
    )
    return serve.run(entrance.bind(pack(plan), *drawers), name=_NAME, route_prefix="/")


def _check_address(host: str, port: int) -> None:
    """Whether one can listen there, which Ray Serve finds out late."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as own:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            own.bind(address)
    except (OSError, OverflowError) as error:
        raise ConfigurationError(f"one cannot listen on {host}, port {port}: {error}") from error
