"""Streams: the denoiser calls, one per step, that belong together."""

from dataclasses import dataclass, field
from typing import Any

from torch.utils._pytree import TreeSpec, tree_unflatten

from asyncdiff.call import Signature
from asyncdiff.exchange import Channel
from asyncdiff.labels import Labels


@dataclass
class Stream:
    """One stream.

    Attributes:
        signature: what all its calls have in common.
        reason: why it began, and thus why its first steps are computed in full.
        index: the step of its next call, counted from its first.
        last_step: the pipeline's step of its last call.
        predictions: the leaves of the noise predictions made so far in this round, by step.
        structure: how the leaves make up the denoiser's result.
    """

    signature: Signature
    labels: Labels
    reason: str
    index: int = 0
    last_step: int = 0
    channel: Channel | None = None
    predictions: dict[int, list[Any]] = field(default_factory=dict)
    structure: TreeSpec | None = None

    def result(self, step: int) -> Any:
        """The prediction of a step, in the form of the denoiser's own result."""
        if self.structure is None:
            raise RuntimeError("a prediction was asked for before the first denoiser call")
        return tree_unflatten(list(self.predictions[step]), self.structure)


class Streams:
    """All streams of one denoiser in one generation, told apart by their place among a step's calls."""

    def __init__(self) -> None:
        self._by_place: dict[int, Stream] = {}
        self._calls_in_step = 0

    def of_call(self, signature: Signature, now: int, timesteps: tuple[float, ...]) -> tuple[Stream, bool]:
        """The stream of a call at the pipeline's step `now`, and whether it begins with it."""
        place, self._calls_in_step = self._calls_in_step, self._calls_in_step + 1
        stream = self._by_place.get(place)
        reason = _why_new(stream, signature, now)
        if stream is None or reason is not None:
            if stream is not None and stream.channel is not None:
                stream.channel.close()
            stream = self._by_place[place] = Stream(signature, Labels(timesteps), reason or "new stream")
        stream.last_step = now
        return stream, reason is not None

    def end_step(self, timestep: Any, now: int, learning_steps: int) -> None:
        """The pipeline's step before `now` is over; streams in their first steps learn its label."""
        self._calls_in_step = 0
        for stream in self._by_place.values():
            if stream.last_step == now - 1 and stream.index <= learning_steps:
                stream.labels.learn(stream.index - 1, timestep)

    def forget(self) -> None:
        """Drop all streams, without waiting for what is on its way."""
        self._by_place.clear()

    def close(self) -> None:
        """End all streams; waits for what is on its way."""
        for stream in self._by_place.values():
            if stream.channel is not None:
                stream.channel.close()
        self._by_place.clear()
        self._calls_in_step = 0


def _why_new(stream: Stream | None, signature: Signature, now: int) -> str | None:
    if stream is None:
        return "warm-up" if now == 0 else "new stream"
    if stream.signature != signature:
        return "inputs of another shape"
    return None if now == stream.last_step + 1 else "steps were skipped"
