"""What a recorded call says, against small modules worked out by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

from asyncdiff.call import Call
from asyncdiff.denoiser.graph import Edge, Graph, build_graph
from asyncdiff.denoiser.rates import CPU
from asyncdiff.denoiser.trace import Operator, Trace, record


def recorded(module: nn.Module, *args: Any) -> Trace:
    with torch.no_grad():
        plain = module(*args)
        result, trace = record(module, Call(module.forward, args, {}))
    assert torch.equal(result, plain)
    return trace


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def only(trace: Trace) -> Operator:
    (operator,) = trace.operators
    return operator


@pytest.mark.skipif(
    not hasattr(TorchDispatchMode, "supports_higher_order_operators"), reason="this torch records no such operators"
)
def test_flexible_attention_is_recorded_as_one_operator() -> None:
    # What torch has compiled for a call with a mask, of a model before, it stumbles over in one without: so it does
    # without anything of ours.
    torch.compiler.reset()
    query = torch.randn(1, 2, 128, 16)
    trace = recorded(Function(flex_attention), query, query, query)
    assert [operator.flops for operator in trace.operators if operator.flops] == [2 * 2 * 2 * 128 * 128 * 16]


@pytest.mark.skipif(not hasattr(torch.ops.aten, "_grouped_mm"), reason="this torch has no grouped products")
def test_grouped_products_are_counted() -> None:
    rows, experts = torch.randn(8, 16).bfloat16(), torch.randn(2, 16, 32).bfloat16()
    ends = torch.tensor([4, 8], dtype=torch.int32)
    trace = recorded(Function(lambda a, b: torch._grouped_mm(a, b, offs=ends)), rows, experts)
    assert sum(operator.flops for operator in trace.operators) == 2 * 8 * 16 * 32


def test_a_lookup_moves_what_it_finds_not_the_whole_table() -> None:
    table, places = torch.randn(10_000, 4), torch.tensor([3, 5])
    operator = only(recorded(Function(lambda: table[places])))
    assert operator.bytes == 2 * (2 * 4 * 4)


def units(graph: Graph) -> list[tuple[str, int]]:
    return [(unit.name, unit.ordinal) for unit in graph.units]


class MaskOfItsShape(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, hidden: Tensor) -> Tensor:
        first = self.layers[0](hidden)
        mask = first.new_ones(4)
        second = self.layers[1](first)
        return self.layers[2](second * mask)


def test_what_has_only_the_shape_of_a_tensor_does_not_read_it() -> None:
    graph = build_graph(recorded(MaskOfItsShape(), torch.randn(2, 4)), CPU)
    assert units(graph) == [("layers.0", 0), ("layers.1", 0), ("layers.2", 0)]
    assert graph.units[2].reads == {Edge(1, 0)}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_out = nn.ModuleList([nn.Linear(4, 4)])
        self.to_q = nn.Linear(4, 4)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.to_q(hidden)


class Block(nn.Module):
    """Calls what belongs to its attention itself."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.attention.to_out[0](self.attention(hidden))


def test_a_list_of_a_called_module_does_not_take_its_owner_apart() -> None:
    module = nn.Module()
    module.blocks = nn.ModuleList(Block() for _ in range(2))
    module.forward = lambda hidden: module.blocks[1](module.blocks[0](hidden))
    assert units(build_graph(recorded(module, torch.randn(2, 4)), CPU)) == [("blocks.0", 0), ("blocks.1", 0)]


class Attends(nn.Module):
    """Attention of 2 heads of width 3 over 5 tokens, by torch's own operator or written out."""

    def __init__(self, written_out: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6, bias=False)
        self.written_out = written_out

    def forward(self, hidden: Tensor) -> Tensor:
        heads = self.linear(hidden).unflatten(-1, (2, 3)).transpose(1, 2)
        if self.written_out:
            return torch.softmax(heads @ heads.mT, dim=-1) @ heads
        return nn.functional.scaled_dot_product_attention(heads, heads, heads)


@pytest.mark.parametrize("written_out", [False, True])
def test_exponentials_and_weights_are_counted(written_out: bool) -> None:
    trace = recorded(Attends(written_out), torch.randn(4, 5, 6))
    assert sum(operator.exponentials for operator in trace.operators) == 4 * 2 * 5 * 5
    assert sum(operator.weight_bytes for operator in trace.operators) == 6 * 6 * 4


class Replacing(nn.Module):
    """Makes its buffer anew in every call, as tables of places are made for the length of what they are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("places", torch.arange(64.0))

    def forward(self, hidden: Tensor) -> Tensor:
        self.places = None
        self.places = torch.arange(64.0)
        for _ in range(20):
            hidden = hidden + 1
        return hidden


def test_what_lies_where_a_buffer_was_is_no_weight() -> None:
    trace = recorded(Replacing(), torch.randn(64))
    assert [operator.weight_bytes for operator in trace.operators] == [0] * 21


class UsesAnother(nn.Module):
    """Calls a module that is not its own, which the denoiser calls as well."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.other = [other]

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear(hidden) + self.other[0](hidden)


class Sharing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(UsesAnother(self.shared) for _ in range(4))

    def forward(self, hidden: Tensor, timestep: Tensor) -> Tensor:
        for block in self.blocks:
            hidden = self.shared(block(hidden)) * timestep
        return hidden


def test_calls_inside_of_units_are_not_counted() -> None:
    """A device that does not run the unit does not see them."""
    graph = build_graph(recorded(Sharing(), torch.randn(2, 4), torch.tensor(0.5)), CPU)
    expected = [[(f"blocks.{number}", 0), ("shared", number)] for number in range(4)]
    assert units(graph) == [unit for pair in expected for unit in pair]


class Mixed(nn.Module):
    """What inference mode hands on whole: a projection, a convolution, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.mix = nn.Linear(8, 8), nn.Conv1d(8, 8, 3, padding=1)

    def forward(self, states: Tensor) -> Tensor:
        states = self.mix(self.project(states).mT).mT.unsqueeze(1)
        return nn.functional.scaled_dot_product_attention(states, states, states)


def test_inference_mode_is_recorded_alike() -> None:
    module, states = Mixed(), torch.randn(2, 5, 8)
    usual = recorded(module, states)
    with torch.inference_mode():
        plain = module(states)
        result, trace = record(module, Call(module.forward, (states,), {}))
    assert torch.equal(result, plain)

    def told(trace: Trace) -> list[Any]:
        operators = (operator for operator in trace.operators if operator.flops or operator.attention)
        return [(each.flops, each.exponentials, each.attention, each.mixes_neighbours) for each in operators]

    assert told(trace) == told(usual)
    assert any(each.attention for each in usual.operators)
