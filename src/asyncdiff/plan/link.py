"""What joins two devices: how fast bytes travel, and what every message takes beside them. Pure."""

from dataclasses import dataclass

_LATENCY = 10e-6  # seconds, of GPUs in one machine


@dataclass(frozen=True)
class Link:
    """A link between two devices.

    Attributes:
        name: as it was asked for.
        bandwidth: bytes per second in one direction, as reached.
        latency: seconds that a message takes however small it is.
    """

    name: str
    bandwidth: float
    latency: float = _LATENCY

    def seconds(self, sent: float, moments: int = 1) -> float:
        """What so many bytes take that are sent in one moment, or one after the other in several."""
        return sent / self.bandwidth + moments * self.latency
