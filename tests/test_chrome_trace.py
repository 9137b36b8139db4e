"""Events as a trace file: what Chrome's Trace Event Format asks of one, and what is in it."""

import json
from typing import Any

import torch

from asyncdiff.chrome_trace import rank_text, whole_text
from asyncdiff.events import Events
from asyncdiff.happening import Event, Kind


def written(*events: Event, rank: int | None = 1) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(whole_text([rank_text(rank, events)]))["traceEvents"]
    return entries


def event(kind: Kind, begin: float, end: float, on_device: tuple[float, float] | None = None) -> Event:
    return Event(kind, "name", begin, end, on_device, {"sent": "8 B"})


def test_what_a_row_does_is_a_span_in_microseconds() -> None:
    entry = written(event(Kind.UNIT, 5.0, 5.5), event(Kind.UNIT, 6.0, 6.25))[-1]
    assert entry == {
        "name": "name",
        "cat": "unit",
        "ph": "X",
        "pid": 1,
        "tid": 0,
        "ts": 1e6,
        "dur": 0.25e6,
        "args": {"sent": "8 B"},
    }


def test_what_is_on_its_way_has_a_beginning_and_an_end_of_the_same_number() -> None:
    entries = written(event(Kind.EXCHANGE, 0.0, 2.0), event(Kind.EXCHANGE, 1.0, 3.0))[-4:]
    assert [(each["ph"], each["ts"]) for each in entries] == [("b", 0.0), ("e", 2e6), ("b", 1e6), ("e", 3e6)]
    numbers = [each["id2"]["local"] for each in entries]
    assert numbers[0] == numbers[1] != numbers[2] == numbers[3]
    # One row of its rank's, in which all lies: a viewer has one for each name.
    assert {each["name"] for each in entries} == {"on its way"} and {each["pid"] for each in entries} == {1}
    assert entries[0]["args"] == {"what": "name", "sent": "8 B"}


def test_every_rank_is_named() -> None:
    entries = json.loads(whole_text([rank_text(0, []), rank_text(1, [])]))["traceEvents"]
    names = {each["pid"]: each["args"]["name"] for each in entries if each["name"] == "process_name"}
    assert names == {0: "rank 0", 1: "rank 1"}
    (name,) = (each["args"]["name"] for each in written(rank=None) if each["name"] == "process_name")
    assert "all ranks" in name


def test_a_device_has_a_row_of_its_own() -> None:
    entries = written(event(Kind.UNIT, 0.0, 1.0, (2.0, 5.0)), event(Kind.EXCHANGE, 0.0, 1.0, (3.0, 4.0)))
    host, device = (each for each in entries if each["ph"] == "X")
    assert (host["tid"], host["ts"], host["dur"]) == (0, 0.0, 1e6)
    assert (device["tid"], device["ts"], device["dur"]) == (1, 2e6, 3e6)
    assert [each["ts"] for each in entries if each["ph"] in "be"] == [3e6, 4e6]


def test_nothing_is_noted_while_nobody_wants_to_know() -> None:
    events = Events(torch.device("cpu"))
    begin = events.mark()
    with events.span(Kind.UNIT, "before"):
        events.start()
    events.note(Kind.WAIT, "begun before", begin)
    with events.span(Kind.UNIT, "while"):
        pass
    assert [each.name for each in events.stop()] == ["while"]
    with events.span(Kind.UNIT, "after"):
        pass
    events.start()
    assert not events.stop()
