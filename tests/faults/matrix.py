"""The faults, the moments and the layouts, as data."""

from enum import Enum
from itertools import product
from typing import Any, NamedTuple

TIMEOUT = 4.0
"""Seconds that the ranks wait for each other."""
MARGIN = 10.0
"""Seconds after it in which every surviving rank must have come to an end."""

STEPS = 14
SETTINGS: dict[str, Any] = {"warmup": 3, "bridge": 2, "cooldown": 2, "timeout": TIMEOUT}


class Fault(Enum):
    """What happens on one rank."""

    KILLED = "killed"
    STOPPED = "stopped (SIGSTOP)"
    SLOW = "ten times slower"
    UNIT = "exception in a unit"
    CALLBACK = "exception in a callback"
    MEMORY = "out of memory"
    WEIGHTS = "other weights"
    INPUTS = "other inputs"


class Moment(Enum):
    """When it happens."""

    ATTACHING = "attaching"
    FIRST_CALL = "first call"
    WARM_UP = "warm-up"
    ROUND = "round"
    BRIDGED = "bridged step"
    EXCHANGE = "exchange"
    LAST_STEP = "last step"
    BETWEEN = "between generations"


STEP_OF = {
    Moment.FIRST_CALL: 0,
    Moment.WARM_UP: 1,
    Moment.ROUND: 3,
    Moment.BRIDGED: 4,
    Moment.EXCHANGE: 5,
    Moment.LAST_STEP: STEPS - 1,
}
"""The step in which a moment is: with the settings above, rounds and bridged steps take turns from the third on."""

LAYOUTS: dict[str, dict[str, Any]] = {
    "2": {"components": 2},
    "3": {"components": 3},
    "2 × 2": {"guidance": 2, "components": 2},
}

# There is no unit and no callback while attaching, and none between two generations; a callback, and what it does to
# the latents, comes at the end of a step and not in an exchange.
_NOT_THERE = {
    *product((Fault.UNIT, Fault.CALLBACK), (Moment.ATTACHING, Moment.BETWEEN)),
    *product((Fault.CALLBACK, Fault.INPUTS), (Moment.EXCHANGE,)),
}


class Cell(NamedTuple):
    """One combination."""

    fault: Fault
    moment: Moment
    layout: str

    @property
    def world_size(self) -> int:
        """How many ranks there are; the last one has the fault."""
        settings = LAYOUTS[self.layout]
        return int(settings.get("guidance", 1)) * int(settings["components"])

    def __str__(self) -> str:
        return f"{self.fault.value}, {self.moment.value}, {self.layout}"


def cells() -> list[Cell]:
    """All combinations that there can be."""
    every = product(Fault, Moment, LAYOUTS)
    return [Cell(*each) for each in every if each[:2] not in _NOT_THERE]


QUICK = [
    Cell(Fault.KILLED, Moment.ROUND, "3"),
    Cell(Fault.STOPPED, Moment.BRIDGED, "2"),
    Cell(Fault.SLOW, Moment.ROUND, "2"),
    Cell(Fault.UNIT, Moment.EXCHANGE, "2 × 2"),
    Cell(Fault.CALLBACK, Moment.WARM_UP, "3"),
    Cell(Fault.MEMORY, Moment.FIRST_CALL, "2"),
    Cell(Fault.WEIGHTS, Moment.ROUND, "2"),
    Cell(Fault.INPUTS, Moment.LAST_STEP, "2"),
]
"""Those of `make test`: every fault, every layout."""
