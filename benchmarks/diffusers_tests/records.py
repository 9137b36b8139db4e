"""What is written down of one test of one run: a line of JSON."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class PipeCall:
    """One call of a pipeline by a test; of pipelines that call others, the outermost.

    Attributes:
        form: types and shapes of the result, as text; empty where there was none.
        values: a digest of all its numbers.
        finite: whether all of them are.
        rounds: denoiser calls that were not computed in full.
        refused: why AsyncDiff would not be attached, if it would not: the call was made without it.
        error: the kind of error that the call ended with, if it did.
    """

    pipeline: str
    form: str = ""
    values: str = ""
    finite: bool = True
    rounds: int = 0
    refused: str = ""
    error: str = ""


@dataclass(frozen=True)
class Failure:
    """What a test failed with.

    Attributes:
        kinds: the error's class and the classes that it is derived from, by name, most derived first.
        causes: the classes of the errors that led to it.
        text: its message.
        origin: whose code raised it: "tests", "asyncdiff", "diffusers", or "" where it was none of these.
    """

    kinds: tuple[str, ...]
    text: str
    causes: tuple[str, ...] = ()
    origin: str = ""

    def __str__(self) -> str:
        return f"{self.kinds[0]}: {' '.join(self.text.split())[:200]}"


@dataclass(frozen=True)
class Record:
    """One test of one run.

    Attributes:
        outcome: "passed", "failed", "skipped", or "crashed" where the process ended.
        skipped: why it was.
        seconds: with what its fixtures took.
    """

    test: str
    outcome: str
    calls: tuple[PipeCall, ...] = ()
    failure: Failure | None = None
    skipped: str = ""
    seconds: float = field(default=0.0, compare=False)


def to_line(record: Record) -> str:
    """As one line of JSON."""
    return json.dumps(asdict(record)) + "\n"


def from_line(line: str) -> Record:
    """What `to_line` wrote."""
    content: dict[str, Any] = json.loads(line)
    failure = content.pop("failure")
    calls = tuple(PipeCall(**call) for call in content.pop("calls"))
    if failure is not None:
        kinds, causes = tuple(failure.pop("kinds")), tuple(failure.pop("causes"))
        failure = Failure(kinds, causes=causes, **failure)
    return Record(calls=calls, failure=failure, **content)


def read(path: Path) -> dict[str, Record]:
    """All records of a run, by test."""
    with path.open(encoding="utf-8") as lines:
        return by_test(map(from_line, lines))


def by_test(records: Iterable[Record]) -> dict[str, Record]:
    """Records by the test that they are of."""
    return {record.test: record for record in records}
