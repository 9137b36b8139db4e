"""The processes, as Ray starts them and tells of them. The only module that knows Ray."""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from asyncdiff.collecting import uncollected
from asyncdiff.errors import ConfigurationError, ExchangeError
from asyncdiff.workers.answer import Answer
from asyncdiff.workers.parcel import unpack
from asyncdiff.workers.progress import News

# Where a Ray that is started here listens for its own processes. Ray replaces 127.0.0.1 by the machine's address in the
# network; not every system has other addresses of its own.
_LOOPBACK = "127.0.0.2" if sys.platform == "linux" else None
# No statistics for its makers, no advice about a change that does not concern us, and processes that are worth as much
# as those of the caller.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
}
_CONTROL = "control"
_CONTROL_THREADS = 2  # one may be listening
_SECONDS_FOR_ROOM = 60.0
_SECONDS_TO_CONNECT = 10.0
_SECONDS_TO_START = 300.0  # libraries may be read from a slow disk
_SECONDS_BETWEEN_NEWS = 0.1  # every message takes a little of rank 0's time
_SECONDS_OF_LISTENING = 1.0
_SECONDS_BETWEEN_STOPS = 0.5
_SECONDS_TO_END = 10.0
_SECONDS_TO_ANSWER = 10.0


@dataclass(frozen=True)
class Seat:
    """Where a process is.

    Attributes:
        node: Ray's name for the machine.
        address: of it.
        port: a free one on it.
        pid: the process's number there.
    """

    node: str
    address: str
    port: int
    pid: int


class _RankActor:
    """A `Rank` in a process. Whoever starts it imports this module, but nothing that a pipeline needs."""

    def __init__(self) -> None:
        with uncollected():
            from asyncdiff.workers.rank import Rank

        self._rank = Rank()

    def do(self, name: str, *given: Any) -> Any:
        """Call a method of the `Rank`."""
        return getattr(self._rank, name)(*given)

    def seat(self) -> tuple[str, str, int, int]:
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        address: Any = ray.util.get_node_ip_address  # has no types
        return ray.get_runtime_context().get_node_id(), address(), port, os.getpid()

    def is_here(self) -> bool:
        return True


class GoneError(ExchangeError):
    """A process has died, or gives no sign of life.

    Attributes:
        lacked_memory: whether Ray has ended it, before its machine ran out of memory.
    """

    def __init__(self, text: str, lacked_memory: bool = False) -> None:
        super().__init__(text)
        self.lacked_memory = lacked_memory


class Cluster:
    """A use of Ray: the one that this process is connected to, or one that starts here and ends with its last use.

    Args:
        devices: how many devices are wanted.
        address: of a Ray that `ray start` has started, or "auto"; None for one of this machine's own.

    Raises:
        ConfigurationError: there is no Ray at the address, or it has not as many devices.
    """

    _uses = 0  # of a Ray that was started here

    def __init__(self, devices: int, address: str | None) -> None:
        if not ray.is_initialized():
            _connect(devices, address)
            self._is_own = True
        else:
            self._is_own = Cluster._uses > 0
        Cluster._uses += self._is_own
        ask: Any = ray.cluster_resources  # has no types
        resources = ask()
        self.has_gpus = resources.get("GPU", 0) > 0
        kind, name = ("GPU", "GPU") if self.has_gpus else ("CPU", "CPU core")
        found = int(resources.get(kind, 0))
        if found < devices:
            self.close()
            raise ConfigurationError(
                f"devices={devices}, but Ray has {found} {name}{'s' * (found != 1)}; use fewer, or add a machine: "
                "ray start --address=<the first one's>:6379"
            )

    def close(self) -> None:
        """Use it no more."""
        if self._is_own:
            self._is_own = False
            Cluster._uses -= 1
            if not Cluster._uses:
                ray.shutdown()


class Team:
    """The processes of one pipeline, rank by rank.

    Args:
        devices: how many there are: a GPU each, or a CPU core each.
        has_gpus: which of the two.

    Raises:
        ExchangeError: they have not come up in time.
    """

    def __init__(self, devices: int, has_gpus: bool) -> None:
        bundle = {"CPU": 1.0, **({"GPU": 1.0} if has_gpus else {})}
        self._group = placement_group([bundle] * devices, strategy="PACK")
        self._actors: list[Any] = []
        self.seats: list[Seat] = []
        try:
            if not self._group.wait(_SECONDS_FOR_ROOM):
                raise ExchangeError(
                    f"Ray has made no room for {devices} processes within {_SECONDS_FOR_ROOM:g} s: something else uses "
                    "its devices"
                )
            self._start(devices, has_gpus)
        except BaseException:
            self.end()
            raise

    def begin(self, name: str, given: Sequence[tuple[bytes, ...]]) -> "Task":
        """Have every process do one thing.

        Args:
            name: of a method of `Rank`.
            given: its arguments, rank by rank.
        """
        calls = [actor.do.remote(name, *own) for actor, own in zip(self._actors, given, strict=True)]
        return Task(self, name == "draw", calls)

    def listen(self) -> Any:
        """What will be what rank 0 tells next."""
        return self._actors[0].do.options(concurrency_group=_CONTROL).remote("told", _SECONDS_OF_LISTENING)

    def stop(self) -> list[Any]:
        """Tell all processes to end the generation that is running; what will be their answers."""
        return [actor.do.options(concurrency_group=_CONTROL).remote("stop") for actor in self._actors]

    def is_alive(self) -> bool:
        """Whether all processes answer; between two tasks."""
        calls = [actor.is_here.options(concurrency_group=_CONTROL).remote() for actor in self._actors]
        try:
            return all(ray.get(calls, timeout=_SECONDS_TO_ANSWER))
        except RayError:
            return False

    def name(self, rank: int) -> str:
        """A process, as an error calls it."""
        seat = self.seats[rank]
        return f"rank {rank} (process {seat.pid} on {seat.address})"

    def end(self) -> None:
        """End all processes, and wait until those on this machine are gone."""
        actors, self._actors = self._actors, []
        for actor in actors:
            with contextlib.suppress(RayError):
                ray.kill(actor)
        with contextlib.suppress(RayError):
            remove_placement_group(self._group)
        here = ray.get_runtime_context().get_node_id()
        end = time.monotonic() + _SECONDS_TO_END
        for seat in self.seats:
            while seat.node == here and _is_running(seat.pid) and time.monotonic() < end:
                time.sleep(0.01)

    def _start(self, devices: int, has_gpus: bool) -> None:
        remote: Any = ray.remote  # its types leave concurrency groups out
        groups = {_CONTROL: _CONTROL_THREADS}
        kind = remote(num_cpus=1, num_gpus=int(has_gpus), concurrency_groups=groups, max_restarts=0)(_RankActor)
        for place in range(devices):
            where = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=place)
            self._actors.append(kind.options(scheduling_strategy=where).remote())
        try:
            told = ray.get([actor.seat.remote() for actor in self._actors], timeout=_SECONDS_TO_START)
        except RayError as error:
            raise ExchangeError(f"the {devices} processes have not come up: {_reason(error)}") from error
        seats = [Seat(*each) for each in told]
        # Neighbours in the order of ranks exchange most: machine by machine, and first where the caller is.
        here = ray.get_runtime_context().get_node_id()
        order = sorted(range(devices), key=lambda place: (seats[place].node != here, seats[place].node))
        self._actors = [self._actors[place] for place in order]
        self.seats = [seats[place] for place in order]


class Task:
    """Something that all processes are doing.

    Args:
        team: the processes.
        can_be_stopped: whether it is a generation, which ends when it is told to.
        calls: what will be the answers, rank by rank.
    """

    def __init__(self, team: Team, can_be_stopped: bool, calls: Sequence[Any]) -> None:
        self._team = team
        self._can_be_stopped = can_be_stopped
        self._pending = {call: rank for rank, call in enumerate(calls)}
        self._size = len(calls)
        self._answers: dict[int, Answer] = {}
        self._pulse = team.listen()

    def wait(self, timeout: float, patience: float, on_news: Callable[[News], None] | None) -> list[Answer | None]:
        """The answers, rank by rank; None of those that do not answer although another has failed, or is long done.

        Args:
            timeout: seconds in which rank 0 gives a sign of life, and in which, when one is done, the others are.
            patience: seconds that the others have when one has failed.
            on_news: told what rank 0 tells meanwhile.

        Raises:
            GoneError: a process has died, or none answers.
        """
        heard = time.monotonic()
        while self._pending:
            if self._collect(_SECONDS_BETWEEN_NEWS):
                heard = time.monotonic()
                continue
            ready, _ = ray.wait([self._pulse, *self._pending], timeout=_SECONDS_OF_LISTENING)
            if self._pulse in ready:
                heard = heard if self._answers else time.monotonic()
                self._tell(on_news)
                self._pulse = self._team.listen()
            has_failed = any(answer.failure is not None for answer in self._answers.values())
            if time.monotonic() - heard > (patience if has_failed else timeout):
                break
        if not self._answers:
            raise GoneError(f"{self._team.name(0)} gives no sign of life within {timeout:g} s")
        if not self._pending:
            self._tell(on_news)
        return [self._answers.get(rank) for rank in range(self._size)]

    def stop(self, timeout: float) -> bool:
        """End it; whether that can be, and all processes have come to an end within the time."""
        if not self._can_be_stopped:
            return False
        end = time.monotonic() + timeout
        told: list[Any] = []
        try:
            while self._pending and time.monotonic() < end:
                told += self._team.stop()  # again and again: it may not have begun yet
                self._collect(_SECONDS_BETWEEN_STOPS)
            if not self._pending:
                self._tell(None)
            ray.get(told, timeout=_SECONDS_TO_END)  # none of them may end the next one
        except (RayError, GoneError):
            return False
        return not self._pending

    def _collect(self, seconds: float) -> bool:
        """Wait for one more answer; whether there is one."""
        ready, _ = ray.wait(list(self._pending), timeout=seconds)
        for call in ready:
            rank = self._pending.pop(call)
            self._answers[rank] = unpack(self._get(call, rank))
        return bool(ready)

    def _tell(self, on_news: Callable[[News], None] | None) -> None:
        """Pass on what rank 0 tells; also the last of it, which must not be lost, and not belong to the next task."""
        news = self._get(self._pulse, 0)
        if on_news is not None:
            on_news(unpack(news))

    def _get(self, call: Any, rank: int) -> Any:
        try:
            return ray.get(call, timeout=_SECONDS_TO_END)
        except RayError as error:
            text = f"{self._team.name(rank)} has died or cannot be reached: {_reason(error)}"
            raise GoneError(text, isinstance(error, OutOfMemoryError)) from error


def _connect(devices: int, address: str | None) -> None:
    """Start a Ray of this machine's own, or connect to one; nothing of its log is for the user."""
    own: dict[str, Any] = {}
    if address is not None:
        _check_address(address)
    else:
        own = {"num_cpus": max(devices, os.cpu_count() or 1), "include_dashboard": False, "_node_ip_address": _LOOPBACK}
    try:
        with environment(_ENVIRONMENT), _undisturbed():
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except KeyboardInterrupt:
        ray.shutdown()
        raise
    except Exception as error:  # (Ray has no class for a node that is too slow to start)
        where = "of its own cannot be started" if address is None else f"answers at address={address!r}"
        raise ConfigurationError(
            f"no Ray {where}: {_reason(error)}; several machines: ray start --head on the first"
        ) from error


@contextlib.contextmanager
def environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Variables for the processes that are started meanwhile; one that has a value keeps it."""
    missing = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Put Ctrl-C off to the end: a Ray that has half begun can neither be used nor ended. Not the second one.

    What somebody has set for SIGTERM stays: Ray sets its own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # no signals come here
        return
    before, came = signal.getsignal(signal.SIGINT), False
    term = signal.getsignal(signal.SIGTERM)

    def note(number: int, frame: Any) -> None:
        nonlocal came
        came = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if term not in (signal.SIG_DFL, None):
            signal.signal(signal.SIGTERM, term)
    if came:
        raise KeyboardInterrupt


def _check_address(address: str) -> None:
    """Whether somebody answers there, which Ray would take minutes to find out."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        return  # "auto", for instance
    try:
        socket.create_connection((host, int(port)), _SECONDS_TO_CONNECT).close()
    except (OSError, OverflowError) as error:
        raise ConfigurationError(
            f"no Ray answers at address={address!r} ({error}); start one with: ray start --head"
        ) from error


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _reason(error: Exception) -> str:
    """An error of Ray's in one line: its first sentences are those that count."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
