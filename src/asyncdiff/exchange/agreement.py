"""What must be the same on all ranks, said in a form that can be compared, and named where it differs."""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from asyncdiff.errors import RankMismatchError

_TOLERANCE = 1e-3
_LONGEST = 80  # letters of a value that an error shows
_DIGEST = 16  # bytes
_ROOM = 512  # so many bytes of numbers go with the digest; where there are more, they go after it
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
        measures: what an error calls the numbers.
        shown: what an error shows of it, in plain words; by default what must be the same to the letter.
        parts: what it is made of, asked for where it differs.
    """

    name: str
    exact: str = ""
    numbers: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    measures: tuple[str, ...] = ()
    shown: Callable[[], str] | None = None
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
    digest, measured = _digest(statements), _measured(statements)
    has_room = len(measured) <= _ROOM
    words = _gather(digest + (measured if has_room else b"").ljust(_ROOM, b"\0"), talk, what)
    if any(word[:_DIGEST] != digest for word in words):
        _find_difference(statements, talk, rank, members, what)
    # All have as many numbers to tell, then.
    everyone = [word[_DIGEST:][: len(measured)] for word in words] if has_room else _gather(measured, talk, what)
    if any(other != measured for other in everyone):
        _compare_numbers(statements, everyone, rank, members)


def hashed(text: str) -> str:
    """A long text in few letters, the same in every process."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _digest(statements: Iterable[Statement]) -> bytes:
    text = "\n".join(f"{each.name}\t{each.exact}\t{len(each.numbers)}" for each in statements)
    return hashlib.sha256(text.encode()).digest()[:_DIGEST]


def _measured(statements: Sequence[Statement]) -> bytes:
    """All numbers, and then their scales."""
    numbers = array("d", [number for each in statements for number in each.numbers])
    numbers.extend(size for each in statements for size in each.scale)
    return numbers.tobytes()


def _gather(mine: bytes, talk: Gathering, what: str) -> list[bytes]:
    """Every member's bytes, as many as there are here."""
    told = torch.frombuffer(bytearray(mine), dtype=torch.uint8)
    return [other.numpy().tobytes() for other in talk.gather(told, what)]


def _compare_numbers(
    statements: Sequence[Statement], everyone: Sequence[bytes], rank: int, members: Sequence[int]
) -> None:
    """Raises what is the first difference, if one is more than rounding."""
    halves = [torch.frombuffer(bytearray(measured), dtype=torch.float64).chunk(2) for measured in everyone]
    first, first_scale = halves[0]
    of_statement = [each for each in statements for _ in each.numbers]
    for other, (values, sizes) in zip(members, halves, strict=True):
        is_off = ~((values - first).abs() <= _TOLERANCE * torch.maximum(sizes, first_scale))
        # Where both are no numbers, they are alike.
        for place in torch.nonzero(is_off & ~(values.isnan() & first.isnan())).flatten().tolist():
            differing = of_statement[place]
            start = of_statement.index(differing)
            told = [
                f"rank {of}: "
                + ", ".join(f"{name} {number:.6g}" for name, number in zip(differing.measures, own, strict=False))
                for of, own in ((members[0], first[start:].tolist()), (other, values[start:].tolist()))
            ]
            raise RankMismatchError(
                f"rank {rank}: {differing.name} of rank {other} is not that of rank {members[0]} ({'; '.join(told)}); "
                f"{_ADVICE}, and a pipeline must not read what its denoiser's blocks hold (attention maps, say)"
            )


def _find_difference(
    statements: Sequence[Statement], talk: Gathering, rank: int, members: Sequence[int], what: str
) -> None:
    """Everyone tells all; only where something differs. Raises what is the first difference."""
    everything = [each for whole in statements for each in (*whole.parts(), whole)]
    told = {each.name: (hashed(each.exact), _shown(each), len(each.numbers)) for each in everything}
    wholes = {each.name for each in statements}
    text = json.dumps(told).encode()
    sizes = [int.from_bytes(size, "big") for size in _gather(len(text).to_bytes(8, "big"), talk, what)]
    first, *others = (json.loads(other) for other in _gather(text.ljust(max(sizes)), talk, what))
    for number, other in zip(members[1:], others, strict=True):
        differing = [name for name in {**first, **other} if first.get(name) != other.get(name)]
        if differing:
            name = min(differing, key=lambda each: each in wholes)  # a part says more than the whole
            raise RankMismatchError(
                f"rank {rank}: {name} is not the same on all ranks ("
                f"{_told_apart(members[0], first.get(name), number, other.get(name))}); {_ADVICE}"
            )
    raise RankMismatchError(f"rank {rank}: {what} are not the same on all ranks; {_ADVICE}")


def _shown(statement: Statement) -> str:
    return (statement.exact if statement.shown is None else statement.shown())[:_LONGEST]


def _told_apart(rank: int, mine: Sequence[object] | None, other_rank: int, other: Sequence[object] | None) -> str:
    """What two ranks have told of what differs."""
    shown, other_shown = ("none" if told is None else str(told[1]) for told in (mine, other))
    return f"rank {rank}: {shown}, rank {other_rank}: {'other values' if other_shown == shown else other_shown}"
