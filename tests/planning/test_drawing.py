"""The timeline as a picture: everything that is done is in it, in its place."""

import math
from xml.etree import ElementTree

from asyncdiff.plan.schedule import Schedule, StepKind
from asyncdiff.plan.timeline import Activity, Span, Timeline
from asyncdiff.planning.drawing import draw
from tests.plan.test_timeline import generation

SVG = "{http://www.w3.org/2000/svg}"


def bars(picture: str) -> list[tuple[str, float, float]]:
    """What each bar says, where it begins, and how long it is."""
    return [
        (said.text or "", float(rect.get("x", math.nan)), float(rect.get("width", math.nan)))
        for rect in ElementTree.fromstring(picture).iter(f"{SVG}rect")
        for said in rect.iter(f"{SVG}title")
    ]


def test_bars_are_as_long_as_what_they_stand_for() -> None:
    """One device computes for a second, waits for three, and sends meanwhile for two."""
    kind = StepKind.FULL
    spans = (
        Span(0, 0.0, 1.0, Activity.COMPUTING, 0, kind),
        Span(0, 1.0, 3.0, Activity.SENDING, 0, kind),
        Span(0, 1.0, 4.0, Activity.WAITING, 0, kind),
    )
    whole = bars(draw(Timeline(spans, 4.0, 0.0), 1, "title"))[1:4]
    assert [said.split(":")[0] for said, _, _ in whole] == [
        "computing, step 0 (full)",
        "sending, step 0 (full)",
        "waiting, step 0 (full)",
    ]
    second = whole[0][2]
    assert [round(width / second, 2) for _, _, width in whole] == [1, 2, 3]
    assert round((whole[2][1] - whole[0][1]) / second, 2) == 1


def test_every_device_of_every_group_has_a_row() -> None:
    picture = draw(generation(Schedule(3, 1, 2, chained=True), 6), 2, "three & three")
    texts = [text.text for text in ElementTree.fromstring(picture).iter(f"{SVG}text")]
    for device in range(6):
        assert texts.count(f"device {device}") == 2, "in both panels"
    assert "three & three" in texts
    assert {"chained step", "round step", "computing", "sending", "waiting"} <= {*texts}
    assert "bridged step" not in texts


def test_the_title_has_its_line_for_itself() -> None:
    """However long it is."""
    picture = ElementTree.fromstring(draw(generation(Schedule(3, 1, 2, chained=True), 6), 2, "a long title"))
    (title, *others) = picture.iter(f"{SVG}text")
    assert title.text == "a long title"
    assert all(float(text.get("y", 0)) > float(title.get("y", 0)) + 12 for text in others)


def test_the_enlarged_part_begins_with_the_last_step_in_full() -> None:
    picture = draw(generation(Schedule(2, 1, 4), 12), 1, "")
    assert "steps 3 to 7" in picture
