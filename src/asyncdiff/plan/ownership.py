"""Which component has which weights: found in one division, and kept to by all that follow. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from asyncdiff.denoiser.trace import paths_to
from asyncdiff.errors import SplitError
from asyncdiff.plan.division import Division
from asyncdiff.plan.split import Split


@dataclass(frozen=True)
class Ownership:
    """Who has a denoiser's weights.

    Attributes:
        owners: for each module that is given to a component whole, by name, the component.
        components: how many there are.
    """

    owners: Mapping[str, int]
    components: int

    def of(self, weight: str) -> int | None:
        """The component that has a weight, given by its name in the denoiser; None where every device has it."""
        return next((self.owners[path] for path in paths_to(weight) if path in self.owners), None)

    def split(self) -> Split:
        """The modules of each component, as a division by hand takes them."""
        return [[name for name, owner in self.owners.items() if owner == number] for number in range(self.components)]


def ownership_of(division: Division) -> Ownership:
    """Who has which weights where a denoiser is divided so. What was not called, and glue, every device has.

    Raises:
        SplitError: a module is called by two components.
    """
    owners: dict[str, int] = {}
    for number, unit in enumerate(division.graph.units):
        owner = division.partition.owner(number)
        if owner is None:
            continue
        if owners.setdefault(unit.name, owner) != owner:
            raise SplitError(
                f"{unit.name!r} is called several times, by components {owners[unit.name]} and {owner}, so that its "
                "weights cannot be given to one of them; attach without shard, or divide by hand with split="
            )
    return Ownership(owners, len(division.partition.components))
