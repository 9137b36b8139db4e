"""Which denoiser calls belong together, whatever a pipeline does with its guidance branches."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from asyncdiff.runtime.labels import Timetable
from asyncdiff.runtime.stream import Arguments, Stream, Streams

SIGNATURE = ("one shape",)


def call(
    latents: Tensor, *conditions: Tensor, context: str | None = None, timestep: float = 0.0, signature: Any = SIGNATURE
) -> Arguments:
    return Arguments(signature, context, [latents, *conditions], {"timestep": torch.tensor(timestep)})


def walk(steps: list[list[Callable[[], Arguments]]]) -> list[list[Stream]]:
    """The stream of every call, step by step."""
    streams = Streams()
    found = []
    for now, calls in enumerate(steps):
        found.append([streams.of_call(make(), now, Timetable())[0] for make in calls])
    return found


def made_anew(values: Tensor) -> Callable[[], Arguments]:
    return lambda: call(torch.randn(3), values.clone())


def kept(values: Tensor) -> Callable[[], Arguments]:
    return lambda: call(torch.randn(3), values)


WORDS, NOTHING = torch.ones(4), torch.zeros(4)


def test_branches_by_context_whatever_their_order() -> None:
    words, nothing = (lambda: call(torch.randn(3), context="cond")), (lambda: call(torch.randn(3), context="uncond"))
    (a, b), (c, d), (e,) = walk([[words, nothing], [nothing, words], [nothing]])
    assert a is d
    assert b is c is e


def test_the_first_branch_ends() -> None:
    for make in (kept, made_anew):
        words, nothing = make(WORDS), make(NOTHING)
        (a, b), (c, d), (e,) = walk([[nothing, words], [nothing, words], [words]])
        assert a is c is not b
        assert b is d is e


def test_what_both_branches_share_does_not_tell_them_apart() -> None:
    shared = torch.ones(2)
    words, nothing = (lambda: call(torch.randn(3), shared, WORDS)), (lambda: call(torch.randn(3), shared, NOTHING))
    (_, b), (c,) = walk([[nothing, words], [words]])
    assert b is c


def test_views_of_one_picture_by_their_order() -> None:
    view = kept(WORDS)
    first, second = walk([[view, view, view], [view, view, view]])
    assert all(one is other for one, other in zip(first, second, strict=True))
    assert len({id(stream) for stream in first}) == 3


def test_a_branch_that_begins_late() -> None:
    words, nothing = kept(WORDS), kept(NOTHING)
    (a,), (b,), (c, d), (e, f) = walk([[words], [words], [nothing, words], [nothing, words]])
    assert a is b is d is f
    assert c is e
    assert c.reason == "new stream"


def test_other_conditioning_is_another_stream() -> None:
    for make in (kept, made_anew):
        (a,), (b,), (c,), (d,) = walk([[make(WORDS)], [make(WORDS)], [make(NOTHING)], [make(NOTHING)]])
        assert a is b is not c
        assert c is d
        assert c.reason == "new stream"


def test_another_shape_is_another_stream() -> None:
    small, large = (lambda: call(torch.randn(3))), (lambda: call(torch.randn(5), signature=("another shape",)))
    (a,), (b,), (c,), (d,) = walk([[small], [large], [large], [small]])
    assert b is c
    assert len({id(a), id(b), id(d)}) == 3
    assert (a.reason, b.reason) == ("warm-up", "inputs of another shape")


def test_a_skipped_step_ends_a_stream() -> None:
    words = kept(WORDS)
    (a,), _, (b,), (c,) = walk([[words], [], [words], [words]])
    assert a is not b is c
    assert b.reason == "steps were skipped"


def test_a_step_that_nothing_has_announced() -> None:
    streams = Streams()
    assert not streams.begins_step(call(torch.randn(3), WORDS, timestep=9.0), 0)
    streams.of_call(call(torch.randn(3), WORDS, timestep=9.0), 0, Timetable())
    assert not streams.begins_step(call(torch.randn(3), NOTHING, timestep=9.0), 0)
    streams.of_call(call(torch.randn(3), NOTHING, timestep=9.0), 0, Timetable())
    assert streams.begins_step(call(torch.randn(3), WORDS, timestep=8.0), 0)
    streams.of_call(call(torch.randn(3), WORDS, timestep=8.0), 1, Timetable())
    assert not streams.begins_step(call(torch.randn(3), NOTHING, timestep=8.0), 1)


def test_a_piece_that_begins_anew() -> None:
    streams = Streams()
    for now, timestep in enumerate([9.0, 8.0, 7.0]):
        arguments = call(torch.randn(3), WORDS, timestep=timestep)
        assert not streams.begins_again(arguments)
        streams.of_call(arguments, now, Timetable())
    assert streams.begins_again(call(torch.randn(3), WORDS, timestep=9.0))
