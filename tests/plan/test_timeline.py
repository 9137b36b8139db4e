"""Times against such as were worked out by hand, and against the model without communication."""

import functools
import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncdiff.denoiser.trace import Trace
from asyncdiff.plan.course import Course
from asyncdiff.plan.layers import divide_layers
from asyncdiff.plan.link import Link
from asyncdiff.plan.method import PAPER
from asyncdiff.plan.schedule import Schedule, StepKind
from asyncdiff.plan.timeline import Activity, Load, Span, Timeline, timeline
from asyncdiff.plan.token_counting import CountedTokens, count_tokens
from asyncdiff.plan.token_layout import Extent
from asyncdiff.plan.tokens import TokenDivision, divide_tokens
from asyncdiff.planning.candidates import Conditions, Planner, Way
from tests.plan.joint import OPERATIONS_ALONE, TEXT, TOKENS, WIDTH, Joint, traces
from tests.planning.chain import LAYER, RATES, TENSOR, divided, subject

CALL = 8.0
LINK = Link("slow", 1000.0, 1.0)  # a tensor of 4000 bytes takes 5 seconds
INSTANT = Link("instant", math.inf, 0.0)


def generation(schedule: Schedule, steps: int, groups: int = 1, calls: int = 1, link: Link = LINK) -> Timeline:
    division = divided(schedule)
    load = Load(CALL, calls, 1.0, TENSOR, groups, (0.0,) * division.schedule.world_size, 0.0)
    return timeline(division, Course(division.schedule, steps - 1), load, link)


def of(found: Timeline, rank: int, activity: Activity) -> list[tuple[float, float]]:
    return [(span.begin, span.end) for span in found.spans if (span.rank, span.activity) == (rank, activity)]


def test_two_components_by_hand() -> None:
    """The first step in full, then rounds of half a call: first the prediction travels, then the live edge.

    Rank 1 makes the predictions. It does not wait for its own; it waits for rank 0's live edge before it computes.
    """
    found = generation(Schedule(2, 1, 1), 3)
    assert of(found, 0, Activity.COMPUTING) == [(0, 8), (13, 17), (18, 22)]
    assert of(found, 1, Activity.COMPUTING) == [(0, 8), (8, 12), (23, 27)]
    assert of(found, 1, Activity.SENDING) == [(8, 13), (13, 18), (27, 32)]
    assert of(found, 0, Activity.SENDING) == [(18, 23)]  # nobody reads the last round's
    assert of(found, 0, Activity.WAITING) == [(8, 13), (17, 18), (22, 32)]
    assert of(found, 1, Activity.WAITING) == [(12, 23)]
    assert found.seconds == 32
    assert found.sent == 4 * TENSOR


def test_a_chained_step_by_hand() -> None:
    """Half a call, the live edge, the other half, the prediction."""
    found = generation(Schedule(2, 1, 1, chained=True), 1)
    assert of(found, 0, Activity.COMPUTING) == [(0, 4)]
    assert of(found, 1, Activity.COMPUTING) == [(9, 13)]
    assert of(found, 0, Activity.SENDING) == [(4, 9)]
    assert of(found, 1, Activity.WAITING) == [(0, 9)]
    assert found.seconds == 4 + 5 + 4 + 5
    assert {span.kind for span in found.spans} == {StepKind.CHAINED}


def test_groups_by_hand() -> None:
    """In every step each group sends its own result to the two others, which takes 9 seconds."""
    found = generation(Schedule(1, 1, 2), 2, groups=3)
    assert of(found, 0, Activity.SENDING) == [(8, 17), (25, 34)]
    assert (found.seconds, found.sent) == (34, 4 * TENSOR)


@functools.cache
def recorded() -> list[Trace]:
    return traces(Joint(), TOKENS, 2 * TOKENS, 3 * TOKENS)


@functools.cache
def counted_tokens() -> CountedTokens:
    return count_tokens(recorded(), OPERATIONS_ALONE)


def divided_by_tokens(schedule: Schedule, components: int = 1) -> TokenDivision:
    counted, states = counted_tokens(), {unit: {0: Extent(1, TEXT)} for unit in (0, 1)}
    layout = replace(counted.layout, inputs=states, made=states)
    share = counted.share(schedule.components // components)
    layers = divide_layers(layout, recorded()[0], components, residual=False)
    return divide_tokens(layout, schedule, OPERATIONS_ALONE, PAPER, share, {}, layers=layers)


def of_tokens(schedule: Schedule, steps: int, link: Link = LINK, components: int = 1, divided: float = 0.0) -> Timeline:
    division = divided_by_tokens(schedule, components)
    load = Load(CALL, 1, 1.0, TENSOR, 1, (0.0,) * division.schedule.world_size, 0.0, divided)
    return timeline(division, Course(division.schedule, steps - 1), load, link)


def test_divided_tokens_by_hand() -> None:
    """A step in full: half of the tokens, then keys at two attentions, then what the last block gives of them.

    A round: keys are on their way until the next one; what the last block gives is waited for.
    """
    division = divided_by_tokens(Schedule(2, 1, 1, by_tokens=True))
    part, number = division.partition.shares[0] * CALL, 4  # bytes
    keys = 2 * 2 * TOKENS // 2 * WIDTH * number
    result = (TEXT + TOKENS) * WIDTH * number / 2
    full = of_tokens(Schedule(2, 1, 5, by_tokens=True), 1)
    assert full.seconds == pytest.approx(part + keys / 1000 + 2 + result / 1000 + 1)
    assert full.sent == 2 * (keys + result)
    assert {span.kind for span in full.spans} == {StepKind.DIVIDED}
    both = of_tokens(Schedule(2, 1, 1, by_tokens=True), 3)
    assert both.sent == pytest.approx(2 * (2 * keys + 3 * result)), "nobody reads the last round's keys"
    fresh = of_tokens(Schedule(2, 1, 1, by_tokens=True, fresh=True), 3)
    assert fresh.seconds == pytest.approx(3 * full.seconds)
    packing = of_tokens(Schedule(2, 1, 1, by_tokens=True, fresh=True), 3, divided=2.0)
    assert packing.seconds == pytest.approx(fresh.seconds + 3 * 2.0), "in every step that is divided"


def test_tokens_and_components_by_hand() -> None:
    """A block for each of two components, half of the tokens on each of its ranks.

    In full the ranks of a component exchange keys at both attentions; in a round at their own, and a rank of the first
    gives the one with the same tokens what it makes of them, and of the text. The second gives all others its result.
    """
    schedule = Schedule(4, 1, 1, by_tokens=True)
    division, number = divided_by_tokens(schedule, components=2), 4  # bytes
    keys = 2 * TOKENS // 2 * WIDTH * number  # of one attention
    states, result = (TEXT + TOKENS // 2) * WIDTH * number, (TEXT + TOKENS) * WIDTH * number / 2
    full = of_tokens(Schedule(4, 1, 5, by_tokens=True), 1, components=2)
    assert full.seconds == pytest.approx(division.share * CALL + 2 * keys / 1000 + 2 + 3 * result / 1000 + 1)
    assert full.sent == 4 * 2 * keys + 2 * 3 * result
    three = of_tokens(schedule, 3, components=2)
    assert three.sent == pytest.approx(full.sent + 4 * keys + 2 * states + 2 * 2 * 3 * result)
    assert division.partition.shares == pytest.approx([division.share / 2] * 4)


@given(
    st.integers(1, 4),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 2),
    st.integers(1, 12),
    st.booleans(),
)
def test_so_it_is_with_divided_tokens(
    parts: int, components: int, bridge: int, warmup: int, cooldown: int, steps: int, fresh: bool
) -> None:
    """Without communication, the model that reports go by."""
    schedule = Schedule(
        parts * components,
        1,
        warmup,
        bridge=bridge,
        cooldown=cooldown,
        by_tokens=True,
        fresh=fresh and components == 1,
    )
    expected = steps * CALL / divided_by_tokens(schedule, components).modelled_speedup(steps)
    assert of_tokens(schedule, steps, INSTANT, components).seconds == pytest.approx(expected)


def test_several_calls_of_a_step_come_one_after_the_other() -> None:
    assert generation(Schedule(1, 1, 3), 3, calls=2).seconds == 3 * 2 * CALL


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(0, 2), st.integers(1, 12), st.booleans())
def test_without_communication_it_is_the_model_of_the_paper(
    components: int, bridge: int, warmup: int, cooldown: int, steps: int, chained: bool
) -> None:
    schedule = Schedule(components, 1, warmup, bridge=bridge, cooldown=cooldown, chained=chained)
    found = generation(schedule, steps, link=INSTANT)
    assert found.seconds == pytest.approx(steps * CALL / divided(schedule).modelled_speedup(steps))


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 10), st.booleans(), st.floats(0, 2), st.floats(1e3, 1e6))
def test_no_device_does_two_things_at_once(
    components: int, stride: int, steps: int, chained: bool, latency: float, bandwidth: float
) -> None:
    """It may compute while it sends, but neither two parts nor two messages at a time; and it never idles unsaid."""
    schedule = Schedule(components, stride, 2, chained=chained)
    found = generation(schedule, steps, link=Link("some", bandwidth, latency))
    for rank in range(schedule.world_size):
        own = [span for span in found.spans if span.rank == rank]
        check_in_a_row([span for span in own if span.activity is Activity.SENDING])
        busy = [span for span in own if span.activity is not Activity.SENDING]
        check_in_a_row(busy)
        assert sum(span.end - span.begin for span in busy) == pytest.approx(max(span.end for span in busy))


def check_in_a_row(spans: list[Span]) -> None:
    for before, after in itertools.pairwise(spans):
        assert before.end <= after.begin + 1e-9


CALLS = {1.0: CALL, 0.5: CALL / 2, 0.25: CALL / 4}


def planner(**changed: object) -> Planner:
    given = dict(devices=4, memory=None, link=LINK, rates=RATES, steps=10, warmup=2, call=CALLS)
    return Planner(subject(), Conditions(**{**given, **changed}), {})  # type: ignore[arg-type]


def test_candidates_by_hand() -> None:
    found = {str(candidate.way): candidate for candidate in planner().candidates()}
    plain = found["components=1"]
    assert (plain.seconds, plain.speedup, plain.devices) == (10 * CALL, 1.0, 1)
    assert plain.way.is_exact and plain.decibels == math.inf
    halves = found["guidance=2, components=1"]
    assert halves.seconds == pytest.approx(10 * (CALL / 2 + 1 + TENSOR / 2 / 1000))
    assert halves.bytes_per_picture == 10 * 2 * TENSOR / 2
    assert found["components=2"].bytes_per_round == TENSOR
    # Four components have a layer each; the heaviest share of a device is one quarter of the weights.
    assert found["components=4, shard=True"].memory.own_weights == LAYER
    assert not any(way.startswith("guidance=3, components=1") for way in found), "a batch of 4 has no three parts"


def test_the_timeline_of_a_way_is_what_its_candidate_says() -> None:
    planned = planner()
    for candidate in planned.candidates():
        assert planned.timeline(candidate.way).seconds == candidate.seconds


def test_more_components_than_layers_are_no_candidates() -> None:
    assert {candidate.way.components for candidate in planner(devices=6).candidates()} == {1, 2, 3, 4}


def test_a_call_for_each_branch_gives_a_branch_to_each_group() -> None:
    planned = Planner(subject(calls=2), Conditions(2, None, INSTANT, RATES, 10, 2, CALLS), {})
    ways = {str(candidate.way): candidate for candidate in planned.candidates()}
    assert ways["components=1"].seconds == 10 * 2 * CALL
    assert Way(2, 1, 1, 1, False, 2).devices == 2
    assert ways["guidance=2, components=1"].speedup == pytest.approx(2.0)
