"""A timeline is the trace of the same events, in fewer words."""

import itertools
import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncdiff import AsyncDiff
from asyncdiff.chrome_trace import rank_text, whole_text
from asyncdiff.happening import Event, Kind
from asyncdiff.timeline import Row, Span, row_of, timeline_of
from tests.tiny.narrow import load_narrow_demo

STEPS = 8


def event(kind: Kind, begin: float, end: float, name: str = "", **more: Any) -> Event:
    details = {"index": "2", "kind": "round"} if kind is Kind.STEP else {}
    return Event(kind, name, begin, end, more.get("on_device"), details)


def test_what_a_row_says() -> None:
    events = [
        event(Kind.PART, 100.0, 101.0, "text_encoder"),
        event(Kind.UNIT, 101.0, 102.0, "mid_block"),
        event(Kind.WAIT, 102.0, 102.5, "live edges of step 1"),
        event(Kind.STEP, 101.0, 103.0, "step 2, round"),
        event(Kind.EXCHANGE, 102.0, 104.0, "live edges of step 2"),
    ]
    row = row_of(1, events)
    assert row.rank == 1 and row.seconds_waited == 0.5
    assert row.spans == (
        Span("part", 100.0, 101.0, "text_encoder"),
        Span("step", 101.0, 103.0, "round", 2),
        Span("exchange", 102.0, 104.0),
        Span("waiting", 102.0, 102.5),
    )


def test_all_ranks_count_from_the_first_of_all() -> None:
    rows = [row_of(rank, [event(Kind.STEP, begin, begin + 1.0)]) for rank, begin in enumerate((51.0, 50.0))]
    found = timeline_of(rows)
    assert [row.spans[0].begin for row in found.rows] == [1.0, 0.0] and found.seconds == 2.0
    assert json.loads(json.dumps(found.as_data())) == {
        "seconds": 2.0,
        "ranks": [
            {
                "rank": rank,
                "seconds_waited": 0.0,
                "spans": [{"what": "step", "begin": begin, "end": begin + 1, "name": "round", "step": 2}],
            }
            for rank, begin in enumerate((1.0, 0.0))
        ],
    }


def test_what_a_device_does_counts_by_its_own_time() -> None:
    (span,) = row_of(0, [event(Kind.STEP, 0.0, 0.1, on_device=(5.0, 7.0))]).spans
    assert (span.begin, span.end) == (5.0, 7.0)


def test_nothing_has_happened() -> None:
    assert row_of(0, []) == Row(0, (), 0.0)
    assert timeline_of([]).as_data() == {"seconds": 0.0, "ranks": []}
    assert timeline_of([row_of(0, [])]).seconds == 0.0


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 50)), min_size=1, max_size=60))
def test_waits_are_merged_and_none_is_lost(found: list[tuple[int, int]]) -> None:
    """No more than can be drawn; what was a wait is in one, and what is in one beside waits is too short to be seen."""
    waits = [event(Kind.WAIT, begin / 1e6, (begin + length) / 1e6) for begin, length in found]
    row = row_of(0, [*waits, event(Kind.STEP, 0.0, 1.0)])
    spans = [span for span in row.spans if span.what == "waiting"]
    assert len(spans) <= 2001
    assert row.seconds_waited == pytest.approx(sum(each.end - each.begin for each in waits))
    assert all(any(span.begin <= each.begin and each.end <= span.end for span in spans) for each in waits)
    assert all(later.begin - earlier.end >= 1 / 2000 for earlier, later in itertools.pairwise(spans))
    assert [span.begin for span in row.spans] == sorted(span.begin for span in row.spans)


def test_a_generation_is_the_same_as_a_trace_and_as_a_report() -> None:
    pipe: Any = load_narrow_demo()
    arguments = {"num_inference_steps": STEPS, "output_type": "pt"}

    def draw() -> torch.Tensor:
        picture: torch.Tensor = pipe("rocket", generator=torch.Generator().manual_seed(0), **arguments).images
        return picture

    with AsyncDiff(pipe, components=2, warmup=2, cooldown=1, guidance=1, bridge=2, executor="local") as attached:
        plain = draw()
        with attached.noted() as events:
            assert torch.equal(draw(), plain)
        counts = attached.counts()["unet"]
    row = row_of(0, events)
    steps = [span for span in row.spans if span.what == "step"]
    assert [span.name for span in steps] == [kind.value for kind in counts.kinds]
    assert [span.step for span in steps] == list(range(STEPS))
    assert {span.name for span in steps} == {"full", "round", "bridged"}
    traced = [each for each in json.loads(whole_text([rank_text(0, events)]))["traceEvents"] if each["ph"] == "X"]
    for what in ("step", "part"):
        expected = sum(each["dur"] for each in traced if each["cat"] == what) / 1e6
        told = sum(span.end - span.begin for span in row.spans if span.what == what)
        assert told == pytest.approx(expected, rel=0.01)
    assert {"text_encoder", "vae.decode"} <= {span.name for span in row.spans if span.what == "part"}
