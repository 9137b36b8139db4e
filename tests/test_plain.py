"""Records go through JSON unchanged, and what is no such record is refused."""

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from asyncdiff.evaluation.study import Account, Picture
from asyncdiff.launch import Outcome
from asyncdiff.made.media import Made, Sound
from asyncdiff.plain import from_text, to_text
from asyncdiff.plan.schedule import StepKind
from asyncdiff.report import Counts, DenoiserReport, GuidanceCounts, Report

names = st.text(max_size=9)
numbers = st.integers(0, 10**12)
reals = st.floats(0, 1e9)

counts = st.builds(
    Counts,
    full=st.dictionaries(names, numbers, max_size=3).map(Counter),
    rounds=numbers,
    inserted=st.dictionaries(numbers, st.sampled_from(StepKind), max_size=3),
    largest_error=reals,
    seconds_full=reals,
    kinds=st.lists(st.sampled_from(StepKind), max_size=3),
)
denoisers = st.builds(
    DenoiserReport,
    name=names,
    components=st.lists(st.lists(names, max_size=3).map(tuple), max_size=3).map(tuple),
    shares=st.lists(reals, max_size=3).map(tuple),
    live_edges=st.just((("mid_block → 0",), ())),
    bytes_per_round=numbers,
    held_bytes=numbers,
    counts=counts,
    modelled_speedup=reals,
    guidance=st.builds(GuidanceCounts, split=numbers, cost=reals, reason=names),
)
reports = st.builds(
    Report,
    executor=names,
    ranks=st.lists(numbers, max_size=3).map(tuple),
    world_size=numbers,
    components=numbers,
    stride=numbers,
    warmup=numbers,
    bytes_sent=numbers,
    seconds_waited=reals,
    denoisers=st.lists(denoisers, max_size=2).map(tuple),
)


@settings(max_examples=30)
@given(reports)
def test_a_report_comes_back_as_it_was(report: Report) -> None:
    found = from_text(Report, to_text(report))
    assert found == report
    for there, here in zip(found.denoisers, report.denoisers, strict=True):
        assert type(there.counts.full) is Counter
        assert [type(kind) for kind in there.counts.inserted.values()] == [StepKind] * len(here.counts.inserted)


@given(st.binary(min_size=12, max_size=12), st.sampled_from([("L", (4, 3)), ("RGB", (2, 2)), ("RGBA", (3, 1))]))
def test_so_does_a_picture(values: bytes, form: tuple[str, tuple[int, int]]) -> None:
    picture = Image.frombytes(*form, values)
    found = from_text(Outcome, to_text(Outcome(Made((picture,)), 1.5, None)))
    (there,) = found.made.pictures
    assert (there.mode, there.size) == form
    assert there.tobytes() == values
    assert found.seconds == 1.5 and found.report is None


def test_and_videos_and_sound() -> None:
    frames = tuple(Image.new("RGB", (2, 2), (number, 0, 0)) for number in range(3))
    sound = Sound(np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4), 8000)
    found = from_text(Made, to_text(Made(videos=(frames, frames[:1]), sounds=(sound,))))
    assert [[frame.getpixel((0, 0)) for frame in video] for video in found.videos] == [
        [(0, 0, 0), (1, 0, 0), (2, 0, 0)],
        [(0, 0, 0)],
    ]
    assert found.sounds[0].rate == 8000 and np.array_equal(found.sounds[0].samples, sound.samples)


def test_and_mappings() -> None:
    picture = Picture(Made((Image.new("RGB", (2, 2)),)), 2.0, Account({"full": 3}, {"unet": 1.5}, 7))
    assert from_text(Picture, to_text(picture)).account == picture.account
    assert from_text(Picture, to_text(dataclasses.replace(picture, account=None))).account is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "1",
        '{"seconds": 1.0, "report": null}',
        '{"made": {"pictures": ["x"], "videos": [], "sounds": []}, "seconds": 1.0, "report": null}',
        '{"made": null, "seconds": 1.0, "report": null}',
        to_text(Outcome(Made(), 1.0, None)).replace("1.0", '"long"'),
        to_text(Outcome(Made(), 1.0, None)).replace("null", '{"executor": "local"}'),
    ],
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        from_text(Outcome, text)


@pytest.mark.parametrize("value", [object(), b"bytes", {1, 2}, np.float32(2), print])
def test_what_has_no_plain_form_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="has no plain form"):
        to_text(value)
