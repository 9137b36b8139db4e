"""Process groups of our own beside the default one, among the ranks of a run."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import PrefixStore, Store

from asyncdiff.errors import ConfigurationError
from asyncdiff.exchange.meeting import meet

Teams = Sequence[Sequence[int]]
"""Lists of ranks, every rank in one of them."""


class Groups:
    """Makes the groups of a run, and ends them.

    Among all ranks of the default group, all of them make every group. Among some, only a group's members make it, and
    the others need not know. `torch.distributed.new_group(use_local_synchronization=True)` names such a group by how
    many there are, so that one that is made after another was destroyed finds the other's addresses in the store. Hence
    these get names of their own, by the function with which torch makes all groups.

    Args:
        given: the ranks of the run, as a group of the user's; None for all.
        timeout: seconds that waiting for a rank may take.

    Attributes:
        members: the ranks of the run, as the world counts them.
        rank: this process's, as the world counts.
    """

    def __init__(self, given: dist.ProcessGroup | None, timeout: float) -> None:
        self.rank = dist.get_rank()
        everyone = range(dist.get_world_size())
        self.members = tuple(everyone if given is None else sorted(dist.get_process_group_ranks(given)))
        self._given = None if self.members == tuple(everyone) else given
        self._timeout = timeout

    def meet(self) -> str:
        """Wait until all ranks of the run have come here; returns a name that nothing else among them has.

        Raises:
            ExchangeError: not every rank came in time.
        """
        return self._meet(self.members)

    def make(self, teams: Teams, backend: str, seconds: float, description: str = "") -> dist.ProcessGroup:
        """The group of the own team; every rank of the run must ask for it.

        Args:
            teams: the ranks of each, as the world counts them.
            seconds: the group's own time limit.
        """
        limit, kind = timedelta(seconds=seconds), description or None
        own = next(tuple(team) for team in teams if self.rank in team)
        if self._given is not None:
            if own == self.members and not can_be_made_by_members(backend):
                return self._given
            made = _among_members(own, self.rank, backend, limit, self._meet(own), description)
            try:
                self._meet(own)  # a member that left at once would end connections that another is still making
            except BaseException:
                self.end(made)
                raise
            return made
        mine: dist.ProcessGroup | None = None
        try:
            for team in teams:
                each = dist.new_group(list(team), backend=backend, timeout=limit, group_desc=kind)
                mine = cast(dist.ProcessGroup, each) if self.rank in team else mine
            self._meet(own)  # as above: torch itself does not wait for the others' connections
        except BaseException:
            if mine is not None:
                self.end(mine)
            raise
        return cast(dist.ProcessGroup, mine)

    def end(self, group: dist.ProcessGroup, is_broken: bool = False) -> None:
        """Destroy a group that was made here, unless it went with the default one.

        Args:
            is_broken: whether operations may be outstanding that will never end. Destroying waits for them where a
                backend works on its own, so they are aborted first, as far as torch can do that (not in 2.6).
        """
        try:
            dist.get_rank(group)
        except ValueError:
            return
        if group is self._given:
            return
        if is_broken and hasattr(group, "abort"):
            group.abort()
        dist.destroy_process_group(group)

    def _meet(self, members: tuple[int, ...]) -> str:
        place = f"asyncdiff {' '.join(map(str, members))}"
        number = meet(PrefixStore(place, default_store()), self.rank, members, self._timeout)
        return f"{place} #{number}"


def group_of(process_group: Any) -> dist.ProcessGroup | None:
    """The group that a user means: a group itself, or the one of a mesh's only axis.

    Raises:
        ConfigurationError: it is neither, or this process is not in it.
    """
    if process_group is None:
        return None
    if isinstance(process_group, DeviceMesh):
        if process_group.ndim != 1:
            names = process_group.mesh_dim_names or ("name",)
            raise ConfigurationError(
                f"process_group is a DeviceMesh with {process_group.ndim} axes; give one of them: mesh[{names[-1]!r}]"
            )
        process_group = None if process_group.get_coordinate() is None else process_group.get_group()
    elif process_group is not dist.GroupMember.NON_GROUP_MEMBER and not isinstance(process_group, dist.ProcessGroup):
        raise ConfigurationError(
            "process_group must be a torch.distributed.ProcessGroup, or a DeviceMesh with one axis, not a "
            f"{type(process_group).__name__}"
        )
    if not isinstance(process_group, dist.ProcessGroup):
        raise ConfigurationError(
            f"rank {dist.get_rank()} is not in its process_group; attach AsyncDiff on the ranks that are, or give this "
            "rank a group of its own"
        )
    return process_group


def backend_for(device: torch.device, group: dist.ProcessGroup | None = None) -> str:
    """What moves tensors of a device in a process group, by default the default one; gloo, by way of the host, if
    nothing does."""
    backends = dict(part.split(":", 1) for part in dist.get_backend_config(group).split(",") if ":" in part)
    return backends.get(device.type, "gloo")


def can_be_made_by_members(backend: str) -> bool:
    """Whether a group of some ranks is no matter of the others.

    Where the default group's NCCL communicator was made at once, for a device, torch splits all others off it, and in
    that all of its ranks must take part.
    """
    return backend == "gloo" or _default_group().bound_device_id is None


def default_store() -> Store:
    """Through which the ranks of the default process group found each other."""
    return distributed_c10d._get_default_store()


def _default_group() -> dist.ProcessGroup:
    group = dist.group.WORLD
    if group is None:
        raise RuntimeError("there is no process group")
    return group


def _among_members(
    members: tuple[int, ...], rank: int, backend: str, limit: timedelta, name: str, description: str
) -> dist.ProcessGroup:
    """A group that only its members make."""
    made, _ = distributed_c10d._new_process_group_helper(
        len(members),
        members.index(rank),
        list(members),
        dist.Backend(backend),
        default_store(),
        cast(Any, name),
        timeout=limit,
        group_desc=description or None,
    )
    distributed_c10d._world.pg_group_ranks[made] = {member: place for place, member in enumerate(members)}
    return cast(dist.ProcessGroup, made)
