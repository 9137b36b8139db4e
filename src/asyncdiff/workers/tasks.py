"""What processes are told to do, and what they come to: plain data, which travels as parcels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asyncdiff.request.signature import Signature
from asyncdiff.workers.progress import News

CALLBACK = "callback_on_step_end"
TENSORS_OF_CALLBACK = "callback_on_step_end_tensor_inputs"


@dataclass(frozen=True)
class Order:
    """What a process is to be.

    Attributes:
        rank, size: its number, and how many there are.
        address, port: where the ranks meet.
        folder: in which relative paths begin, if it is there.
        model, dtype, allow_pickle: as of `asyncdiff.load`.
        settings: those of `AsyncDiff`.
    """

    rank: int
    size: int
    address: str
    port: int
    folder: str
    model: str
    dtype: str | None
    allow_pickle: bool
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Description:
    """What a pipeline can be asked for.

    Attributes:
        signature: of its call.
        methods: its own, and those of its parts by the part's name; its own have no name.
    """

    signature: Signature
    methods: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Drawing:
    """A call of the pipeline.

    Attributes:
        arguments: by name.
        random_state: torch's own, for what is drawn without a generator.
        is_watched: whether steps are told.
        sends_tensors: and with them the tensors of a callback.
        is_timed: whether every rank notes what it does, and when.
    """

    arguments: Mapping[str, Any]
    random_state: bytes
    is_watched: bool
    sends_tensors: bool
    is_timed: bool = False


@dataclass(frozen=True)
class Drawn:
    """What a call has come to.

    Attributes:
        output: what the pipeline has returned.
        random_state, generators: the states of torch's own generator, and of those in the arguments, afterwards.
        news: what was not told before.
    """

    output: Any
    random_state: bytes
    generators: tuple[bytes, ...]
    news: News


@dataclass(frozen=True)
class Use:
    """A call of a method of the pipeline or, if it is named, of one of its parts."""

    part: str
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
