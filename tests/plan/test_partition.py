"""Units, live edges and division: against hand-worked answers, and against all possible divisions."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_map, tree_structure

from asyncdiff import SplitError
from asyncdiff.call import Call
from asyncdiff.denoiser.graph import REPLICATED_BUDGET, REPLICATED_COST_SHARE, Edge, Graph, UnitCall, build_graph
from asyncdiff.denoiser.rates import CPU, DeviceRates
from asyncdiff.denoiser.trace import Leaf, Trace, record
from asyncdiff.plan.division import divide_denoiser
from asyncdiff.plan.partition import BALANCE_TOLERANCE, divide
from asyncdiff.plan.schedule import Schedule
from tests.golden import golden_pipeline, golden_split
from tests.tiny import PIPELINES, run

WEIGHT = CPU


def traced(pipe: DiffusionPipeline, denoiser: str, call: Any) -> tuple[Trace, tuple[Any, ...], dict[str, Any]]:
    """A trace of the denoiser with the arguments that its own pipeline gives it."""
    module = getattr(pipe, denoiser)
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    handle = module.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    call()
    handle.remove()
    args, kwargs = seen[0]
    with torch.no_grad():
        plain = module(*args, **kwargs)
        result, trace = record(module, Call(module.forward, args, kwargs))
    assert torch.equal(result[0], plain[0]), "tracing changes nothing"
    return trace, args, kwargs


def reads(trace: Trace, components: int, split: Any) -> list[set[tuple[str, int]]]:
    division = divide_denoiser(trace, Schedule(components, 1, 1), split, WEIGHT)
    graph, partition = division.graph, division.partition
    return [{(graph.units[edge.unit].name, edge.leaf) for edge in needed} for needed in partition.reads]


def test_live_edges_of_a_unet_as_worked_out_by_hand() -> None:
    """SD 2.1's structure cut before the last block of the reference's N=2 split.

    Component 1 holds the last attention of up_blocks.1 and what follows. It reads the hidden states
    of component 0's last resnet, and the skips that up_blocks.2 and .3 concatenate: the three outputs
    of down_blocks.0 (two layers and the downsampler), the outputs of the two layers of
    down_blocks.1, and conv_in.
    """
    pipe, inputs = golden_pipeline()
    trace, _, _ = traced(pipe, "unet", lambda: pipe(**{**inputs, "num_inference_steps": 1}))
    first, second = reads(trace, 2, golden_split(2))
    assert first == set()
    names = {name for name, _ in second}
    assert names == {"conv_in", "down_blocks.0", "down_blocks.1", "up_blocks.1.resnets.2"}
    # A down block returns (hidden, (skip, skip, skip)); its hidden is its last skip.
    assert {leaf for name, leaf in second if name == "down_blocks.0"} == {0, 1, 2}
    # Skips of up_blocks.2: both layers of down_blocks.1 and down_blocks.0's downsampler.
    assert {leaf for name, leaf in second if name == "down_blocks.1"} == {1, 2}


def test_live_edges_of_a_transformer_as_worked_out_by_hand() -> None:
    """SD 3 cut between two blocks: text and image stream of the block before, and the time embedding."""
    tiny = PIPELINES["sd3"]
    pipe = tiny.build()
    trace, _, _ = traced(pipe, "transformer", lambda: run(pipe, tiny, num_inference_steps=1))
    blocks = len(pipe.transformer.transformer_blocks)
    split = [
        ["pos_embed", "context_embedder", *(f"transformer_blocks.{k}" for k in range(2))],
        [*(f"transformer_blocks.{k}" for k in range(2, blocks)), "norm_out", "proj_out"],
    ]
    first, second = reads(trace, 2, split)
    assert first == set()
    assert second == {("transformer_blocks.1", 0), ("transformer_blocks.1", 1)}


def test_every_part_of_the_split_runs_everywhere_if_unnamed() -> None:
    tiny = PIPELINES["sd3"]
    pipe = tiny.build()
    trace, _, _ = traced(pipe, "transformer", lambda: run(pipe, tiny, num_inference_steps=1))
    division = divide_denoiser(trace, Schedule(2, 1, 1), [["transformer_blocks.0"], ["transformer_blocks.1"]], WEIGHT)
    graph, partition = division.graph, division.partition
    owned = {graph.units[unit].name for units in partition.components for unit in units}
    assert owned == {"transformer_blocks.0", "transformer_blocks.1"}
    # All others run on every device, so every device reads what they read.
    last = next(number for number, unit in enumerate(graph.units) if unit.name == "transformer_blocks.1")
    assert {edge.unit for edge in partition.reads[0]} == {last}


def test_a_part_of_a_batch_is_divided_like_the_whole() -> None:
    """The weights are read once, however large the batch is; all else is in proportion."""
    pipe, inputs = golden_pipeline()
    trace, args, kwargs = traced(pipe, "unet", lambda: pipe(**{**inputs, "num_inference_steps": 1}))
    part = replace(trace, batch=2)
    twice = tree_map(lambda leaf: torch.cat([leaf, leaf]) if isinstance(leaf, Tensor) and leaf.ndim else leaf, args)
    with torch.no_grad():
        named = tree_map(lambda leaf: torch.cat([leaf, leaf]) if isinstance(leaf, Tensor) else leaf, kwargs)
        _, whole = record(pipe.unet, Call(pipe.unet.forward, twice, named), batch=4)
    costs = [[unit.cost for unit in build_graph(each, WEIGHT).units] for each in (part, whole)]
    assert costs[0] == pytest.approx(costs[1])
    as_recorded = build_graph(replace(whole, batch=None), WEIGHT)
    assert all(2 * own > unit.cost for own, unit in zip(costs[0], as_recorded.units, strict=True) if unit.flops)


class Modulated(nn.Module):
    """Eight blocks; `everywhere` of them are modulated by what is made of the time of every token."""

    def __init__(self, everywhere: int) -> None:
        super().__init__()
        self.everywhere = everywhere
        self.modulation = nn.Linear(1, 64)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 64)) for _ in range(8))

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        modulation = self.modulation(timestep)
        for number, block in enumerate(self.blocks):
            sample = sample + block(sample * modulation if number < self.everywhere else sample)
        return sample


@pytest.mark.parametrize(("everywhere", "replicated"), [(8, True), (2, False)])
def test_what_most_units_read_is_computed_everywhere_if_that_is_cheaper(everywhere: int, replicated: bool) -> None:
    """The modulation costs about 1 % of a call; to send it would cost more."""
    model = Modulated(everywhere)
    with torch.no_grad():
        _, trace = record(model, Call(model.forward, (torch.randn(1, 256, 64), torch.rand(1, 256, 1)), {}))
    graph = build_graph(trace, WEIGHT)
    modulation = graph.units[0]
    assert modulation.name == "modulation"
    assert REPLICATED_COST_SHARE < modulation.cost / graph.cost < REPLICATED_BUDGET
    assert modulation.replicated is replicated
    assert not any(unit.replicated for unit in graph.units[1:])


def chain(costs: list[int], skips: set[tuple[int, int]]) -> Graph:
    """A graph in which every unit reads the one before it, and some read older ones."""
    units = []
    for number, cost in enumerate(costs):
        sources = {number - 1} | {a for a, b in skips if b == number}
        units.append(
            UnitCall(
                call=number + 1,
                name=f"unit{number}",
                ordinal=0,
                cost=float(cost),
                time=float(cost),
                flops=cost,
                reads=frozenset(Edge(source, 0) for source in sources if source >= 0),
                outputs=(Leaf(number, (number + 1,), (1,), torch.float32),),
                origins=(0,),
                structure=tree_structure(Tensor()),
                overwritten=frozenset(),
                replicated=False,
            )
        )
    return Graph(tuple(units), frozenset({Edge(len(costs) - 1, 0)}), 0.0, 0.0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=3, max_size=8), st.integers(1, 3), st.data())
def test_division_is_the_best_of_all(costs: list[int], components: int, data: st.DataObject) -> None:
    pairs = [(a, b) for a in range(len(costs)) for b in range(a + 2, len(costs))]
    graph = chain(costs, set(data.draw(st.lists(st.sampled_from(pairs), max_size=4))))
    partition = divide(graph, components)
    found = sorted(unit for units in partition.components for unit in units)
    assert found == list(range(len(costs)))

    def heaviest(parts: list[list[int]]) -> int:
        return max(sum(costs[unit] for unit in part) for part in parts)

    def traffic(parts: list[list[int]]) -> int:
        needed = [{edge for unit in part for edge in graph.units[unit].reads} for part in parts]
        return sum(
            graph.bytes({edge for edge in edges if edge.unit not in part})
            for edges, part in zip(needed, parts, strict=True)
        )

    def contiguous(cuts: tuple[int, ...]) -> list[list[int]]:
        return [list(range(a, b)) for a, b in itertools.pairwise([0, *cuts, len(costs)])]

    every = [contiguous(cuts) for cuts in itertools.combinations(range(1, len(costs)), components - 1)]
    limit = min(map(heaviest, every)) * (1 + BALANCE_TOLERANCE)
    if components == 2:
        thirds = map(contiguous, itertools.combinations(range(1, len(costs)), 2))
        every += [[first + last, middle] for first, middle, last in thirds]
    best = min(traffic(parts) for parts in every if heaviest(parts) <= limit * (1 + 1e-9))
    assert max(sum(costs[unit] for unit in units) for units in partition.components) <= limit * (1 + 1e-9)
    assert sum(graph.bytes(needed) for needed in partition.reads) == best


def test_two_components_may_share_the_ends_of_a_u_net() -> None:
    """Of three skips none travels: two stay on the device that has both ends, one on that which has the middle."""
    graph = chain([1] * 8, {(0, 7), (1, 6), (2, 5)})
    partition = divide(graph, 2)
    first, second = partition.components
    assert (sorted(first), sorted(second)) == ([0, 1, 6, 7], [2, 3, 4, 5])
    assert partition.reads == (frozenset({Edge(5, 0)}), frozenset({Edge(1, 0)}))


def test_too_few_units() -> None:
    with pytest.raises(SplitError, match=r"3 units .* too few for components=4; at most components=3"):
        divide(chain([1, 1, 1], set()), 4)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ([["down_blocks"], ["down_blocks.1"]], "named twice"),
        ([["down_blocks"], ["up_blocks.0.resnets.0.conv1.nothing"]], "lies inside the unit|calls no unit"),
        ([["time_proj"], ["up_blocks"]], "this denoiser calls no unit in any of them"),
    ],
)
def test_bad_splits(split: list[list[str]], message: str) -> None:
    pipe, inputs = golden_pipeline()
    trace, _, _ = traced(pipe, "unet", lambda: pipe(**{**inputs, "num_inference_steps": 1}))
    with pytest.raises(SplitError, match=message):
        divide_denoiser(trace, Schedule(2, 1, 1), split, WEIGHT)


def test_where_the_host_binds_operators_are_balanced_and_not_arithmetic() -> None:
    """Many small operators and one large product: on a device that runs ahead of its host, the small ones count."""
    torch.manual_seed(0)

    class Uneven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(64, 64 if number else 4096, bias=False) for number in range(9))

        def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
            for block in self.blocks:
                sample = block(sample[:, :64])
            return sample

    with torch.no_grad():
        denoiser = Uneven()
        _, trace = record(denoiser, Call(denoiser.forward, (torch.ones(40, 64), torch.tensor(1.0)), {}))
    by_arithmetic = build_graph(trace, DeviceRates(0.0, 0.0))
    by_operators = build_graph(trace, DeviceRates(0.0, 1e12))
    assert len(divide(by_arithmetic, 2).components[0]) <= 2, "the large product, and at most one of the small ones"
    assert sorted(len(own) for own in divide(by_operators, 2).components) == [4, 5]
    assert [unit.cost for unit in by_operators.units] == [unit.cost for unit in by_arithmetic.units]
