"""One cell of the matrix, run: ranks that are processes, one of which has the fault."""

import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from asyncdiff import AsyncDiff
from asyncdiff.errors import AsyncDiffError
from asyncdiff.exchange.line import Line
from tests.comparison import relative_error
from tests.faults.matrix import LAYOUTS, MARGIN, SETTINGS, STEP_OF, STEPS, TIMEOUT, Cell, Fault, Moment
from tests.processes import RankError, run_ranks
from tests.tiny import PIPELINES, run
from tests.tiny.sd3 import build_sd3, tiny_sd3_transformer

# Of so many layers that in steps of every kind each rank computes something.
SD3 = dataclasses.replace(PIPELINES["sd3"], build=lambda: build_sd3(transformer=tiny_sd3_transformer(num_layers=6)))
_GENERATIONS = 2
_MOST_SECONDS = TIMEOUT + MARGIN + 4  # of a process that was stopped, until it is killed


class _OnPurposeError(Exception):
    """Raised on purpose."""


class Ending(NamedTuple):
    """How a rank came to its end.

    Attributes:
        at: when, in seconds since the epoch.
        error: what it raised, with the kind's name first; empty if nothing.
        pictures: those of the generations that came to their end.
    """

    at: float
    error: str
    pictures: list[Tensor]


class Outcome(NamedTuple):
    """What a cell came to.

    Attributes:
        text: for the table.
        wrong: what should not be; empty if all is well.
        seconds: from the fault to the end of the last rank.
    """

    text: str
    wrong: str
    seconds: float


def try_out(cell: Cell) -> Outcome:
    """Run a cell and judge it."""
    with TemporaryDirectory() as folder:
        mark = Path(folder, "fault")
        endings = run_ranks(cell.world_size, _rank, cell, str(mark), joined=False, limit=_MOST_SECONDS + 40)
        begin = float(mark.read_text()) if mark.exists() else None
    if begin is None:
        return Outcome("–", "the fault did not happen", 0.0)
    survivors = endings[:-1]
    lost = [ending for ending in survivors if isinstance(ending, RankError)]
    if lost:
        return Outcome("lost", f"a rank that had no fault did not come to its end: {lost[0]}", 0.0)
    seconds = max(ending.at for ending in survivors) - begin
    return Outcome(_text(survivors), _wrong(cell, survivors, seconds), seconds)


def _text(survivors: list[Ending]) -> str:
    names = sorted({ending.error.split(":")[0] for ending in survivors})
    return " or ".join(name or "right picture" for name in names)


def _wrong(cell: Cell, survivors: list[Ending], seconds: float) -> str:
    limit = TIMEOUT + MARGIN
    if cell.fault is Fault.SLOW:
        limit += 60  # it only takes long
    if seconds > limit:
        return f"took {seconds:.1f} s"
    bad = cell.world_size - 1
    for rank, ending in enumerate(survivors):
        complete = len(ending.pictures)
        if not ending.error:
            if cell.fault is not Fault.SLOW or complete < _GENERATIONS:
                return f"rank {rank} noticed nothing"
        # Before the ranks know each other, nobody knows who is missing.
        elif cell.fault is Fault.SLOW or (f"rank {bad}" not in ending.error and "joined" not in ending.error):
            return f"rank {rank}: {ending.error}"
        for picture in ending.pictures:
            if relative_error(picture, _expected(cell.layout)) > 1e-5:
                return f"rank {rank} drew another picture"
    return ""


_known: dict[str, Tensor] = {}


def _expected(layout: str) -> Tensor:
    """The picture of one process."""
    if layout not in _known:
        pipe = SD3.build()
        with AsyncDiff(pipe, executor="local", **LAYOUTS[layout], **SETTINGS):
            _known[layout] = run(pipe, SD3, num_inference_steps=STEPS)
    return _known[layout]


def _rank(rank: int, cell: Cell, mark: str) -> Ending:
    """Attach and draw twice; the last rank has the fault."""
    pipe, pictures = SD3.build(), []
    trouble = _Trouble(cell, pipe, mark) if rank == cell.world_size - 1 else None
    error = ""
    try:
        if trouble is not None:
            trouble.at(Moment.ATTACHING)
        async_diff = AsyncDiff(pipe, executor="distributed", **LAYOUTS[cell.layout], **SETTINGS)
        for number in range(_GENERATIONS):
            if trouble is not None and number == 1:
                trouble.at(Moment.BETWEEN)
            arguments = {} if trouble is None else trouble.arguments()
            pictures.append(run(pipe, SD3, num_inference_steps=STEPS, **arguments))
        async_diff.disable()
    except (AsyncDiffError, _OnPurposeError, torch.OutOfMemoryError) as caught:
        error = f"{type(caught).__name__}: {caught}"
    _ended(mark, rank).touch()
    return Ending(time.time(), error, pictures)


def _ended(mark: str, rank: int) -> Path:
    """There when a rank has come to its end."""
    return Path(f"{mark}.ended{rank}")


class _Trouble:
    """Brings the fault about, on the rank that has it."""

    def __init__(self, cell: Cell, pipe: Any, mark: str) -> None:
        self._cell, self._pipe, self._mark = cell, pipe, mark
        self._step = 0
        self._seed = 0
        self._has_happened = False
        pipe.transformer.time_text_embed.register_forward_pre_hook(lambda *given: self._in_unit())
        start = Line.start
        starting = mock.patch.object(Line, "start", lambda *given: (self._in_exchange(), start(*given))[1])
        starting.start()

    def at(self, moment: Moment) -> None:
        """Attaching, or between two generations."""
        if self._cell.moment is moment:
            self._happen()

    def arguments(self) -> dict[str, Any]:
        """Of the pipeline's call."""
        self._step = 0
        is_from_the_start = (
            self._cell.moment in (Moment.FIRST_CALL, Moment.WARM_UP) and self._cell.fault is Fault.INPUTS
        )
        if is_from_the_start:
            self._happen()
        return {"callback_on_step_end": self._at_end_of_step, "generator": torch.Generator().manual_seed(self._seed)}

    def _in_unit(self) -> None:
        if self._has_happened and self._cell.fault is Fault.SLOW:
            time.sleep(0.03)
        in_callbacks = self._cell.fault in (Fault.CALLBACK, Fault.INPUTS)
        if self._is_now() and self._cell.moment is not Moment.EXCHANGE and not in_callbacks:
            self._happen()

    def _in_exchange(self) -> None:
        if self._is_now() and self._cell.moment is Moment.EXCHANGE:
            self._happen()

    def _at_end_of_step(self, pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        # What a callback does before the last step, the last step is given.
        is_edited = self._cell.fault is Fault.INPUTS and STEP_OF.get(self._cell.moment) == index + 1
        self._step = index
        if self._cell.fault is Fault.CALLBACK and self._is_now():
            self._happen()
        if is_edited:
            self._happen()
            values = {"latents": values["latents"] + 0.1}
        self._step = index + 1
        return values

    def _is_now(self) -> bool:
        return STEP_OF.get(self._cell.moment) == self._step

    def _happen(self) -> None:
        if not self._has_happened:
            self._has_happened = True
            Path(self._mark).write_text(str(time.time()))
            _ACTS[self._cell.fault](self)

    def kill(self) -> None:
        os._exit(9)

    def stop(self) -> None:
        """Until all others have come to their end, or ought to have."""
        others = " && ".join(f"test -e {_ended(self._mark, rank)}" for rank in range(self._cell.world_size - 1))
        wait = f"for _ in $(seq {int(_MOST_SECONDS * 10)}); do {others} && break; sleep 0.1; done"
        subprocess.Popen(["sh", "-c", f"{wait}; kill -9 {os.getpid()}"], start_new_session=True)
        os.kill(os.getpid(), signal.SIGSTOP)

    def dawdle(self) -> None:
        time.sleep(1)

    def fail(self) -> None:
        raise _OnPurposeError("on purpose")

    def run_out(self) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def change_weights(self) -> None:
        self._pipe.transformer.transformer_blocks[1].attn.to_q.weight.data.mul_(1.5)

    def change_seed(self) -> None:
        self._seed = 1


_ACTS: dict[Fault, Callable[[_Trouble], None]] = {
    Fault.KILLED: _Trouble.kill,
    Fault.STOPPED: _Trouble.stop,
    Fault.SLOW: _Trouble.dawdle,
    Fault.UNIT: _Trouble.fail,
    Fault.CALLBACK: _Trouble.fail,
    Fault.MEMORY: _Trouble.run_out,
    Fault.WEIGHTS: _Trouble.change_weights,
    Fault.INPUTS: _Trouble.change_seed,
}
