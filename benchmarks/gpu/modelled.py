"""The time that several GPUs would take, from what one GPU was measured to take for every rank's part.

Modelled, not measured. A generation of T steps by the default method has warm-up and cool-down steps, computed in full
by every group of ranks, and rounds. Nothing is taken to be hidden behind anything else:

- a step in full: an ordinary call of the attached denoiser, then its prediction is sent to the others of the group;
- a round: the component of the slowest rank; then all its live edges travel, of the rank that receives or sends most;
  then the predictor runs the denoiser's last layers, and sends the prediction to the others of the group;
- with two groups, half the batch in each, the groups' predictions are exchanged in every step.

Sending takes `latency` for each message and its bytes over the link's bandwidth; a rank sends its messages one after
the other, while it receives. What happens outside of the denoiser is left out, in the plain generation as well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asyncdiff.plan.link import Link

LINKS = (Link("NVLink", 300e9), Link("PCIe 4", 22e9))


@dataclass(frozen=True)
class RankLoad:
    """What a round takes of one rank: seconds of its component and of the last layers; what it receives and sends."""

    component: float
    end: float
    received: int
    sent: int
    received_messages: int
    sent_messages: int

    def communication(self, link: Link) -> float:
        """Seconds that its live edges travel."""
        return max(link.seconds(self.received, self.received_messages), link.seconds(self.sent, self.sent_messages))


@dataclass(frozen=True)
class GroupLoad:
    """What steps take of one group of ranks: seconds of a step in full, what a round takes, bytes of a prediction."""

    full: float
    ranks: Sequence[RankLoad]
    prediction: int

    def broadcast(self, link: Link) -> float:
        """Seconds that a prediction travels to the others of the group."""
        others = len(self.ranks) - 1
        return link.seconds(others * self.prediction, others)

    def round(self, link: Link) -> float:
        """Seconds of a round."""
        component = max(rank.component for rank in self.ranks)
        communication = max(rank.communication(link) for rank in self.ranks)
        return component + communication + max(rank.end for rank in self.ranks) + self.broadcast(link)


@dataclass(frozen=True)
class Modelled:
    """A modelled generation: `speedup` is over the plain one on one GPU; communication is that of one round."""

    devices: int
    way: str
    link: str
    seconds: float
    speedup: float
    round_seconds: float
    communication_seconds: float


def modelled(group: GroupLoad, groups: int, link: Link, steps: int, full_steps: int, plain_seconds: float) -> Modelled:
    """A generation on `groups` groups of ranks.

    Args:
        full_steps: how many of the steps are computed in full.
        plain_seconds: of a call on one GPU.
    """
    joining = link.seconds(group.prediction, 1) if groups > 1 else 0.0
    in_full = group.full + group.broadcast(link) + joining
    in_round = group.round(link) + joining
    components = len(group.ranks)
    in_full_steps = steps if components == 1 else full_steps
    seconds = in_full_steps * in_full + (steps - in_full_steps) * in_round
    way = f"components={components}" if groups == 1 else f"guidance={groups}, components={components}"
    exposed = max(rank.communication(link) for rank in group.ranks) + group.broadcast(link) + joining
    speedup = steps * plain_seconds / seconds
    return Modelled(groups * components, way, link.name, seconds, speedup, in_round, exposed)


def load_of(stage: Mapping[str, Any], prediction: int) -> GroupLoad:
    """A group's load from what the stages have written of one number of components."""
    ranks = []
    for rank in stage["ranks"]:
        timing = rank["timing"]
        ranks.append(
            RankLoad(
                component=(timing["device"] - timing["end"]) / 1000,
                end=timing["end"] / 1000,
                received=rank["received_bytes"],
                sent=rank["sent_bytes"],
                received_messages=rank["received_messages"],
                sent_messages=rank["sent_messages"],
            )
        )
    return GroupLoad(stage["full"] / 1000, ranks, prediction)
