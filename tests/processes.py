"""Run a function on several ranks: processes with one thread each, failures brought home, a limit on every wait.

Ranks that share a process group stay for the next call with as many of them, until one of them fails.
"""

import atexit
import io
import multiprocessing
import os
import pickle
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from typing import Any

import torch
import torch.distributed as dist

# What was forked from a process that has looked at a GPU cannot use it.
_CONTEXT: SpawnContext | ForkServerContext = (
    multiprocessing.get_context("spawn") if torch.cuda.is_available() else multiprocessing.get_context("forkserver")
)


def preload_forkserver() -> None:
    """Let the server from which processes are forked have everything imported; it starts when it is first needed."""
    _CONTEXT.set_forkserver_preload(["tests.preloaded"])


preload_forkserver()

_GROUP_TIMEOUT = timedelta(seconds=60)
_SECONDS_TO_END = 2  # what they return is here by then: ending them sooner loses nothing


class RankError(Exception):
    """A rank failed; the message holds its traceback."""


def run_ranks(
    world_size: int, function: Callable[..., Any], *args: Any, limit: float = 120.0, joined: bool = True
) -> list[Any]:
    """Call `function(rank, *args)` on `world_size` ranks and return what each returned.

    With `joined` a gloo process group exists when the function is called, and the ranks are standing ones: what it
    leaves in them, the next function finds. Without, the ranks are new ones that have only the environment that
    torchrun would set, and they end afterwards. A rank that dies leaves a RankError in its place; so does one that is
    not done within `limit` seconds. Raises the first RankError if `joined`.
    """
    if not joined:
        ranks = _Ranks(world_size, joined=False)
        try:
            return ranks.call(function, args, limit)
        finally:
            ranks.end()
    ranks = _standing.pop(world_size) if world_size in _standing else _Ranks(world_size, joined=True)
    try:
        results = ranks.call(function, args, limit)
        failures = [result for result in results if isinstance(result, RankError)]
        if failures:
            raise failures[0]
    except BaseException:
        ranks.end()  # what failed may have left messages under way: the next function gets others
        raise
    _standing[world_size] = ranks
    return results


class _Ranks:
    """Processes that call functions until they are told to end."""

    def __init__(self, world_size: int, joined: bool) -> None:
        self._folder = tempfile.TemporaryDirectory()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._connections: list[Connection] = []
        self._workers = []
        store = f"{self._folder.name}/store" if joined else None
        for rank in range(world_size):
            own, theirs = _CONTEXT.Pipe()
            worker = _CONTEXT.Process(target=_serve, args=(rank, world_size, theirs, port, store), daemon=True)
            worker.start()
            theirs.close()
            self._connections.append(own)
            self._workers.append(worker)

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], limit: float) -> list[Any]:
        task = pickle.dumps((function, args))
        for connection in self._connections:
            connection.send_bytes(task)
        return _collect(self._connections, limit)

    def end(self) -> None:
        for connection in self._connections:
            connection.close()
        end = time.monotonic() + _SECONDS_TO_END
        for worker in self._workers:
            worker.join(timeout=max(0.0, end - time.monotonic()))
            if worker.is_alive():
                worker.kill()
                worker.join()
        self._folder.cleanup()


_standing: dict[int, _Ranks] = {}


@atexit.register
def _end_all() -> None:
    while _standing:
        _standing.popitem()[1].end()


def _collect(connections: list[Connection], limit: float) -> list[Any]:
    end = time.monotonic() + limit
    results: list[Any] = [RankError(f"rank {rank} was not done in {limit:g} s") for rank in range(len(connections))]
    open_ends = dict(zip(connections, range(len(connections)), strict=True))
    while open_ends and time.monotonic() < end:
        for connection in wait(list(open_ends), timeout=end - time.monotonic()):
            rank = open_ends.pop(connection)  # type: ignore[call-overload]
            try:
                # Bytes, not shared memory: the rank may be gone before its tensors are read.
                done, value = torch.load(io.BytesIO(connection.recv_bytes()), weights_only=False)  # type: ignore[union-attr]
                results[rank] = value if done else RankError(f"rank {rank}:\n{value}")
            except (EOFError, ConnectionResetError):
                results[rank] = RankError(f"rank {rank} died")
    return results


def _send(connection: Connection, done: bool, value: Any) -> None:
    buffer = io.BytesIO()
    torch.save((done, value), buffer)
    connection.send_bytes(buffer.getvalue())


def _serve(rank: int, world_size: int, connection: Connection, port: int, store: str | None) -> None:
    torch.set_num_threads(1)
    random_state = torch.get_rng_state()
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    try:
        while True:
            try:
                task = connection.recv_bytes()
            except EOFError:
                return
            try:
                if store is not None and not dist.is_initialized():
                    dist.init_process_group(
                        "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=_GROUP_TIMEOUT
                    )
                torch.set_rng_state(random_state)  # that of a new process
                function, args = pickle.loads(task)
                _send(connection, True, function(rank, *args))
            except BaseException:  # noqa: BLE001 (a failure of any kind is brought home and told there)
                _send(connection, False, traceback.format_exc())
    finally:
        if store is not None and dist.is_initialized():
            dist.destroy_process_group()
