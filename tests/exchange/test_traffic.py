"""What a round goes through of what is held, as the plan counts it: the bytes that operators read and write."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from asyncdiff.denoiser.graph import Edge
from asyncdiff.exchange.store import EdgeStore, Reading
from asyncdiff.plan.method import Method
from asyncdiff.plan.packing import packing_for
from asyncdiff.plan.timeline import passes_of_held, passes_of_sent
from tests.versions import lay_out_by_hand

EDGE = Edge(0, 0)
SHAPE = (1, 4, 512, 128)
MAKE_ROOM = {"empty", "empty_like", "empty_strided", "zeros", "_unsafe_view"}


class Moved(TorchDispatchMode):
    """Adds up the bytes that operators read and write which are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func.overloadpacket.__name__ not in MAKE_ROOM:
            made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            read = [leaf for leaf in read if not any(leaf is other for other in made)]
            self.bytes += sum(tensor.nbytes for tensor in (*made, *read))
        return result


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
