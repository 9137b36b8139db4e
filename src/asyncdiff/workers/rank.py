"""What runs in every process: a pipeline with AsyncDiff attached, which does what it is told and answers in bytes.

Nothing here knows who started the process, or how the bytes travel.
"""

import dataclasses
import inspect
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from asyncdiff.api import AsyncDiff
from asyncdiff.errors import ConfigurationError
from asyncdiff.exchange.world import local_device
from asyncdiff.loading import load_pipeline
from asyncdiff.plain import to_text
from asyncdiff.request.signature import Signature
from asyncdiff.timeline import Row, row_of
from asyncdiff.workers.answer import Answer, failure_of, remarks
from asyncdiff.workers.kinds import Kinds
from asyncdiff.workers.parcel import generators_in, pack, unpack
from asyncdiff.workers.progress import Events, Step, Telling
from asyncdiff.workers.tasks import CALLBACK, Description, Drawing, Drawn, Order, Use

# Of a pipeline: what is done for it here, or would be done by all processes to one file.
_NOT_OFFERED = frozenset({"progress_bar", "push_to_hub", "save_lora_weights", "save_pretrained", "to"})


class Rank:
    """One process. Every method but `told` and `stop` is called by one thread, and answers with a packed `Answer`."""

    def __init__(self) -> None:
        self._events = Events()
        self._telling = Telling(self._events, Kinds(lambda: self._attached.counts()))
        self._rank = 0
        self._has_drawn = False
        self._row: Row | None = None

    def start(self, order: bytes) -> bytes:
        """Load the pipeline of a packed `Order`, and attach AsyncDiff; the result is a `Description`."""
        return self._answer(lambda: self._start(unpack(order)))

    def draw(self, drawing: bytes) -> bytes:
        """Carry a packed `Drawing` out; the result is `Drawn` on rank 0, None on the others."""
        return self._answer(lambda: self._draw(unpack(drawing, self._device)))

    def use(self, use: bytes) -> bytes:
        """Carry a packed `Use` out; the result is the method's, on rank 0."""
        return self._answer(lambda: self._use(unpack(use, self._device)))

    def attach(self, settings: bytes) -> bytes:
        """Attach AsyncDiff with other packed settings, by name; where that fails, those before stay."""
        return self._answer(lambda: self._attach_anew(unpack(settings)))

    def report(self) -> bytes:
        """What the last generation did, as text."""
        return self._answer(lambda: to_text(self._attached.report()))

    def row(self) -> bytes:
        """What this rank did in the last call, if that was timed: a `Row`."""
        return self._answer(lambda: self._row)

    def told(self, seconds: float) -> bytes:
        """What has happened since this was asked before, as soon as there is something: packed `News`."""
        return pack(self._events.wait(seconds))

    def stop(self) -> None:
        """End the generation that is running."""
        self._attached.stop()

    def _start(self, order: Order) -> Description:
        self._rank, self._order = order.rank, order
        if Path(order.folder).is_dir():
            os.chdir(order.folder)
        os.environ.update(RANK=str(order.rank), WORLD_SIZE=str(order.size), LOCAL_RANK="0")
        os.environ.update(MASTER_ADDR=order.address, MASTER_PORT=str(order.port))
        self._device = local_device()
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        else:
            torch.set_num_threads(1)
        # Advice then goes to the log, whose lines are told where the pipeline was called.
        warnings.filterwarnings("error", category=UserWarning, module=r"asyncdiff\.")
        self._is_hollow = order.settings["shard"] and order.size > 1
        self._load()
        description = describe(self._pipe)
        self._attach()
        return description

    def _load(self) -> None:
        order, device = self._order, self._device
        if order.settings["shard"] and order.size > 1 and not self._is_hollow:
            device = torch.device("cpu")  # from where each rank takes its part
        self._pipe = load_pipeline(order.model, order.dtype, device, order.allow_pickle, self._is_hollow)
        bars = {"disable": True} if order.rank else self._telling.config()
        self._pipe.set_progress_bar_config(**bars)

    def _attach(self) -> None:
        self._attached = AsyncDiff(self._pipe, **self._order.settings)

    def _attach_anew(self, settings: Mapping[str, Any]) -> None:
        before = self._order
        self._attached.disable()
        self._order = dataclasses.replace(before, settings=settings)
        try:
            self._attach()
        except BaseException:
            self._order = before
            self._attach()
            raise

    def _detach(self) -> None:
        """Detach from a pipeline whose weights are all there."""
        was_hollow, self._is_hollow = self._is_hollow, False
        log = logging.getLogger(AsyncDiff.__module__)
        log.disabled = was_hollow  # it would advise to load the pipeline again
        self._attached.disable()
        log.disabled = False
        if was_hollow:
            self._load()

    def _draw(self, drawing: Drawing) -> Drawn | None:
        self._take_over(drawing.random_state)
        arguments = dict(drawing.arguments)
        if drawing.is_watched:
            arguments[CALLBACK] = self._teller(drawing.sends_tensors)
        self._has_drawn, self._row = True, None
        self._telling.begin()
        self._events.begin()
        try:
            output = self._timed(arguments) if drawing.is_timed else self._pipe(**arguments)
        finally:
            news = self._events.end()
        if self._rank:
            return None
        states = tuple(_bytes_of(generator.get_state()) for generator in generators_in(drawing.arguments))
        return Drawn(output, _bytes_of(torch.get_rng_state()), states, news)

    def _timed(self, arguments: Mapping[str, Any]) -> Any:
        with self._attached.noted() as events:
            output = self._pipe(**arguments)
        self._row = row_of(self._rank, events)
        return output

    def _take_over(self, random_state: bytes) -> None:
        torch.set_rng_state(torch.frombuffer(bytearray(random_state), dtype=torch.uint8))
        if self._device.type == "cuda":
            torch.cuda.manual_seed(int(torch.randint(2**62, ())))

    def _teller(self, sends_tensors: bool) -> Callable[..., dict[str, Any]]:
        """A callback that tells of every step on rank 0, and changes nothing."""

        def tell(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            del pipe
            if not self._rank:
                copied = {name: value.detach().clone() for name, value in tensors.items()} if sends_tensors else {}
                self._events.add_step(Step(index, timestep, copied))
            return tensors

        return tell

    def _use(self, use: Use) -> Any:
        # Weights that are still to be divided may be changed before; then they cannot be left in their files.
        is_divided = self._order.settings["shard"] and not self._has_drawn and not use.part
        if is_divided:
            self._detach()
        try:
            owner = getattr(self._pipe, use.part) if use.part else self._pipe
            result = getattr(owner, use.name)(*use.args, **use.kwargs)
        except ConfigurationError as error:
            if self._order.settings["shard"] and self._has_drawn:  # what it advises is for who has the pipeline
                raise ConfigurationError(
                    f"{use.name}: with shard=True each process has a part of the denoiser's weights since the first "
                    "picture, and they cannot be changed any more: open other Workers, and call it before"
                ) from error
            raise
        finally:
            if is_divided:
                self._attach()
        return None if self._rank or isinstance(result, (DiffusionPipeline, nn.Module)) else result

    def _answer(self, work: Callable[[], Any]) -> bytes:
        with remarks() as heard:
            try:
                answer = Answer(work())
            except BaseException as error:  # noqa: BLE001 (told to whoever asked)
                answer = Answer(None, failure_of(self._rank, error))
        told = () if self._rank else tuple(heard)
        try:
            return pack(Answer(answer.result, answer.failure, told))
        except ConfigurationError as error:  # what the pipeline returns is no data
            return pack(Answer(None, failure_of(self._rank, error), told))


def describe(pipe: Any) -> Description:
    """What a pipeline can be asked for."""
    known = frozenset(dir(nn.Module))
    parts = {name: part for name, part in getattr(pipe, "components", {}).items() if part is not None}
    methods = {name: _methods_of(part, known) for name, part in parts.items()}
    return Description(Signature.of(pipe), {"": _methods_of(pipe, _NOT_OFFERED), **methods})


def _methods_of(owner: Any, left_out: frozenset[str]) -> tuple[str, ...]:
    """The names of an object's methods that change it or tell of it."""
    names = (name for name in dir(type(owner)) if not name.startswith("_") and name not in left_out)
    return tuple(name for name in names if inspect.isfunction(inspect.getattr_static(type(owner), name)))


def _bytes_of(state: torch.Tensor) -> bytes:
    return state.numpy().tobytes()
