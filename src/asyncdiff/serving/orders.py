"""What the service tells a replica, and what it hears from it: records that travel as parcels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from asyncdiff.lora import Lora
from asyncdiff.made.files import FRAMES_PER_SECOND
from asyncdiff.request.signature import Signature
from asyncdiff.timeline import Timeline

Why = Literal["refused", "memory", "gone", "stopped", "late", "error"]
"""Why nothing was drawn: the request cannot be met; it needs too much memory; processes have died; it was ended; or an
error that nobody has foreseen."""
Form = Literal["png", "mp4", "gif"]


@dataclass(frozen=True)
class Pipeline:
    """What every replica runs: the arguments of `Workers`, and the LoRA files that are put on."""

    model: str
    devices: int
    dtype: str | None
    allow_pickle: bool
    settings: Mapping[str, Any]
    loras: tuple[Lora, ...] = ()


@dataclass(frozen=True)
class Order:
    """What is to be drawn.

    Attributes:
        number: its own.
        arguments: of the pipeline's call, but for the generator.
        seed: of the generator.
        settings: of AsyncDiff, all that are not the default ones.
        is_timed: whether it is told what every rank did, and when.
        frames_per_second: of a video's file.
    """

    number: int
    arguments: Mapping[str, Any]
    seed: int
    settings: Mapping[str, Any]
    is_timed: bool = False
    frames_per_second: int = FRAMES_PER_SECOND


@dataclass(frozen=True)
class Progress:
    """How far it is: steps that are done, of so many, if that is known, of one of the pipeline's bars.

    Attributes:
        kinds: of the steps that are done; None where a step called no denoiser.
    """

    bar: int
    done: int
    total: int | None
    kinds: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class Drawn:
    """What was drawn.

    Attributes:
        files: of pictures (PNG), or of a video.
        form: what they are.
        width, height: of each, in pixels.
        seconds: that it took.
        steps: how many there were of each kind, over all denoisers.
        bytes_sent: between the ranks, by rank 0.
        timeline: what every rank did, and when, if the order asks for it.
    """

    files: tuple[bytes, ...]
    form: Form
    width: int
    height: int
    seconds: float
    steps: Mapping[str, int]
    bytes_sent: int
    timeline: Timeline | None = None


@dataclass(frozen=True)
class Failed:
    """Why nothing was drawn, and a sentence for whoever has asked."""

    why: Why
    text: str


@dataclass(frozen=True)
class Ready:
    """A replica that can draw.

    Attributes:
        signature: of the pipeline's call.
        processes: their numbers on their machines, rank by rank.
    """

    signature: Signature
    processes: tuple[int, ...]


Outcome = Drawn | Failed
