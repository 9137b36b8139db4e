"""The front's way to a replica, by Ray Serve."""

import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from asyncdiff.serving.front import LostError
from asyncdiff.serving.orders import Failed, Order, Outcome, Progress, Ready
from asyncdiff.workers.parcel import pack, unpack

logger = logging.getLogger(__name__)


class Link:
    """The front's way to a replica.

    Args:
        handle: of a deployment of a `Drawer`, of which there is one.
    """

    def __init__(self, handle: "DeploymentHandle[Any]") -> None:
        self._handle = handle

    async def ready(self) -> Ready | Failed:
        with _lost():
            told: Ready | Failed = unpack(await self._handle.ready.remote())
            return told

    async def draw(self, order: Order) -> AsyncIterator[Progress | Outcome]:
        with _lost():
            draw: Any = self._handle.draw.options(stream=True)  # its types leave streams out
            async for told in draw.remote(pack(order)):
                yield unpack(told)

    async def stop(self, number: int) -> None:
        with _lost():
            await self._handle.stop.remote(number)


@contextlib.contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except (RayError, RayServeException) as error:
        logger.warning("a replica cannot be reached: %s", error)
        raise LostError("the process that was drawing has died") from error
