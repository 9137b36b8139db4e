"""Which mesh the ranks make: as the user has told, or as the first call of a generation lets them share it out."""

from typing import Any

from asyncdiff.denoiser.form import batch_size
from asyncdiff.errors import ConfigurationError
from asyncdiff.exchange.agreement import Statement
from asyncdiff.exchange.world import World
from asyncdiff.plan.choice import choose_groups
from asyncdiff.plan.mesh import Mesh
from asyncdiff.settings import Settings

DEVICES_OF_PREVIEW = 2  # that one process computes for, where nothing is said


class Layout:
    """Lays the ranks of a run out as groups and components.

    Raises:
        ConfigurationError: there are not as many ranks as the user's numbers need.
    """

    def __init__(self, settings: Settings, world: World) -> None:
        self._settings = settings
        self._world = world
        self._not_shared: set[tuple[int, bool]] = set()
        self._kind: tuple[int, bool] | None = None
        self.told = self._told_mesh()
        """The mesh that the user asked for; None where the first call of a generation decides."""

    def choose(self, main: Any, has_branches: bool, was_shared: bool) -> Mesh:
        """The mesh for a generation, by its first call.

        Args:
            main: the argument that is denoised, which tells how large the batch is.
            has_branches: whether the pipeline guides.
            was_shared: whether groups have computed at the same time in the generation before; what turned out not to
                be shareable is divided into components from then on.

        Raises:
            RankMismatchError: the ranks would choose different ones.
        """
        if self._kind is not None and not was_shared:
            self._not_shared.add(self._kind)
        self._kind = batch_size(main), has_branches
        groups = 1
        if self._kind not in self._not_shared:
            groups = choose_groups(self._world.size, self._settings.stride, *self._kind)
        what = "the number of groups that share out every step"
        self._world.check_agreement(lambda: [Statement(what, str(groups))], what)
        return Mesh(groups, self._world.size // groups)

    def _told_mesh(self) -> Mesh | None:
        settings, world = self._settings, self._world
        components, stride = settings.told_components, settings.stride
        if components is not None:
            mesh = settings.mesh(components)
        elif settings.guidance is None:
            return Mesh(1, world.size) if world.size <= stride or settings.shard else None
        elif world.rank is not None:
            mesh = settings.mesh(max(world.size // settings.guidance - stride + 1, 1))
        else:
            mesh = settings.mesh(DEVICES_OF_PREVIEW)
        if world.global_rank is not None:
            _check_world_size(mesh, settings, world)
        return mesh


def _check_world_size(mesh: Mesh, settings: Settings, world: World) -> None:
    """Whether there are as many ranks as the mesh has places."""
    stride, guidance = settings.stride, mesh.guidance
    needed, in_group = mesh.world_size, mesh.in_group
    if world.size == needed:
        return
    ways = [f"start {needed} process{'es' * (needed != 1)}"]
    if world.size > needed:
        ways.append(f"name {needed} of them with process_group=")
    if settings.tokens is not None:
        if world.size % (guidance * mesh.component) == 0:
            ways.append(f"use tokens={world.size // (guidance * mesh.component)}")
        if mesh.component > 1 and world.size % (guidance * mesh.tokens) == 0:
            ways.append(f"use components={world.size // (guidance * mesh.tokens)}")
    elif guidance == 1:
        ways.append(f"use components={max(world.size - stride + 1, 1)}")
    else:
        fitting = world.size // guidance - stride + 1
        if fitting >= 1 and world.size % guidance == 0:
            ways.append(f"use components={fitting}")
        if world.size % in_group == 0:
            ways.append(f"use guidance={world.size // in_group}")
    ways.append("compute in this process alone with executor='local'")
    raise ConfigurationError(
        f"rank {world.global_rank}: {settings.demand(mesh)} rank{'s' * (needed != 1)}, but there "
        f"{'is' if world.size == 1 else 'are'} {world.size}; {', or '.join(ways)}"
    )
