"""What must be the same on all ranks, said in a form that can be compared, and named where it differs."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from asyncdiff.errors import RankMismatchError

_TOLERANCE = 1e-3
_LONGEST = 60  # letters of a value that an error shows
_ADVICE = (
    "every rank must run the same call (same prompt, same size, and a generator with the same seed, or none) on "
    "the same weights"
)


class Statement(NamedTuple):
    """One thing that must be the same.

    Attributes:
        name: what an error calls it.
        exact: what must be the same to the letter.
        numbers: what must be the same but for rounding; many fewer than the tensors have that they stand for.
        scale: for each number, the size of what it is rounded to.
        parts: what it is made of, asked for where it differs.
    """

    name: str
    exact: str = ""
    numbers: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    parts: Callable[[], Iterable["Statement"]] = tuple


Statements = Callable[[], Sequence[Statement]]
"""Asked for where there is somebody to compare with."""


class Gathering(Protocol):
    """Gives every member's tensor, all of one shape."""

    def gather(self, mine: Tensor, what: str) -> list[Tensor]: ...


def compare(ask: Statements, talk: Gathering, rank: int, members: Sequence[int], what: str) -> None:
    """Compare this rank's statements with the others'.

    Args:
        ask: for this rank's.
        rank: this process's, as the world counts.
        members: the ranks that compare, likewise.
        what: names it all, should a rank not answer.

    Raises:
        RankMismatchError: something differs; it says what, and on which rank.
    """
    statements = ask()
    mine = torch.tensor(_digest(statements), dtype=torch.int64)
    if any(not torch.equal(other, mine) for other in talk.gather(mine, what)):
        _find_difference(statements, talk, rank, members, what)
    numbers = torch.tensor([number for each in statements for number in each.numbers], dtype=torch.float64)
    if not len(numbers):
        return
    scale = torch.tensor([size for each in statements for size in each.scale], dtype=torch.float64)
    everyone = [values.chunk(2) for values in talk.gather(torch.cat([numbers, scale]), what)]
    first, first_scale = everyone[0]
    names = [each.name for each in statements for _ in each.numbers]
    for other, (values, sizes) in zip(members, everyone, strict=True):
        is_off = ~((values - first).abs() <= _TOLERANCE * torch.maximum(sizes, first_scale))
        # Where both are no numbers, they are alike.
        for place in torch.nonzero(is_off & ~(values.isnan() & first.isnan())).flatten().tolist():
            raise RankMismatchError(
                f"rank {rank}: {names[place]} of rank {other} is not that of rank {members[0]}; {_ADVICE}, and a "
                "pipeline must not read what its denoiser's blocks hold (attention maps, say)"
            )


def hashed(text: str) -> str:
    """A long text in few letters, the same in every process."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _digest(statements: Iterable[Statement]) -> list[int]:
    text = "\n".join(f"{each.name}\t{each.exact}\t{len(each.numbers)}" for each in statements)
    digest = hashlib.sha256(text.encode()).digest()
    return [int.from_bytes(digest[start : start + 8], "big", signed=True) for start in (0, 8)]


def _find_difference(
    statements: Sequence[Statement], talk: Gathering, rank: int, members: Sequence[int], what: str
) -> None:
    """Everyone tells all; only where something differs. Raises what is the first difference."""
    everything = [each for whole in statements for each in (*whole.parts(), whole)]
    told = {each.name: (hashed(each.exact), each.exact[:_LONGEST], len(each.numbers)) for each in everything}
    wholes = {each.name for each in statements}
    mine = torch.frombuffer(bytearray(json.dumps(told).encode()), dtype=torch.uint8)
    sizes = [int(size) for size in talk.gather(torch.tensor([len(mine)]), what)]
    padded = torch.zeros(max(sizes), dtype=torch.uint8)
    padded[: len(mine)] = mine
    texts = [bytes(other[:size].tolist()) for other, size in zip(talk.gather(padded, what), sizes, strict=True)]
    first, *others = (json.loads(text) for text in texts)
    for number, other in zip(members[1:], others, strict=True):
        differing = [name for name in {**first, **other} if first.get(name) != other.get(name)]
        if differing:
            name = min(differing, key=lambda each: each in wholes)  # a part says more than the whole
            values = [f"rank {of}: {_shown(table.get(name))}" for of, table in ((members[0], first), (number, other))]
            raise RankMismatchError(
                f"rank {rank}: {name} is not the same on all ranks ({', '.join(values)}); {_ADVICE}"
            )
    raise RankMismatchError(f"rank {rank}: {what} are not the same on all ranks; {_ADVICE}")


def _shown(told: Sequence[object] | None) -> str:
    return "none" if told is None else str(told[1])
