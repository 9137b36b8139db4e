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
from asyncdiff.errors import OtherUnitsError
from asyncdiff.events import Events
from asyncdiff.hooks import is_intercepted
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
        self.order = range(LAYERS)

    def forward(self, hidden: Tensor) -> Tensor:
        for number in self.order:
            hidden = self.between(self.layers[number](hidden))
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
    hooks = UnitHooks(stack, Events(torch.device("cpu")))
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


@pytest.mark.parametrize(
    ("recorded", "order", "said"),
    [
        ((0, 1, 2), (0, 2), "'layers.1' was called not at all, and once when"),
        ((0, 1, 2), (0, 1, 1, 1, 2), "'layers.1' was called 3 times, and once when"),
        ((0, 2), (0, 1, 2), "'layers.1' was called once, and not at all when"),
        ((2,), (2, 2), "'layers.2' was called 2 times, and once when"),
    ],
)
@pytest.mark.parametrize("is_answered", [False, True])
def test_other_calls_than_the_recorded_ones_are_an_error(
    stack: Stack, recorded: tuple[int, ...], order: tuple[int, ...], said: str, is_answered: bool
) -> None:
    """Whether or not an answer is known for the unit, which then is not run."""
    hooks, call = UnitHooks(stack, Events(torch.device("cpu"))), call_of(stack, torch.ones(1, 4))
    answers = {(f"layers.{number}", 0): torch.zeros(1, 4) for number in recorded} if is_answered else {}
    rule = UnitRule(lambda unit, call: call(), Counts(), answers)
    stack.order = recorded
    graph = graph_of(stack)
    hooks.add(graph)
    expected = torch.zeros(1, 4) if is_answered else stack(torch.ones(1, 4))
    assert torch.equal(hooks.walk(graph, rule, call), expected)
    stack.order = order
    with pytest.raises(OtherUnitsError, match=said):
        hooks.walk(graph, rule, call)
    stack.order = recorded
    assert torch.equal(hooks.walk(graph, rule, call), expected)


def test_what_a_unit_of_another_division_calls_is_its_own_matter(stack: Stack) -> None:
    """Hooks of several divisions are on one denoiser: a layer is a unit of one, and a linear map in it of the other."""
    result, trace = record(stack, call_of(stack, torch.ones(1, 4)))
    coarse, fine = build_graph(trace, CPU), build_graph(trace, CPU, inside=["layers.1.linear"])
    assert {"layers.0", "layers.1.linear"} <= set(fine.calls) and "layers.1" in coarse.calls
    hooks = UnitHooks(stack, Events(torch.device("cpu")))
    for graph in (coarse, fine):
        hooks.add(graph)
    for graph in (coarse, fine):
        rule = UnitRule(lambda unit, call: call(), Counts())
        assert torch.equal(hooks.walk(graph, rule, call_of(stack, torch.ones(1, 4))), result)


def test_hooks_that_no_division_needs_any_more_are_taken_off(stack: Stack) -> None:
    _, trace = record(stack, call_of(stack, torch.ones(1, 4)))
    coarse, fine = build_graph(trace, CPU), build_graph(trace, CPU, inside=["layers.1.linear"])
    hooks = UnitHooks(stack, Events(torch.device("cpu")))

    def hooked() -> set[str]:
        return {name for name, module in stack.named_modules() if is_intercepted(module)}

    hooks.keep([coarse, fine])
    assert hooked() == coarse.calls.keys() | fine.calls.keys()
    for graph in (coarse, fine):
        hooks.keep([graph])
        assert hooked() == graph.calls.keys()
    hooks.keep([])
    assert not hooked()
