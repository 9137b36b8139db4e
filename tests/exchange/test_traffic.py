"""What a round goes through of what is held, as the plan counts it: the bytes that operators read and write."""

import pytest
import torch

from asyncdiff.denoiser.graph import Edge
from asyncdiff.exchange.store import EdgeStore, Reading
from asyncdiff.plan.method import Method
from asyncdiff.plan.packing import packing_for
from asyncdiff.plan.timeline import passes_of_held, passes_of_sent
from tests.moved import Moved
from tests.versions import lay_out_by_hand

EDGE = Edge(0, 0)
SHAPE = (1, 4, 512, 128)


@pytest.mark.parametrize(
    "method",
    [
        *(Method(bits=bits, most_versions=versions) for bits in (None, 4, 8) for versions in (3, 4, 6)),
        *(Method("linear", bits=bits) for bits in (None, 4)),
    ],
    ids=str,
)
def test_what_the_plan_counts(method: Method) -> None:
    like = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).bfloat16()
    packings = {} if method.bits is None else {like.dtype: packing_for(method.bits, [SHAPE[-1]])}
    depth = method.versions
    store = EdgeStore(lay_out_by_hand({EDGE: like}), depth, torch.device("cpu"), packings)
    parts = store.spans_of(frozenset({EDGE}), in_parts=True)
    sent = held = 0
    for step in range(depth + 3):  # until a round is like the one before
        with Moved() as putting:
            store.put(EDGE, like * (1 + step))
        store.arrive([step])
        with Moved() as taking:
            store.settle()
            if step >= depth - 1:
                steps = tuple(range(step, step - depth, -1))
                times = tuple(float(-each) for each in steps)
                store.expected(EDGE, Reading(steps, times, -float(step + 1), method, parts))
        sent, held = putting.bytes - 2 * like.nbytes, taking.bytes  # making the step's own is not of it
    assert held / like.nbytes == pytest.approx(passes_of_held(method, depth), rel=0.1)
    if method.bits is not None:  # and what the readers have then is taken over
        arrival = passes_of_held(Method("reuse", bits=method.bits), 1)
        assert sent / like.nbytes + arrival == pytest.approx(passes_of_sent(method), rel=0.1)
