"""On which rank of a group each part of a pipeline lives that is no denoiser. Pure."""

from collections.abc import Mapping
from typing import Any

from asyncdiff.errors import ConfigurationError
from asyncdiff.plan.dealing import deal
from asyncdiff.plan.numbers import check_whole_number, shown

Places = Mapping[str, int | None]


def check_places(places: Any) -> None:
    """Refuse what names no parts and ranks.

    Raises:
        ConfigurationError: it is no mapping from names to whole numbers, or None.
    """
    if not isinstance(places, Mapping) or not all(isinstance(name, str) for name in places):
        raise ConfigurationError(
            f"place gives ranks by the names of parts, {{'vae': 0}} for instance, not {shown(places)}"
        )
    for name, rank in places.items():
        if rank is not None:
            check_whole_number(f"place[{name!r}]", rank, 0)


def places_of(sizes: Mapping[str, int], ranks: int, told: Places | None = None) -> dict[str, int]:
    """Deal parts out: the largest first, each to the rank that has least so far. All ranks come to the same end.

    Args:
        sizes: in bytes, by the parts' names.
        ranks: how many there are; each has as much of the denoiser as any other.
        told: where the user wants a part: a rank, or None for all ranks.

    Raises:
        ConfigurationError: a part that is not there, or a rank.
    """
    told = told or {}
    for name, rank in told.items():
        if name not in sizes:
            raise ConfigurationError(
                f"place: the pipeline has no part {name!r} that one rank can have alone; "
                f"it has {', '.join(map(repr, sizes)) or 'none'}"
            )
        if rank is not None and not 0 <= rank < ranks:
            raise ConfigurationError(f"place: there is no rank {rank} in a group of {ranks} for the {name!r}")
    found = {name: rank for name, rank in told.items() if rank is not None}
    held = [sum(sizes[name] for name, place in found.items() if place == rank) for rank in range(ranks)]
    left = sorted(sizes.keys() - told.keys())
    return found | dict(zip(left, deal([sizes[name] for name in left], ranks, held), strict=True))
