"""The world of ranks as named axes. Pure, plain data."""

from dataclasses import dataclass

from asyncdiff.plan.numbers import check_whole_number

AXES = ("guidance", "component", "tokens")


@dataclass(frozen=True)
class Mesh:
    """Groups of ranks: every group computes a part of the batch, or a branch of the guidance, by the schedule.

    Ranks are counted group by group, and in a group component by component, so that those that talk most are
    neighbours: those that have the same component, and each its own tokens.

    Attributes:
        guidance: G, how many groups there are.
        component: how many ranks a group has for each part of the tokens: N + S − 1.
        tokens: P, how many parts of the tokens there are.
    """

    guidance: int
    component: int
    tokens: int = 1

    def __post_init__(self) -> None:
        for name in AXES:
            check_whole_number(name, getattr(self, name), 1)

    @property
    def world_size(self) -> int:
        """All ranks."""
        return self.guidance * self.in_group

    @property
    def in_group(self) -> int:
        """The ranks of a group."""
        return self.component * self.tokens

    def coordinates(self, rank: int) -> tuple[int, int]:
        """A rank's group, and its place in the group."""
        return divmod(rank, self.in_group)

    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The ranks of every group."""
        return tuple(tuple(range(group * self.in_group, (group + 1) * self.in_group)) for group in range(self.guidance))

    def counterparts(self) -> tuple[tuple[int, ...], ...]:
        """For every place in a group, the ranks that have it, by group."""
        return tuple(zip(*self.groups(), strict=True))
