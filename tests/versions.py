"""Stores of live edges filled by hand."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from asyncdiff.denoiser.graph import Edge
from asyncdiff.denoiser.trace import Leaf
from asyncdiff.exchange.store import EdgeStore, Reading
from asyncdiff.plan.method import Method
from asyncdiff.plan.storage import Span, Storage


def leaf_of(tensor: Tensor) -> Leaf:
    """What a recording tells of a tensor."""
    return Leaf(0, tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)


def lay_out_by_hand(tensors: Mapping[Edge, Tensor]) -> Storage:
    """One tensor behind the other."""
    spans: dict[Edge, Span] = {}
    ends: dict[torch.dtype, int] = {}
    for edge, tensor in tensors.items():
        start = ends.get(tensor.dtype, 0)
        ends[tensor.dtype] = start + tensor.numel()
        spans[edge] = Span(tensor.dtype, start, ends[tensor.dtype])
    return Storage({edge: leaf_of(tensor) for edge, tensor in tensors.items()}, spans)


def store_of(versions: Mapping[Edge, Sequence[Tensor]]) -> EdgeStore:
    """A store in which every edge has the same number of versions, given newest first: of steps 0, -1, -2 and so on."""
    count = max((len(tensors) for tensors in versions.values()), default=1)
    storage = lay_out_by_hand({edge: tensors[0] for edge, tensors in versions.items()})
    store = EdgeStore(storage, count, torch.device("cpu"))
    for number in reversed(range(count)):
        for edge, tensors in versions.items():
            store.put(edge, tensors[number])
        store.arrive([-number])
    return store


def forecast(method: Method, versions: Sequence[Tensor], times: Sequence[float], target: float) -> Tensor:
    """What the product expects of a tensor, as `tests.textbook.forecast` has it by definition."""
    edge = Edge(0, 0)
    store = store_of({edge: versions})
    steps = tuple(-number for number in range(len(versions)))
    among = (Span(versions[0].dtype, 0, versions[0].numel()),)
    return store.expected(edge, Reading(steps, tuple(times), target, method, among))
