"""What is marked and chosen, against hand-made candidates and against all pairs of them."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from asyncdiff.planning.candidates import Candidate, Way, ways
from asyncdiff.planning.choosing import CLOSE_ENOUGH, choose, mark_best
from asyncdiff.planning.indication import Indication, indication_of, read_indications
from asyncdiff.planning.memory import Memory

MEMORY = Memory(0, 2**30, 0, 0, 0, 0)
WAY = Way(guidance=1, components=2, stride=1, bridge=1, shard=False, warmup=5)
EXACT = replace(WAY, guidance=2, components=1)


def candidate(seconds: float, decibels: float | None, missing: float = 0.0, way: Way = WAY) -> Candidate:
    known = None if decibels is None else Indication(decibels + 5, decibels, 2)
    return Candidate(way, way.devices, seconds, 10 / seconds, 0, 0, MEMORY, missing, known)


def chosen(*candidates: Candidate) -> tuple[Candidate | None, str]:
    return choose(mark_best(candidates))


def test_the_fastest_that_is_close_enough() -> None:
    found, reason = chosen(candidate(3, 70), candidate(2, 60), candidate(1, 40))
    assert found is not None and found.seconds == 2
    assert "The fastest that fits and stays as close as 55 dB" in reason and "60.0 dB; an indication" in reason


def test_what_does_not_fit_is_not_taken() -> None:
    found, _ = chosen(candidate(3, 70), candidate(2, 60, missing=1))
    assert found is not None and found.seconds == 3


def test_the_exact_one() -> None:
    found, reason = chosen(candidate(3, 70), candidate(2, None, way=EXACT))
    assert found is not None and found.way is EXACT
    assert reason == "The fastest that fits, and its pictures are the ordinary ones."


def test_the_closest_where_none_is_close() -> None:
    found, reason = chosen(candidate(3, 50), candidate(2, 40))
    assert found is not None and found.seconds == 3
    assert "this is the closest" in reason


def test_where_nothing_fits_it_is_said_by_how_much() -> None:
    found, reason = chosen(candidate(3, 50, missing=2 * 2**20), candidate(2, 40, missing=2**20))
    assert found is None
    assert reason == (
        "Nothing fits: components=2 needs the least, 1.00 GiB on a device, which is 1.00 MiB more than there is."
    )


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(40, 44), st.booleans()), min_size=1, max_size=8))
def test_marked_is_what_no_other_beats(points: list[tuple[int, int, bool]]) -> None:
    found = mark_best([candidate(seconds, decibels, 0.0 if fits else 1.0) for seconds, decibels, fits in points])
    for own, (seconds, decibels, fits) in zip(found, points, strict=True):
        better = [
            (other, its)
            for other, its, is_there in points
            if is_there and other <= seconds and its >= decibels and (other, its) != (seconds, decibels)
        ]
        assert own.is_best == (fits and not better)


def test_ways_take_no_more_devices_than_there_are() -> None:
    found = list(ways(4, 5))
    assert len(found) == len(set(found))
    assert {way.devices for way in found} == {1, 2, 3, 4}
    assert all(way.components > 1 or not way.shard for way in found)


def test_the_indications_are_those_of_the_docs() -> None:
    known = read_indications()
    assert known[2, 1, 1] == Indication(69.4, 62.7, 2)
    assert known[2, 1, 2] == Indication(62.2, 56.5, 2)


def test_what_was_not_measured_is_told_by_the_next_more_components() -> None:
    known = read_indications()
    assert indication_of(known, 5, 1, 1) == known[8, 1, 1]
    assert indication_of(known, 9, 1, 1) is None
    assert indication_of(known, 2, 3, 1) is None
    assert known[4, 1, 1].least > CLOSE_ENOUGH
