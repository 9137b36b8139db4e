"""Events of all ranks as a file that trace viewers open: Chrome's Trace Event Format, which Perfetto reads.

https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from asyncdiff.happening import Event, Kind

_HOST, _DEVICE = 0, 1
_ON_ITS_WAY = "on its way"


def rank_text(rank: int | None, events: Sequence[Event]) -> str:
    """What happened on one rank, as `whole_text` takes it; None stands for a process that computed for all."""
    return json.dumps(list(_entries(rank, events)))


def whole_text(ranks: Iterable[str]) -> str:
    """The file's text; its time begins with the first event of all."""
    entries: list[dict[str, Any]] = [entry for text in ranks for entry in json.loads(text)]
    first = min((entry["ts"] for entry in entries if "ts" in entry), default=0.0)
    moved = [entry | {"ts": round(entry["ts"] - first, 3)} if "ts" in entry else entry for entry in entries]
    return json.dumps({"traceEvents": moved, "displayTimeUnit": "ms"})


def _entries(rank: int | None, events: Sequence[Event]) -> Iterator[dict[str, Any]]:
    number = rank or 0
    name = "all ranks in one process, by turns" if rank is None else f"rank {rank}"
    has_device = any(event.on_device is not None for event in events)
    yield _named("process_name", number, _HOST, {"name": name})
    yield _named("process_sort_index", number, _HOST, {"sort_index": number})
    yield _named("thread_name", number, _HOST, {"name": "host" if has_device else "computing and waiting"})
    if has_device:
        yield _named("thread_name", number, _DEVICE, {"name": "device"})
    for order, event in enumerate(events):
        about = {"name": event.name, "cat": event.kind.value, "pid": number, "args": dict(event.details)}
        if event.kind is Kind.EXCHANGE:  # several are on their way at a time, and none belongs to the row's own work
            begin, end = event.on_device or (event.begin, event.end)
            # Perfetto has a row for each name, and shows what is not of one process beside all ranks.
            about |= {"name": _ON_ITS_WAY, "tid": _HOST, "id2": {"local": str(order)}}
            about["args"] = {"what": event.name, **event.details}
            yield about | {"ph": "b", "ts": begin * 1e6}
            yield about | {"ph": "e", "ts": end * 1e6}
            continue
        yield about | {"tid": _HOST} | _complete(event.begin, event.end)
        if event.on_device is not None:
            yield about | {"tid": _DEVICE} | _complete(*event.on_device)


def _complete(begin: float, end: float) -> dict[str, Any]:
    return {"ph": "X", "ts": begin * 1e6, "dur": round((end - begin) * 1e6, 3)}


def _named(what: str, number: int, row: int, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": number, "tid": row, "args": dict(arguments)}
