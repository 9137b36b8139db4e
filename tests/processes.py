"""Run a function on several ranks: processes with one thread each, failures brought home, a limit on every wait."""

import io
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.preloaded"])


class RankError(Exception):
    """A rank failed; the message holds its traceback."""


def run_ranks(
    world_size: int, function: Callable[..., Any], *args: Any, limit: float = 120.0, joined: bool = True
) -> list[Any]:
    """Call `function(rank, *args)` on `world_size` ranks and return what each returned.

    With `joined` a gloo process group exists when the function is called; without, only the
    environment that torchrun would set. A rank that dies leaves a RankError in its place; so does
    one that is not done within `limit` seconds. Raises the first RankError if `joined`.
    """
    with tempfile.TemporaryDirectory() as folder:
        pairs = [_CONTEXT.Pipe(duplex=False) for _ in range(world_size)]
        workers = [
            _CONTEXT.Process(
                target=_work, args=(rank, world_size, f"{folder}/store", pairs[rank][1], function, args, joined)
            )
            for rank in range(world_size)
        ]
        for worker in workers:
            worker.start()
        for _, sender in pairs:
            sender.close()
        results = _collect([receiver for receiver, _ in pairs], limit)
        for worker in workers:
            worker.join(timeout=5)
            if worker.is_alive():
                worker.kill()
                worker.join()
    if joined:
        for result in results:
            if isinstance(result, RankError):
                raise result
    return results


def _collect(receivers: list[Connection], limit: float) -> list[Any]:
    end = time.monotonic() + limit
    results: list[Any] = [RankError(f"rank {rank} was not done in {limit:g} s") for rank in range(len(receivers))]
    open_ends = dict(zip(receivers, range(len(receivers)), strict=True))
    while open_ends and time.monotonic() < end:
        for receiver in wait(list(open_ends), timeout=end - time.monotonic()):
            rank = open_ends.pop(receiver)  # type: ignore[call-overload]
            try:
                # Bytes, not shared memory: the rank may be gone before its tensors are read.
                done, value = torch.load(io.BytesIO(receiver.recv_bytes()), weights_only=False)  # type: ignore[union-attr]
                results[rank] = value if done else RankError(f"rank {rank}:\n{value}")
            except EOFError:
                results[rank] = RankError(f"rank {rank} died")
    return results


def _send(sender: Connection, done: bool, value: Any) -> None:
    buffer = io.BytesIO()
    torch.save((done, value), buffer)
    sender.send_bytes(buffer.getvalue())


def _work(
    rank: int,
    world_size: int,
    store: str,
    sender: Connection,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    joined: bool,
) -> None:
    torch.set_num_threads(1)
    port = 20000 + os.getppid() % 20000
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    try:
        if joined:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{store}",
                rank=rank,
                world_size=world_size,
                timeout=timedelta(seconds=60),
            )
        _send(sender, True, function(rank, *args))
    except BaseException:  # noqa: BLE001 (a failure of any kind is brought home and told there)
        _send(sender, False, traceback.format_exc())
    finally:
        if joined and dist.is_initialized():
            dist.destroy_process_group()
