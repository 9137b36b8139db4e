"""Walks over a denoiser's units, with rules made up for the test."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asyncdiff.call import Call
from asyncdiff.denoiser.graph import Graph, build_graph
from asyncdiff.denoiser.rates import CPU
from asyncdiff.denoiser.trace import record
from asyncdiff.report import Counts
from asyncdiff.runtime.units import UnitHooks, UnitRule

LAYERS = 4


class Pause(nn.Module):
    """Runs what the test puts in, in one thread only."""

    def __init__(self) -> None:
        super().__init__()
        self.thread: int | None = None
        self.meanwhile: Callable[[], None] = lambda: None

    def forward(self, hidden: Tensor) -> Tensor:
        if threading.get_ident() == self.thread:
            self.meanwhile()
        return hidden


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.inside = Pause()

    def forward(self, hidden: Tensor) -> Tensor:
        return self.inside(self.linear(hidden))


class Stack(nn.Module):
    """Layers, and a place between them that is in none."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.between = Pause()

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = self.between(layer(hidden))
        return hidden


@pytest.fixture
def stack() -> Iterator[Stack]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield Stack()


def call_of(stack: Stack, given: Tensor) -> Call:
    return Call(stack.forward, (given,), {})


def graph_of(stack: Stack) -> Graph:
    return build_graph(record(stack, call_of(stack, torch.ones(1, 4)))[1], CPU)


def zeros(unit: int, call: Call) -> Tensor:
    """A rule by which the layers in the middle give nothing."""
    result: Tensor = call()
    return result if unit in (0, LAYERS - 1) else torch.zeros_like(result)


@pytest.mark.parametrize("place", ["between", "layers.0.inside", "layers.1.inside"])
@pytest.mark.parametrize("is_recorded", [False, True])
def test_what_another_thread_calls_meanwhile_is_as_without_the_walk(
    stack: Stack, place: str, is_recorded: bool
) -> None:
    given, other = torch.randn(2, 1, 4)
    plain, graph = stack(other), graph_of(stack)
    hooks = UnitHooks(stack)
    hooks.add(graph)
    answers = {("layers.2", 0): torch.zeros(1, 4)}

    def once() -> Any:
        if is_recorded:
            return record(stack, call_of(stack, given))
        return hooks.walk(graph, UnitRule(zeros, Counts(), answers), call_of(stack, given))

    expected = once()
    barrier, found = threading.Barrier(2, timeout=30), []

    def beside() -> None:
        """The walking thread stands still while the other makes a whole call."""
        barrier.wait()
        barrier.wait()

    def plain_calls() -> None:
        with torch.no_grad():
            for _ in range(visits):
                barrier.wait()
                found.append((stack(other), hooks.is_walking))
                barrier.wait()

    visits = LAYERS if place == "between" else 1
    pause = stack.get_submodule(place)
    pause.thread, pause.meanwhile = threading.get_ident(), beside
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(plain_calls)
        result = once()
        running.result()
    pause.thread = None
    assert len(found) == visits
    for made, walks in found:
        assert torch.equal(made, plain) and not walks
    if is_recorded:
        assert torch.equal(result[0], expected[0])
        assert [call.name for call in result[1].calls] == [call.name for call in expected[1].calls]
        assert len(result[1].operators) == len(expected[1].operators)
    else:
        assert torch.equal(result, expected) and not torch.equal(result, stack(given))
