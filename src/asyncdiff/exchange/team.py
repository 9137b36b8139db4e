"""The ranks that exchange with each other."""

from dataclasses import dataclass

from asyncdiff.exchange.line import Line, Pending, Transfer
from asyncdiff.exchange.protocol import Traffic
from asyncdiff.exchange.talk import Talk


@dataclass(frozen=True)
class Team:
    """The own team of a process.

    Attributes:
        members: the ranks of the team, as the world counts them.
        rank: the place of this process among them.
        line: what moves tensors; the same for all teams.
        talk: small talk of the team.
        traffic: what this team has sent, and waited for.
    """

    members: tuple[int, ...]
    rank: int
    line: Line
    talk: Talk
    traffic: Traffic

    def start(self, batch: list[Transfer]) -> Pending:
        """Start some transfers at the same time."""
        return self.line.start(batch, self.traffic)
