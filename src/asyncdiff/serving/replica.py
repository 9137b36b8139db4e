"""A replica: the Workers of one pipeline, which draw one order at a time."""

import asyncio
import contextlib
import io
import logging
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from asyncdiff.errors import AsyncDiffError, ConfigurationError, ExchangeError
from asyncdiff.lora import put_on
from asyncdiff.made.files import can_write_mp4, write_video
from asyncdiff.made.media import Made, kind_by
from asyncdiff.made.output import made_by
from asyncdiff.report import Report
from asyncdiff.request.signature import Signature
from asyncdiff.request.words import advice_on
from asyncdiff.serving.orders import Drawn, Failed, Form, Order, Outcome, Pipeline, Progress, Ready
from asyncdiff.workers.parcel import pack, unpack
from asyncdiff.workers.progress import Events, News
from asyncdiff.workers.workers import Workers

logger = logging.getLogger(__name__)

_SECONDS_OF_LISTENING = 0.2
# What torch says on a CPU, for which it has no class.
_NO_MEMORY = "can't allocate memory"
_TOO_LARGE = Failed(
    "memory", "there is not enough memory for this request; ask for a smaller size, or for fewer at once"
)
_SOUND = "makes sound, which this service does not send: use `asyncdiff generate`, or Workers"
_ENDED = Failed("stopped", "the generation was ended")


class Drawer:
    """What runs in a replica's process. What uses the ranks' processes does so in turns, in threads beside the loop.

    Args:
        pipeline: a packed `Pipeline`.
    """

    def __init__(self, pipeline: bytes) -> None:
        self._pipeline: Pipeline = unpack(pipeline)
        self._workers: Workers | None = None
        self._turn = asyncio.Lock()
        self._events = Events()
        self._rest = News()  # of the last generation, what was not told before its end
        self._number = -1
        self._stopped = False

    async def ready(self) -> bytes:
        """Start the processes that are not there; packed `Ready`, or `Failed`."""
        return pack(await self._in_turn(self._ready))

    async def draw(self, parcel: bytes) -> AsyncIterator[bytes]:
        """Draw a packed `Order`: packed `Progress`, and at last `Drawn` or `Failed`."""
        order: Order = unpack(parcel)
        self._number, self._stopped = order.number, False
        self._events.begin()
        work = asyncio.create_task(self._in_turn(self._draw, order))
        while not work.done():
            news = await asyncio.to_thread(self._events.wait, _SECONDS_OF_LISTENING)
            for progress in _progress(news):
                yield pack(progress)
        outcome = await work
        for progress in _progress(self._rest):
            yield pack(progress)
        yield pack(outcome)

    async def stop(self, number: int) -> None:
        """End the generation of this order."""
        if number == self._number:
            self._stopped = True
            if self._workers is not None:
                self._workers.stop()

    async def _in_turn(self, work: Callable[..., Any], *given: Any) -> Any:
        async with self._turn:
            return await asyncio.to_thread(work, *given)

    def _ready(self) -> Ready | Failed:
        try:
            workers = self._opened()
            workers.revive()
        except AsyncDiffError as error:
            return Failed("refused" if isinstance(error, ValueError) else "gone", str(error))
        except Exception as error:  # (whatever it is, whoever asks for the replica's health should know)
            logger.exception("the replica cannot be started")
            return Failed("error", f"the replica cannot be started ({type(error).__name__}); its log says why")
        return Ready(workers.signature, workers.processes)

    def _opened(self) -> Workers:
        if self._workers is None:
            own = self._pipeline
            workers = Workers(own.model, own.devices, dtype=own.dtype, allow_pickle=own.allow_pickle, **own.settings)
            try:
                _check_kind(workers.signature)
                put_on(workers, own.loras)
            except BaseException:
                workers.close()
                raise
            self._workers = workers
        return self._workers

    def _draw(self, order: Order) -> Outcome:
        try:
            return self._drawn(order)
        except (MemoryError, torch.OutOfMemoryError) as error:
            logger.warning("order %d: %s", order.number, error)
            return _TOO_LARGE
        except ExchangeError as error:
            logger.warning("order %d: %s", order.number, error)
            if self._stopped:
                return _ENDED
            return Failed("gone", "a process that was drawing has died")
        except ValueError as error:
            return Failed("refused", str(error))
        except Exception as error:  # (one request fails, whatever it is; the service lives)
            if _NO_MEMORY in str(error):
                return _TOO_LARGE
            logger.exception("order %d", order.number)
            said = f"what was asked for could not be made ({type(error).__name__})"
            return Failed("error", ". ".join(filter(None, (said, advice_on(order.arguments)))))
        finally:
            self._rest = self._events.end()

    def _drawn(self, order: Order) -> Outcome:
        begin = time.perf_counter()
        workers = self._opened()
        if self._stopped:
            return _ENDED
        workers.attach(**order.settings)
        workers.set_progress_bar_config(disable=True)
        workers.tell_progress(self._events.add_bar)
        generator = torch.Generator().manual_seed(order.seed)
        with workers.timed() if order.is_timed else contextlib.nullcontext():
            output = workers(**order.arguments, generator=generator)
        made = made_by(workers, output)
        report = workers.report()
        form, files = _files(made, order.frames_per_second)
        first = made.frames[0]
        return Drawn(
            files,
            form,
            first.width,
            first.height,
            time.perf_counter() - begin,
            _steps(report),
            report.bytes_sent,
            workers.timeline() if order.is_timed else None,
        )


def _check_kind(signature: Signature) -> None:
    """
    Raises:
        ConfigurationError: what the pipeline makes has no route.
    """
    if kind_by(signature) == "sound":
        raise ConfigurationError(f"{signature.pipeline} {_SOUND}")


def _progress(news: News) -> Iterator[Progress]:
    for bar in news.bars:
        yield Progress(bar.number, bar.done, bar.total, bar.kinds)


def _files(made: Made, frames_per_second: int) -> tuple[Form, tuple[bytes, ...]]:
    """What is sent.

    Raises:
        ConfigurationError: it is sound alone.
    """
    if made.kind == "sound":
        raise ConfigurationError(f"the pipeline {_SOUND}")
    if made.kind == "picture":
        return "png", tuple(map(_png, made.pictures))
    form: Form = "mp4" if can_write_mp4() else "gif"
    with tempfile.TemporaryDirectory(prefix="asyncdiff-") as folder:
        files = [Path(folder, f"{number}.{form}") for number in range(len(made.videos))]
        for file, video in zip(files, made.videos, strict=True):
            write_video(video, file, frames_per_second)
        return form, tuple(file.read_bytes() for file in files)


def _png(picture: Image.Image) -> bytes:
    written = io.BytesIO()
    picture.save(written, "png")
    return written.getvalue()


def _steps(report: Report) -> dict[str, int]:
    """Denoiser calls of each kind."""
    counts: Counter[str] = Counter()
    for denoiser in report.denoisers:
        own = denoiser.counts
        counts.update(full=own.full.total(), round=own.rounds, bridged=own.bridged, stored=own.stored)
    return dict(counts)
