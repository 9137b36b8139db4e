"""The default process group: the user's own, or one that is started here and ends with its last user."""

import atexit
import logging
import os
from collections import Counter
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from asyncdiff.errors import ConfigurationError, ExchangeError
from asyncdiff.exchange.backends import check_backend
from asyncdiff.exchange.groups import backend_for
from asyncdiff.exchange.meeting import meet, store_of_environment

logger = logging.getLogger(__name__)

# The limit of a group that is started here, and of its store: the user may wait on them for the next prompt, say, and
# our waits have their own. Nobody waits that long, and its milliseconds fit into the 32 bits that a poll has for them.
_NO_LIMIT = timedelta(days=20)

# How many users each group has that was started here.
_users: Counter[dist.ProcessGroup] = Counter()


class Membership:
    """One use of the default process group, which is started if there is none.

    Args:
        device: where this process computes.
        timeout: seconds that waiting for another rank may take.
        backend: what is to move tensors between devices; None for the group's own or, where it is started here, for the
            device's.
        given: a group of the user's, the only one whose ranks take part.

    Raises:
        ExchangeError: not every rank joined in time.
        ConfigurationError: the group that exists has another backend.
    """

    def __init__(
        self, device: torch.device, timeout: float, backend: str | None, given: dist.ProcessGroup | None = None
    ) -> None:
        if dist.is_initialized():
            _check_found(device, backend, given)
        else:
            _start(device, timeout, backend)
        group = dist.group.WORLD
        self._started = group if group in _users else None
        if self._started is not None:
            _users[self._started] += 1

    def leave(self) -> None:
        """Use it no more: what was started here is destroyed by its last user."""
        group, self._started = self._started, None
        if group is None:
            return
        _users[group] -= 1
        if not _users[group]:
            del _users[group]
            _destroy(group)


def not_ready(rank: int, size: int, timeout: float, error: Exception) -> str:
    """The sentence for ranks that do not come together."""
    if "Duplicate GPU" in str(error):
        return (
            f"rank {rank}: two ranks are on one GPU, which NCCL refuses; give every rank a device of its own "
            f"(pipe.to(asyncdiff.local_device())), or use backend='gloo', which is slower: {error}"
        )
    return (
        f"rank {rank}: not all of the {size} ranks joined within {timeout:g} s ({error}); every one of them must "
        "attach AsyncDiff. Where only some are to take part, name them with process_group=; executor='local' computes "
        "in this process alone"
    )


def number_told(name: str, default: int) -> int:
    """A number that torchrun tells in the environment."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ConfigurationError(f"{name} in the environment must be a whole number, as torchrun sets it, not {text!r}")
    return int(text)


def _check_found(device: torch.device, backend: str | None, given: dist.ProcessGroup | None) -> None:
    found = backend_for(device, given)
    if backend not in (None, found):
        raise ConfigurationError(
            f"backend={backend!r}, but the process group that exists moves tensors of {device} with {found!r}; "
            "leave backend out, or start the process group with it"
        )


def _start(device: torch.device, timeout: float, backend: str | None) -> None:
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ExchangeError(
            f"executor='distributed' needs a process group or torchrun's environment ({', '.join(missing)} not set); "
            "start the script with: torchrun --nproc-per-node=N script.py"
        )
    check_backend(backend)
    chosen = backend or ("nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo")
    rank, size = number_told("RANK", 0), number_told("WORLD_SIZE", 1)
    if rank >= size:
        raise ConfigurationError(f"RANK={rank} in the environment, but WORLD_SIZE={size}; ranks count from 0")
    logger.info("rank %d: starting a %s process group of %d ranks", rank, chosen, size)
    # With the device, communicators are made at once, and not one by one when they are first used.
    bound = device if chosen == "nccl" and device.index is not None else None
    try:
        store = store_of_environment(timeout)
        store.set_timeout(timedelta(seconds=timeout))
        number = meet(PrefixStore("asyncdiff", store), rank, range(size), timeout)
        # Keys of a group that was destroyed are still there: every group has its own place.
        place = PrefixStore(f"asyncdiff {number}", store)
        dist.init_process_group(chosen, store=place, rank=rank, world_size=size, timeout=_NO_LIMIT, device_id=bound)
        store.set_timeout(_NO_LIMIT)
    except (RuntimeError, ValueError, ExchangeError) as error:
        raise ExchangeError(not_ready(rank, size, timeout, error)) from error
    _users[_default_group()] = 0
    # A script may end without disable(): a group whose threads still run then aborts the interpreter.
    atexit.register(_destroy, _default_group())


def _default_group() -> dist.ProcessGroup:
    group = dist.group.WORLD
    if group is None:
        raise RuntimeError("there is no process group")
    return group


def _destroy(group: dist.ProcessGroup) -> None:
    """Destroy the default process group if it is this one; the user may have done so."""
    if dist.group.WORLD is group:
        logger.info("rank %d: destroying the process group that was started here", dist.get_rank())
        dist.destroy_process_group()
    atexit.unregister(_destroy)
