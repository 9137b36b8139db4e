"""The line and its replicas: who is drawn when, again after a loss, and answered once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from asyncdiff.serving.front import Front
from asyncdiff.serving.orders import Drawn, Failed, Outcome
from asyncdiff.serving.waiting import FullError, Job
from tests.serving.stand_ins import SECONDS, StandIn, front_of


@asynccontextmanager
async def begun(front: Front) -> AsyncIterator[Front]:
    front.begin()
    yield front
    await front.end()


def submit(front: Front, prompt: str) -> Job:
    return front.submit({"prompt": prompt}, 0, {})


async def outcome(job: Job) -> Outcome:
    return await asyncio.wait_for(job.outcome(), SECONDS)


async def until(condition: Callable[[], object]) -> None:
    async def look() -> None:
        while not condition():
            await asyncio.sleep(0.005)

    await asyncio.wait_for(look(), SECONDS)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(test(), 4 * SECONDS)

    asyncio.run(limited())


def count(front: Front, name: str) -> float:
    lines = front.metrics.as_text().decode().splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == name)


def test_first_come_first_drawn_and_no_more_wait_than_may() -> None:
    async def test() -> None:
        replica = StandIn()
        async with begun(front_of(replica, waiting=2)) as front:
            jobs = [submit(front, "wait")]
            await until(lambda: replica.drawn)
            jobs += [submit(front, "one"), submit(front, "two")]
            with pytest.raises(FullError):
                submit(front, "three")
            assert front.states == ["drawing"] and front.waiting == count(front, "asyncdiff_requests_waiting") == 2
            assert front.retry_after >= 1
            replica.go_on.set()
            assert all([isinstance(await outcome(job), Drawn) for job in jobs])
            assert replica.drawn == ["wait", "one", "two"]
            assert (
                count(front, "asyncdiff_pictures_total") == 3
                and count(front, 'asyncdiff_steps_total{kind="full"}') == 6
            )

    run(test)


def test_who_goes_away_frees_the_place_and_ends_the_generation() -> None:
    async def test() -> None:
        replica = StandIn()
        async with begun(front_of(replica, waiting=1)) as front:
            first = submit(front, "wait")
            await until(lambda: replica.drawn)
            second = submit(front, "one")
            front.leave(second)
            third = submit(front, "two")  # there is room again
            front.leave(first)
            assert isinstance(await outcome(third), Drawn)
            assert replica.drawn == ["wait", "two"] and set(replica.stopped) == {first.order.number}
            assert await outcome(first) == Failed("stopped", "the generation was ended")

    run(test)


def test_what_a_lost_replica_drew_is_drawn_once_more_by_one_that_lives() -> None:
    async def test() -> None:
        lost, lives = StandIn(losses=1), StandIn(losses=0)
        async with begun(front_of(lost, lives)) as front:
            await until(lambda: front.states == ["ready", "ready"])
            busy = submit(front, "wait")
            await until(lambda: lost.drawn or lives.drawn)
            dies, other = (lives, lost) if lives.drawn == [] else (lost, lives)
            dies.losses, dies.is_well = 1, False
            job = submit(front, "lose")
            await until(lambda: dies.drawn == ["lose"])
            other.losses = 0
            other.go_on.set()
            assert isinstance(await outcome(job), Drawn) and isinstance(await outcome(busy), Drawn)
            assert other.drawn == ["wait", "lose"] and job.attempts == 2

    run(test)


def test_the_next_after_a_loss_is_the_same_request() -> None:
    async def test() -> None:
        replica = StandIn(losses=1)
        async with begun(front_of(replica, waiting=1)) as front:
            job = submit(front, "lose")
            await until(lambda: replica.drawn)
            other = submit(front, "one")  # the one that was begun has its place, however many wait
            assert isinstance(await outcome(job), Drawn) and isinstance(await outcome(other), Drawn)
            assert replica.drawn == ["lose", "lose", "one"]
            assert count(front, "asyncdiff_replica_losses_total") == 1

    run(test)


def test_twice_lost_is_answered_with_an_error_and_the_next_is_drawn() -> None:
    async def test() -> None:
        replica = StandIn(losses=2)
        async with begun(front_of(replica)) as front:
            assert await outcome(submit(front, "lose")) == Failed("gone", "the process that was drawing has died")
            assert isinstance(await outcome(submit(front, "one")), Drawn)
            assert replica.drawn == ["lose", "lose", "one"]

    run(test)


@pytest.mark.parametrize("why", ["refused", "memory", "error"])
def test_what_cannot_be_met_is_not_tried_again(why: str) -> None:
    async def test() -> None:
        replica = StandIn()
        async with begun(front_of(replica)) as front:
            found = await outcome(submit(front, why))
            assert isinstance(found, Failed) and found.why == why
            assert isinstance(await outcome(submit(front, "one")), Drawn)
            assert replica.drawn == [why, "one"]

    run(test)


def test_a_replica_that_is_not_well_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncdiff.serving.front._SECONDS_BETWEEN_CHECKS", 0.1)

    async def test() -> None:
        replica = StandIn()
        replica.is_well = False
        async with begun(front_of(replica)) as front:
            job = submit(front, "one")
            await until(lambda: front.failures == [Failed("gone", "it is not well")])
            assert front.states == ["starting"] and front.signature is None and not replica.drawn
            replica.is_well = True
            assert isinstance(await outcome(job), Drawn)
            assert front.failures == [None] and front.processes == [(1, 2)]

    run(test)


def test_nothing_is_answered_twice() -> None:
    async def test() -> None:
        job = submit(front_of(StandIn()), "one")
        job.finish(Failed("gone", "first"))
        with pytest.raises(asyncio.InvalidStateError):
            job.finish(Failed("gone", "second"))
        assert await outcome(job) == Failed("gone", "first")

    run(test)


def test_what_nobody_has_foreseen_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with begun(front_of(StandIn())) as front:
            bad, good = submit(front, "unforeseen"), submit(front, "one")
            failed = await outcome(bad)
            assert isinstance(failed, Failed) and failed.why == "error" and "KeyError" in failed.text
            assert isinstance(await outcome(good), Drawn)

    run(test)
    assert "nobody has thought of this" in caplog.text
