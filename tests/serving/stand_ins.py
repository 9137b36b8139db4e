"""Replicas that draw nothing: what they are told to do stands in the order's prompt."""

import asyncio
import base64
import dataclasses
import io
from collections.abc import AsyncIterator
from typing import Any

from PIL import Image

from asyncdiff.request.signature import Signature
from asyncdiff.request.words import Size
from asyncdiff.serving.front import Front, LostError
from asyncdiff.serving.limits import Limits
from asyncdiff.serving.metrics import Metrics
from asyncdiff.serving.orders import Drawn, Failed, Order, Outcome, Progress, Ready
from asyncdiff.serving.wire import Service

NAMES = ("prompt", "height", "width", "num_inference_steps", "guidance_scale", "negative_prompt")
SIGNATURE = Signature("StandIn", (*NAMES, "num_images_per_prompt", "generator"), 0, ("prompt",), False, {}, ())
LIMITS = Limits(steps=20, size=Size(256, 128), pictures=2, frames=6, prompt=40, waiting=2, seconds=5)
SERVICE = Service("stand-in", 2, {"components": 2}, 4, LIMITS)
SECONDS = 10.0

# What a pipeline of videos takes beside; of the file that it makes, all that is here.
FILM = dataclasses.replace(
    SIGNATURE,
    names=(*SIGNATURE.names, "image", "video", "mask", "num_frames", "fps", "strength", "tone", "output_type"),
    kinds={"fps": ("int",), "strength": ("float",), "tone": ("str",)},
)
FILE = b"a film, pictures a second: "


def picture() -> bytes:
    return base64.b64decode(as_text(Image.new("RGB", (8, 4))))


def as_text(image: Image.Image, form: str = "png") -> str:
    """A picture in base64."""
    written = io.BytesIO()
    image.save(written, form)
    return base64.b64encode(written.getvalue()).decode()


class StandIn:
    """A replica.

    Attributes:
        drawn: the prompts of what it has begun with.
        orders: what it has begun with.
        stopped: the numbers of the orders that it was told to end.
        go_on: set when what has the prompt "wait" may end.
        signature: of what it draws.
        is_well: whether it says that it can draw.
        losses: how often what has the prompt "lose" is lost.
    """

    def __init__(self, losses: int = 1, signature: Signature = SIGNATURE) -> None:
        self.signature = signature
        self.drawn: list[str] = []
        self.orders: list[Order] = []
        self.stopped: list[int] = []
        self.go_on = asyncio.Event()
        self.is_well = True
        self.losses = losses

    async def ready(self) -> Ready | Failed:
        return Ready(self.signature, (1, 2)) if self.is_well else Failed("gone", "it is not well")

    async def draw(self, order: Order) -> AsyncIterator[Progress | Outcome]:
        prompt = order.arguments["prompt"]
        self.drawn.append(prompt)
        self.orders.append(order)
        if prompt == "lose" and self.losses:
            self.losses -= 1
            raise LostError("the process that was drawing has died")
        if prompt == "unforeseen":
            raise KeyError("nobody has thought of this")
        for word in ("refused", "memory", "gone", "error"):
            if prompt == word:
                yield Failed(word, f"because of {word}")  # type: ignore[arg-type]
                return
        yield Progress(0, 1, 2, ("full",))
        while prompt == "wait" and not self.go_on.is_set():
            if order.number in self.stopped:
                yield Failed("stopped", "the generation was ended")
                return
            await asyncio.sleep(0.01)
        if "num_frames" in self.signature.names:
            yield Drawn((FILE + str(order.frames_per_second).encode(),), "mp4", 8, 4, 0.5, {"full": 2}, 7)
            return
        yield Drawn((picture(),) * order.arguments.get("num_images_per_prompt", 1), "png", 8, 4, 0.5, {"full": 2}, 7)

    async def stop(self, number: int) -> None:
        self.stopped.append(number)


def front_of(*replicas: Any, waiting: int = LIMITS.waiting) -> Front:
    return Front(replicas, waiting, Metrics())
