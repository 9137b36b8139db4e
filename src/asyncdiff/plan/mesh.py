"""The world of ranks as named axes. Pure, plain data."""

from dataclasses import dataclass

from asyncdiff.plan.numbers import check_whole_number

AXES = ("guidance", "component")


@dataclass(frozen=True)
class Mesh:
    """Groups of ranks: every group computes a part of the batch, or a branch of the guidance, by the schedule.

    Ranks are counted group by group, so that those of a group, which talk most, are neighbours.

    Attributes:
        guidance: G, how many groups there are.
        component: how many ranks a group has: N + S − 1.
    """

    guidance: int
    component: int

    def __post_init__(self) -> None:
        for name in AXES:
            check_whole_number(name, getattr(self, name), 1)

    @property
    def world_size(self) -> int:
        """All ranks."""
        return self.guidance * self.component

    def coordinates(self, rank: int) -> tuple[int, int]:
        """A rank's group, and its place in the group."""
        return divmod(rank, self.component)

    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The ranks of every group."""
        return tuple(
            tuple(range(group * self.component, (group + 1) * self.component)) for group in range(self.guidance)
        )

    def counterparts(self) -> tuple[tuple[int, ...], ...]:
        """For every place in a group, the ranks that have it, by group."""
        return tuple(zip(*self.groups(), strict=True))
