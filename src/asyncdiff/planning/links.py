"""What joins two devices: how fast bytes travel, and what every message takes beside them. Pure."""

from dataclasses import dataclass

from asyncdiff.errors import ConfigurationError
from asyncdiff.plan.numbers import shown
from asyncdiff.planning.quantity import read_bytes

_LATENCY = 10e-6  # of GPUs in one machine
_LATENCY_OF_A_NETWORK = 100e-6


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


# What is reached of them, not what is printed on them.
LINKS = {
    link.name: link
    for link in (
        Link("nvlink", 300e9),
        Link("pcie4", 22e9),
        Link("pcie3", 11e9),
        Link("ethernet", 1.1e9, _LATENCY_OF_A_NETWORK),
    )
}


def read_link(text: str) -> Link:
    """A link by its name, or by its bandwidth, as 12GB/s.

    Raises:
        ConfigurationError: it is neither.
    """
    if text in LINKS:
        return LINKS[text]
    amount, slash, per = text.rpartition("/")
    if not slash or per.strip() != "s":
        raise ConfigurationError(
            f"link must be {', '.join(LINKS)} or a bandwidth such as 12GB/s (bytes, not bits), not {shown(text)}"
        )
    return Link(text, read_bytes("link", amount))
