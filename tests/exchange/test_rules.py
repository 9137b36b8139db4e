"""What hangs on NCCL, played by its rules without a GPU, and what does not.

order_before.json and order_before_chain.json are what the ranks of commit ba8c836 started, with a group for messages
to higher ranks, one for those to lower ones, one for predictions and one for talk: the demo U-Net in two components,
and the demo DiT in three, in 8 steps.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from tests.exchange.events import Event, Group, Log, Operation, from_json, to_json
from tests.exchange.recorder import Recorder
from tests.exchange.rules import play
from tests.processes import RankError, run_ranks

FIRST = Group("0,1 #1", (0, 1), "gloo", False)
SECOND = Group("0,1 #2", (0, 1), "gloo", False)
TALK = Group("0,1 #3", (0, 1), "gloo", True)
THREE = Group("0,1,2 #1", (0, 1, 2), "gloo", False)


def sends(peer: int, size: int = 8, tag: int = 0) -> Operation:
    return Operation("send", peer, tag, size)


def receives(peer: int, size: int = 8, tag: int = 0) -> Operation:
    return Operation("recv", peer, tag, size)


def single(group: Group, operation: Operation) -> Event:
    return Event("single", group, (operation,))


def batch(group: Group, *operations: Operation) -> Event:
    return Event("batch", group, operations)


def collective(group: Group, size: int = 8) -> Event:
    return Event("collective", group, (Operation("broadcast", 0, 0, size),))


def wait(index: int) -> Event:
    return Event("wait", FIRST, waits_for=index)


def made(*groups: Group) -> list[Event]:
    """Communicators of groups, made."""
    return [collective(group) for group in groups]


def hangs(*logs: Log, **options: bool) -> bool:
    """Whether they do, be it that waits hold the host or not."""
    first, second = (play(logs, waits_hold_host=hold, **options) for hold in (False, True))
    assert first.finished == second.finished, f"only one of\n{first}\n{second}"
    assert not first.errors, first.errors
    return not first.finished


def recorded(name: str) -> list[list[Event]]:
    return from_json((Path(__file__).parent / name).read_text())


def test_a_pair_makes_its_communicator_in_each_group() -> None:
    down = [single(SECOND, receives(1)), single(FIRST, sends(1))]
    assert hangs(down, [single(FIRST, receives(0)), single(SECOND, sends(0))])
    assert not hangs(down, [single(SECOND, sends(0)), single(FIRST, receives(0))])
    assert not hangs([single(THREE, sends(1))], [single(THREE, receives(0))], []), "the third has nothing to do with it"


def test_a_group_makes_its_communicator_with_all_its_members() -> None:
    pair = [batch(THREE, sends(1))], [batch(THREE, receives(0))]
    assert hangs(*pair, [])
    assert not hangs(*([*made(THREE), *log] for log in (*pair, [])))


def test_eager_groups_have_one_communicator_from_the_start() -> None:
    assert not hangs([batch(THREE, sends(1))], [batch(THREE, receives(0))], [], eager=True)
    one = [single(FIRST, receives(1)), single(FIRST, sends(1))]
    assert hangs(one, [single(FIRST, receives(0)), single(FIRST, sends(0))], eager=True)
    assert not hangs(one, [single(FIRST, sends(0)), single(FIRST, receives(0))], eager=True)
    one, other = [collective(FIRST), single(FIRST, sends(1))], [single(FIRST, receives(0)), collective(FIRST)]
    assert hangs(one, other, eager=True, one_queue=False), "that of its batches and collectives"
    assert not hangs(one, other[::-1], eager=True, one_queue=False)


def test_operations_run_one_after_another_and_a_batch_is_one() -> None:
    both = made(FIRST)
    one_by_one = [*both, batch(FIRST, sends(1)), batch(FIRST, receives(1))]
    assert hangs(one_by_one, [*both, batch(FIRST, sends(0)), batch(FIRST, receives(0))], one_queue=False)
    together = [*both, batch(FIRST, sends(1), receives(1))]
    assert not hangs(together, [*both, batch(FIRST, sends(0), receives(0))], one_queue=False)
    assert not hangs(together, [*both, batch(FIRST, receives(0)), batch(FIRST, sends(0))], one_queue=False)


def test_collectives_and_batches_take_turns() -> None:
    one = [*made(FIRST), batch(FIRST, sends(1)), collective(FIRST)]
    assert hangs(one, [*made(FIRST), collective(FIRST), batch(FIRST, receives(0))])
    assert not hangs(one, [*made(FIRST), batch(FIRST, receives(0)), collective(FIRST)])


def test_a_collective_waits_for_all_members() -> None:
    late = [*made(THREE), batch(THREE, receives(0)), collective(THREE)]
    assert hangs([*made(THREE), collective(THREE), batch(THREE, sends(2))], [*made(THREE), collective(THREE)], late)
    assert not hangs([*made(THREE), batch(THREE, sends(2)), collective(THREE)], [*made(THREE), collective(THREE)], late)


def test_two_communicators_on_a_device_may_wait_for_each_other() -> None:
    start = made(FIRST, SECOND)
    one = [*start, batch(FIRST, sends(1)), batch(SECOND, receives(1))]
    other = [*start, batch(SECOND, sends(0)), batch(FIRST, receives(0))]
    assert hangs(one, other)
    assert not hangs(one, other, one_queue=False)
    assert not hangs(one, [*start, batch(FIRST, receives(0)), batch(SECOND, sends(0))])


def test_what_is_started_after_a_wait_runs_after_it() -> None:
    start = made(FIRST, SECOND)
    one = [*start, batch(FIRST, receives(1)), wait(2), batch(SECOND, sends(1))]
    other = [*start, batch(SECOND, receives(0)), wait(2), batch(FIRST, sends(0))]
    assert hangs(one, other, one_queue=False)
    assert not hangs(one, [*other[:3], other[4]], one_queue=False)


def test_waits_hold_the_host_where_asked_for() -> None:
    one = [*made(FIRST), batch(FIRST, receives(1)), wait(1), collective(TALK), wait(3)]
    other = [*made(FIRST), collective(TALK), wait(1), batch(FIRST, sends(0))]
    assert play([one, other]).finished
    assert not play([one, other], waits_hold_host=True).finished
    assert play([one, [*made(FIRST), other[3], collective(TALK), wait(2)]], waits_hold_host=True).finished


def test_a_barrier_always_holds_the_host() -> None:
    barrier = Event("collective", FIRST, (Operation("barrier", None, 0, 0),))
    one = [*made(FIRST), barrier, wait(1), collective(TALK)]
    assert hangs(one, [*made(FIRST), collective(TALK), wait(1), barrier])
    assert not hangs(one, [*made(FIRST), collective(TALK), barrier, wait(2), wait(1)])


def test_talk_holds_the_host_and_not_the_device() -> None:
    assert hangs([collective(TALK), wait(0), collective(FIRST)], [collective(FIRST), collective(TALK), wait(1)])
    assert not hangs([collective(TALK), collective(FIRST), wait(0)], [collective(FIRST), collective(TALK), wait(1)])


def test_a_send_of_talk_waits_for_nothing() -> None:
    one = [single(TALK, sends(1, 8, tag=1)), wait(0), single(TALK, sends(1, 16, tag=2)), wait(2)]
    other = [single(TALK, receives(0, 16, tag=2)), wait(0), single(TALK, receives(0, 8, tag=1)), wait(2)]
    assert not hangs(one, other), "and tags tell its messages apart"
    asks = [single(TALK, receives(1)), wait(0), single(TALK, sends(1))]
    assert hangs(asks, [single(TALK, receives(0)), wait(0), single(TALK, sends(0))])
    assert not hangs(asks, [single(TALK, sends(0)), single(TALK, receives(0)), wait(1)])


def test_groups_are_made_by_all_ranks_together() -> None:
    make = Event("make group", FIRST)
    assert hangs([make, collective(TALK)], [collective(TALK), wait(0), make])
    assert not hangs([make, collective(TALK)], [collective(TALK), make, wait(0)])
    (error,) = play([[make, Event("make group", SECOND)], [make]]).errors
    assert error == "the group number 2 that the ranks make is ['0,1 #2', None]"


def test_first_transfers_hold_the_host_where_asked_for() -> None:
    one = [*made(FIRST), batch(FIRST, receives(1)), collective(TALK)]
    other = [*made(FIRST), collective(TALK), wait(1), batch(FIRST, sends(0))]
    assert not hangs(one, other)
    assert hangs(one, other, connections=True)
    assert not hangs(one, [*made(FIRST), other[3], collective(TALK), wait(2)], connections=True)
    connected = batch(FIRST, receives(1)), batch(FIRST, sends(0))
    assert not hangs(
        [*made(FIRST), connected[0], *one[1:]],
        [*made(FIRST), connected[1], collective(TALK), wait(2), other[3]],
        connections=True,
    )


def test_what_is_made_synchronises_the_device_where_asked_for() -> None:
    one = [*made(FIRST), collective(FIRST), collective(SECOND), collective(TALK)]
    other = [*made(FIRST), collective(SECOND), collective(TALK), wait(2), collective(FIRST)]
    assert not hangs(one, other, one_queue=False)
    assert hangs(one, other, one_queue=False, connections=True)
    verdict = play([one, other], one_queue=False, connections=True)
    assert "until what it started before the communicator of group 0,1 #2 is complete" in verdict.stuck[0].sentence
    assert not hangs(one, [*made(FIRST), other[4], *other[1:3]], connections=True)


def test_tags_mean_nothing() -> None:
    one = [*made(FIRST), batch(FIRST, sends(1, 8, tag=1), sends(1, 16, tag=2))]
    crossed = play([one, [*made(FIRST), batch(FIRST, receives(0, 16, tag=2), receives(0, 8, tag=1))]])
    assert crossed.errors == (
        "rank 0 sends at event 1 8 bytes, and rank 1 receives at event 1 16",
        "rank 0 sends at event 1 16 bytes, and rank 1 receives at event 1 8",
    )
    assert not hangs(one, [*made(FIRST), batch(FIRST, receives(0, 8, tag=2), receives(0, 16, tag=1))])


def test_a_message_that_nobody_receives() -> None:
    start = made(FIRST)
    lost = play([[*start, batch(FIRST, sends(1))], start])
    assert lost.errors == ("rank 0 sends at event 1 what nobody receives",)
    assert lost.stuck[0].outstanding == (1,) and lost.stuck[0].event is None
    assert play([start, [*start, batch(FIRST, receives(0))]]).errors == (
        "rank 1 receives at event 1 what nobody sends",
    )
    talk = play([[single(TALK, sends(1))], []])
    assert talk.finished and talk.errors == ("rank 0 sends at event 0 what nobody receives",)


def test_collectives_that_are_not_the_same() -> None:
    verdict = play([[collective(FIRST, 8)], [collective(FIRST, 16)]])
    assert len(verdict.errors) == 1 and "ranks [0, 1] take part in one collective" in verdict.errors[0]
    verdict = play([[*made(FIRST), collective(FIRST)], made(FIRST)])
    assert not verdict.finished and len(verdict.errors) == 1


@pytest.mark.parametrize("options", [{}, {"one_queue": False}, {"connections": True}])
def test_the_exchange_before_hangs_in_its_first_round(options: dict[str, bool]) -> None:
    logs = recorded("order_before.json")
    assert hangs(*logs, **options)
    verdict = play(logs, **options)
    assert [(each.event, each.outstanding) for each in verdict.stuck] == [(25, ()), (25, ())]
    assert str(verdict) == (
        "a hang:\n"
        "rank 0: its host stands at event 25, single receive from rank 1 in group 0,1 #3, "
        "until rank 1 comes to the communicator of ranks 0 and 1 in group 0,1 #3\n"
        "rank 1: its host stands at event 25, single receive from rank 0 in group 0,1 #2, "
        "until rank 0 comes to the communicator of ranks 0 and 1 in group 0,1 #2"
    )


def test_it_runs_where_neither_holds() -> None:
    logs = recorded("order_before.json")
    assert hangs(*logs, eager=True), "of two directions on one device, each may wait for the other"
    assert not hangs(*logs, eager=True, one_queue=False)


@pytest.mark.parametrize("option", ["eager", "one_queue", "connections"])
def test_a_chain_before_ran_through(option: str) -> None:
    logs = recorded("order_before_chain.json")
    assert not any(hangs(*logs, **{option: value}) for value in (False, True))


def _orders(draw: st.DrawFn) -> list[list[Event]]:
    size = draw(st.integers(2, 4))
    everyone = Group("all", tuple(range(size)), "gloo", False)
    logs: list[list[Event]] = [made(everyone) for _ in range(size)]
    pairs = st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)).filter(lambda pair: pair[0] != pair[1])
    for transfers in draw(st.lists(st.lists(pairs, max_size=6), max_size=8)):
        for rank, log in enumerate(logs):
            mine = [
                *(sends(reader) for source, reader in transfers if source == rank),
                *(receives(source) for source, reader in transfers if reader == rank),
            ]
            if not transfers:
                log.append(collective(everyone))
            elif mine:
                log.append(batch(everyone, *mine))
            waited = draw(st.integers(0, 2 * len(log)))
            if waited < len(log) and log[waited].kind != "wait":
                log.append(wait(waited))
    return logs


@given(st.composite(_orders)(), st.booleans(), st.booleans(), st.booleans())
def test_one_order_of_batches_never_hangs(logs: Sequence[Log], eager: bool, one_queue: bool, connections: bool) -> None:
    assert not hangs(*logs, eager=eager, one_queue=one_queue, connections=connections)


def _all_sorts(rank: int) -> list[Event]:
    other, tensor = 1 - rank, torch.zeros(4)
    with Recorder() as recorder:
        group, talk = dist.new_group([0, 1]), dist.new_group(backend="gloo", group_desc="talk")
        two = [
            dist.P2POp(dist.isend, tensor, other, group=group),
            dist.P2POp(dist.irecv, torch.zeros(4), group_peer=other, group=group),
        ]
        for work in dist.batch_isend_irecv(two):
            work.wait()
        work = dist.broadcast(tensor, 0, group=group, async_op=True)
        assert work is not None
        dist.barrier()
        work.wait()
        assert work.is_completed()
        gathered = [torch.zeros(2, dtype=torch.int64) for _ in range(2)]
        dist.all_gather(gathered, torch.full((2,), rank), group=talk)
        assert [int(each[0]) for each in gathered] == [0, 1]
        if rank == 0:
            dist.send(tensor, 1, tag=5)
        else:
            late = dist.irecv(tensor, 0, tag=5)
            assert late is not None
            late.wait()
    for each in (group, talk):
        dist.destroy_process_group(each)
    dist.barrier()
    return recorder.log


def test_everything_is_recorded_in_its_order() -> None:
    logs = run_ranks(2, _all_sorts)
    world = Group("default", (0, 1), "gloo", False)
    group, talk = FIRST, Group("0,1 #2", (0, 1), "gloo", True)
    for rank, log in enumerate(logs):
        assert log == [
            Event("make group", group),
            Event("make group", talk),
            batch(group, sends(1 - rank, 16), receives(1 - rank, 16)),
            Event("wait", group, waits_for=2),
            collective(group, 16),
            Event("collective", world, (Operation("barrier", None, 0, 0),)),
            Event("wait", world, waits_for=5),
            Event("wait", group, waits_for=4),
            Event("collective", talk, (Operation("all_gather", None, 0, 16),)),
            Event("wait", talk, waits_for=8),
            single(world, sends(1, 16, tag=5) if rank == 0 else receives(0, 16, tag=5)),
            Event("wait", world, waits_for=10),
        ]
    assert not hangs(*logs)
    assert from_json(to_json(logs)) == logs


def _unknown(rank: int) -> None:
    del rank
    with Recorder():
        dist.new_subgroups(1)  # type: ignore[no-untyped-call]


def test_what_cannot_be_recorded_is_refused() -> None:
    with pytest.raises(RankError, match=r"torch.distributed.new_subgroups cannot be recorded"):
        run_ranks(2, _unknown)
