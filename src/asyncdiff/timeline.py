"""Events of all ranks as a timeline: what each rank did and when, little enough to be sent and drawn. Pure.

It is measured; what is modelled before anything runs is `asyncdiff.plan.timeline`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from asyncdiff.happening import Event, Kind

# Of these a step has many. Those between which less than this part of the whole passes are drawn, and sent, as one.
_MERGED = (Kind.WAIT, Kind.EXCHANGE, Kind.PART)
_RESOLUTION = 1 / 2000
_SHOWN = (Kind.STEP, *_MERGED)
_DIGITS = 6  # of seconds


@dataclass(frozen=True)
class Span:
    """What a rank did for a while.

    Attributes:
        what: "step", a call of the denoiser; "part", another part of the pipeline; "waiting", for other ranks, within
            one of those or between them; "exchange", what is on its way meanwhile.
        begin, end: seconds from the beginning of the timeline.
        name: of a step its kind ("full", "round", "bridged"), of a part its name.
        step: which one it is, from 0; None for what is none.
    """

    what: str
    begin: float
    end: float
    name: str = ""
    step: int | None = None


@dataclass(frozen=True)
class Row:
    """What one rank did.

    Attributes:
        rank: which one.
        spans: in the order in which they began.
        seconds_waited: in all, for other ranks.
    """

    rank: int
    spans: tuple[Span, ...]
    seconds_waited: float


@dataclass(frozen=True)
class Timeline:
    """What all ranks did in one stretch of time.

    Attributes:
        rows: rank by rank.
        seconds: from the first beginning to the last end.
    """

    rows: tuple[Row, ...]
    seconds: float

    def as_data(self) -> dict[str, Any]:
        """As JSON has it; seconds are rounded to millionths."""
        ranks = [
            {
                "rank": row.rank,
                "seconds_waited": round(row.seconds_waited, _DIGITS),
                "spans": [_as_data(span) for span in row.spans],
            }
            for row in self.rows
        ]
        return {"seconds": round(self.seconds, _DIGITS), "ranks": ranks}


def row_of(rank: int, events: Sequence[Event]) -> Row:
    """The row of a rank, in seconds since 1970."""
    shown = sorted((_span(event) for event in events if event.kind in _SHOWN), key=lambda span: (span.begin, -span.end))
    if not shown:
        return Row(rank, (), 0.0)
    waited = sum(span.end - span.begin for span in shown if span.what == Kind.WAIT.value)
    least = _RESOLUTION * (max(span.end for span in shown) - shown[0].begin)
    return Row(rank, _merged(shown, least), waited)


def timeline_of(rows: Sequence[Row]) -> Timeline:
    """The rows side by side; its time begins with the first span of all."""
    spans = [span for row in rows for span in row.spans]
    first = min((span.begin for span in spans), default=0.0)
    moved = [
        replace(row, spans=tuple(replace(span, begin=span.begin - first, end=span.end - first) for span in row.spans))
        for row in rows
    ]
    return Timeline(tuple(moved), max((span.end for span in spans), default=first) - first)


def _span(event: Event) -> Span:
    begin, end = event.on_device or (event.begin, event.end)
    if event.kind is Kind.STEP:
        return Span(event.kind.value, begin, end, event.details["kind"], int(event.details["index"]))
    return Span(event.kind.value, begin, end, event.name if event.kind is Kind.PART else "")


def _merged(spans: Sequence[Span], least: float) -> tuple[Span, ...]:
    """The spans, in order; of those that are merged, neighbours of one name with a gap of less than `least` are one."""
    kinds = [kind.value for kind in _MERGED]
    found: list[Span] = []
    last: dict[tuple[str, str], int] = {}  # where in `found` the newest of a name is
    for span in spans:
        place = last.get((span.what, span.name))
        if place is not None and span.begin - found[place].end < least:
            found[place] = replace(found[place], end=max(found[place].end, span.end))
            continue
        if span.what in kinds:
            last[span.what, span.name] = len(found)
        found.append(span)
    return tuple(found)


def _as_data(span: Span) -> dict[str, Any]:
    told: dict[str, Any] = {"what": span.what, "begin": round(span.begin, _DIGITS), "end": round(span.end, _DIGITS)}
    told |= {"name": span.name} if span.name else {}
    return told if span.step is None else told | {"step": span.step}
