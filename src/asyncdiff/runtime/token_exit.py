"""Where divided tokens end: the last unit's output, of which the ranks make parts, is put together on all of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from asyncdiff.call import Call
from asyncdiff.exchange.protocol import Channel, Exchange
from asyncdiff.plan.moments import Moment
from asyncdiff.plan.tokens import TokenDivision
from asyncdiff.runtime.fresh_keys import with_size


def joined(
    exchange: Exchange,
    division: TokenDivision,
    leaves: Sequence[Any],
    part: int,
    made: Mapping[int, Sequence[Any]],
    moment: Moment,
) -> Callable[[], list[Any]]:
    """Begin to give all ranks the last unit's output; what is returned waits for it, and gives its leaves.

    Args:
        leaves: those of a walk that ends here: the output itself, or what stands for it.
        part: of the tokens, in that walk.
        made: the outputs that ranks of this process have made, by rank.
        moment: which rank makes which part.
    """
    parts, outputs = division.parts, division.layout.outputs
    tensors = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    # What is not of the picture every rank has; for all to go on with the same, it is the first part's.
    places = {source: [at for at in tensors if at in outputs or source == 0] for source, _ in moment.results}

    def of_part(leaf: Tensor, at: int, source: int) -> Tensor:
        return leaf if source == 0 or at not in outputs else parts.own(leaf, outputs[at], source)

    def room(leaf: Tensor, at: int, source: int) -> Tensor:
        if at not in outputs:
            return leaf
        extent = outputs[at]
        around = leaf.shape[extent.dim] - parts.length(extent, part) if source == 0 else 0
        return with_size(leaf, extent.dim, parts.length(extent, source) + around)

    given = {
        source: [
            of_part(made[rank][at], at, source) if rank in made else room(leaves[at], at, source)
            for at in places[source]
        ]
        for source, rank in moment.results
    }
    sharing = exchange.share(given, moment, "the tokens of part")

    def finish() -> list[Any]:
        shared = {
            source: dict(zip(places[source], received, strict=True)) for source, received in sharing.finish().items()
        }
        whole = list(leaves)
        for at in tensors:
            first = shared[0][at]
            if at not in outputs:
                whole[at] = first
                continue
            others = [shared[source][at] for source in range(1, parts.count)]
            whole[at] = parts.join(first, outputs[at], 0, [parts.own(first, outputs[at], 0), *others])
        return whole

    return finish


class Exit:
    """What the last of the divided units gives, of all tokens: kept where steps are bridged from it.

    Where it is made by adding to what the first of them is given, it is kept, and forecast, as what is added.
    """

    def __init__(self, division: TokenDivision) -> None:
        self._division = division
        self._given: list[Tensor] = []

    def enter(self, call: Call) -> None:
        """The first unit's call, with all tokens."""
        self._given = call.tensors

    def keep(self, channel: Channel | None, leaves: Sequence[Any]) -> None:
        """Leave it for the ranks of this process."""
        bases = self._division.bases
        if channel is None:
            return
        for edge in self._division.made_everywhere:
            leaf = leaves[edge.leaf]
            held = leaf - self._given[bases[edge.leaf]] if edge.leaf in bases else leaf
            for rank in channel.stores:
                channel.keep(rank, edge, held)

    def added(self, leaf: int, held: Tensor) -> Tensor:
        """The leaf, from what was kept of it."""
        base = self._division.bases.get(leaf)
        return held if base is None else held + self._given[base]
