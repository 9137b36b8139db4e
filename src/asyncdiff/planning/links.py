"""Links by their names: how fast bytes travel, and what every message takes beside them. Pure."""

from asyncdiff.errors import ConfigurationError
from asyncdiff.plan.link import Link
from asyncdiff.plan.numbers import shown
from asyncdiff.planning.quantity import read_bytes

_LATENCY_OF_A_NETWORK = 100e-6


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
