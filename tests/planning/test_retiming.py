"""Measured units in place of counted ones: of four layers that are counted as equal, by hand."""

import math
from dataclasses import replace

import pytest

from asyncdiff.plan.link import Link
from asyncdiff.plan.schedule import Schedule, StepKind
from asyncdiff.planning.candidates import Conditions, Planner, Way
from asyncdiff.planning.retiming import retimed
from tests.planning.chain import RATES, divided, subject

SECONDS = {("layers.0", 0): 1.0, ("layers.1", 0): 1.5, ("layers.2", 0): 3.0, ("layers.3", 0): 2.0}
CALL = 8.0  # half a second of it is nobody's


def test_shares_are_those_of_the_time_and_the_components_stay() -> None:
    counted = divided(Schedule(2, 1, 1))
    measured = retimed(counted, subject().trace, RATES, SECONDS, CALL)
    assert counted.partition.shares == (0.5, 0.5)
    assert measured.partition.shares == (3 / 8, 5.5 / 8), "everybody runs what is nobody's"
    assert measured.partition.components == counted.partition.components
    assert measured.messages == counted.messages
    assert measured.graph.time == CALL


def test_units_that_were_joined_take_what_they_are_joined_of() -> None:
    measured = retimed(divided(Schedule(1, 1, 1)), subject().trace, RATES, SECONDS, CALL)
    assert sum(unit.time for unit in measured.graph.units) == sum(SECONDS.values())
    assert measured.partition.shares == (1.0,)


@pytest.mark.parametrize("shard", [False, True])
def test_a_plan_goes_by_them(shard: bool) -> None:
    """Rounds wait for the heavier component; steps in full take what a call takes, chained or not."""
    given = Conditions(2, None, Link("instant", math.inf, 0.0), RATES, 4, 1, {1.0: CALL})
    way = Way(guidance=1, components=2, stride=1, bridge=1, shard=shard, warmup=1)
    counted, measured = (
        Planner(subject(), conditions, {}).timeline(way) for conditions in (given, replace(given, units=SECONDS))
    )
    rounds = len({span.step for span in counted.spans if span.kind is StepKind.ROUND})
    assert rounds and measured.seconds - counted.seconds == pytest.approx((5.5 - 4) * rounds)
