"""What happened in a process, and when: plain data, which `events` makes of what runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What happens."""

    STEP = "step"
    UNIT = "unit"
    STAND_IN = "stand-in"  # for a unit that this rank does not run
    PART = "part"  # of the pipeline, beside the denoiser
    WAIT = "waiting"
    EXCHANGE = "exchange"  # from when it is started until it is found to be over


@dataclass(frozen=True)
class Event:
    """Something that took a while.

    Attributes:
        begin, end: seconds since 1970 by the host's clock.
        on_device: when a GPU began and ended what the host started meanwhile; None on a CPU.
        details: more that is worth knowing.
    """

    kind: Kind
    name: str
    begin: float
    end: float
    on_device: tuple[float, float] | None
    details: Mapping[str, str]
