"""How much memory a traced call's own tensors take at most. Pure."""

from collections import Counter
from collections.abc import Collection, Iterable

from asyncdiff.denoiser.trace import Trace, ValueId


def peak_bytes(trace: Trace, skipped: Collection[int] = ()) -> int:
    """The most that a call's tensors take at any time, in bytes; weights and the call's own arguments left out.

    Every tensor is taken to be freed after it was last read, and when the modules that it was given to have returned;
    operators to need nothing beside what they make.

    Args:
        skipped: the calls, by their numbers in the trace, that are not made: what they return is given.
    """
    memory = _Blocks()
    position, end = 0, len(trace.operators)
    for first, number in sorted((trace.calls[number].first_operator, number) for number in skipped):
        call = trace.calls[number]
        _run(memory, trace, range(position, first))
        for leaf in call.outputs:
            if leaf.value is not None and leaf.input_index is None:
                memory.make(first, [leaf.value], leaf.bytes)
        position = max(position, call.end_operator)
    _run(memory, trace, range(position, end))
    for number, call in enumerate(trace.calls):
        if number not in skipped:
            memory.read(call.end_operator - 1, call.inputs)
    memory.read(end, [leaf.value for leaf in trace.calls[0].outputs if leaf.value is not None])
    return memory.peak()


def _run(memory: "_Blocks", trace: Trace, positions: range) -> None:
    for position in positions:
        operator = trace.operators[position]
        memory.read(position, operator.reads)
        for old, new in operator.overwrites:
            memory.alias(new, [old])
        if operator.allocated:
            memory.make(position, operator.makes, operator.allocated)
        else:
            for value in operator.makes:
                memory.alias(value, operator.reads)


class _Blocks:
    """Pieces of memory: when each is made, how large it is, and when it was last read."""

    def __init__(self) -> None:
        self._block_of: dict[ValueId, int] = {}
        self._made: list[tuple[int, int]] = []  # position and bytes, by block
        self._last_read: list[int] = []

    def make(self, position: int, values: Iterable[ValueId], size: int) -> None:
        block = len(self._made)
        self._made.append((position, size))
        self._last_read.append(position)
        self._block_of.update(dict.fromkeys(values, block))

    def alias(self, value: ValueId, among: Iterable[ValueId]) -> None:
        """A value lies where the first of others lies; nowhere, if that is a weight or an argument."""
        if value not in self._block_of:
            block = next((self._block_of[other] for other in among if other in self._block_of), None)
            if block is not None:
                self._block_of[value] = block

    def read(self, position: int, values: Iterable[ValueId]) -> None:
        for value in values:
            if value in self._block_of:
                block = self._block_of[value]
                self._last_read[block] = max(self._last_read[block], position)

    def peak(self) -> int:
        """The most that is alive at one position."""
        more, less = Counter[int](), Counter[int]()
        for (made, size), last in zip(self._made, self._last_read, strict=True):
            more[made] += size
            less[last] += size
        alive = most = 0
        for position in sorted(more | less):
            alive += more[position]
            most = max(most, alive)
            alive -= less[position]
        return most
