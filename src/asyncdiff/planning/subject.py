"""What is planned for: one model, and one call of its pipeline. Plain data."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from asyncdiff.denoiser.footprint import peak_bytes
from asyncdiff.denoiser.trace import Trace
from asyncdiff.plan.parts import Parts
from asyncdiff.plan.token_counting import CountedTokens

# Of the groups' time so much must be spent on members of the batch that no other group computes.
_LEAST_USE = 0.75


@dataclass(frozen=True)
class Subject:
    """A pipeline's call, as far as a plan must know it.

    Attributes:
        kind: the class of the denoiser.
        trace: its first call.
        calls: how often it is called in a step.
        pictures: how many pictures (or videos) a call of the pipeline makes.
        weights: bytes of each of the denoiser's weights, by name.
        twins: how many denoisers there are like this one, itself counted: some pipelines have one for each part of
            the steps.
        buffers: bytes of the denoiser's buffers.
        others: bytes of the weights of each other part that one device of several can have alone, by name.
        common: bytes of all else, which every device has.
        tokens: what of a call is done for each token of the picture; None where it cannot be divided by them.
    """

    kind: str
    trace: Trace
    calls: int
    pictures: int
    weights: Mapping[str, int]
    twins: int
    buffers: int
    others: Mapping[str, int]
    common: int
    tokens: CountedTokens | None = None

    @property
    def batch(self) -> int:
        """How large the batch of a denoiser's call is."""
        return self.trace.batch or 1

    @property
    def prediction(self) -> int:
        """Bytes of a call's result."""
        return sum(leaf.bytes for leaf in self.trace.calls[0].outputs)

    @functools.cached_property
    def peak(self) -> int:
        """Bytes that the tensors of a whole call take at most."""
        return peak_bytes(self.trace)

    def share_out(self, groups: int) -> "Share | None":
        """What each of so many groups of devices computes of a step, exactly; None where there is too little for them.

        Parts of the batch, or else whole calls, which are branches of the guidance.
        """
        parts = Parts(self.batch, groups)
        if groups == 1:
            return Share(1.0, self.calls)
        if self.batch > 1 and parts.use >= (_LEAST_USE if self.calls == 1 else 1.0):
            return Share(parts.size / self.batch, self.calls)
        if 1 < groups <= self.calls:
            return Share(1.0, -(-self.calls // groups))
        return None


@dataclass(frozen=True)
class Share:
    """What one group of devices computes of a step.

    Attributes:
        part: how much of a call's batch.
        calls: how many calls.
    """

    part: float
    calls: int
