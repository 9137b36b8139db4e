"""The units between divided tokens given to components: what each reads, and what is refused."""

import functools
from dataclasses import replace

import pytest

from asyncdiff.denoiser.graph import Edge
from asyncdiff.errors import SplitError
from asyncdiff.plan.layers import check_cut, divide_layers
from asyncdiff.plan.method import PAPER
from asyncdiff.plan.schedule import Schedule, Step, StepKind, Task
from asyncdiff.plan.token_counting import count_tokens
from asyncdiff.plan.token_layout import Extent, TokenLayout, TokenParts
from asyncdiff.plan.tokens import TokenDivision, divide_tokens
from tests.plan.joint import OPERATIONS_ALONE, TEXT, TOKENS, WIDTH, Joint, traces


@functools.cache
def layout() -> TokenLayout:
    """Of two blocks; a text comes first."""
    states = {unit: {0: Extent(1, TEXT)} for unit in (0, 1)}
    counted = count_tokens(traces(Joint(), TOKENS, 2 * TOKENS, 3 * TOKENS), OPERATIONS_ALONE)
    return replace(counted.layout, inputs=states, made=states)


def divided(parts: int, components: int) -> TokenDivision:
    layers = divide_layers(layout(), traces(Joint(), TOKENS)[0], components, residual=False)
    schedule = Schedule(parts * components, 1, 1, by_tokens=True)
    return divide_tokens(layout(), schedule, OPERATIONS_ALONE, PAPER, 0.5, {}, layers=layers)


@pytest.mark.parametrize("parts", [2, 3])
def test_who_reads_what_of_whom(parts: int) -> None:
    """Of 16 tokens in three parts the first has 5, the others 5 and 6."""
    division = divided(parts, 2)
    sent = {(message.source, message.reader): division.bytes_of(message.edges) for message in division.messages}
    sizes = [(part + 1) * TOKENS // parts - part * TOKENS // parts for part in range(parts)]
    expected = {}
    for part, size in enumerate(sizes):
        for component in (0, 1):
            for other in range(parts):
                if other != part:
                    keys = 2 * size * WIDTH * 4
                    expected[component * parts + part, component * parts + other] = keys
        expected[part, parts + part] = (TEXT + size) * WIDTH * 4
    assert sent == expected
    moment = division.keys_of_step(parts)  # the second component's first
    assert moment.readers == tuple(range(parts, 2 * parts))
    assert moment.results == tuple((part, parts + part) for part in range(parts))
    in_full = Step(0, StepKind.DIVIDED, 0)
    assert division.results(in_full) == moment.results, "the last block is the second component's"
    bridged = Step(2, StepKind.BRIDGED, 2, (Task(0, 2, None, predicts=2),))
    assert division.results(bridged) == ()


def test_one_component_has_all_units() -> None:
    division = divided(3, 1)
    assert {(message.source, message.reader) for message in division.messages} == {
        (source, reader) for source in range(3) for reader in range(3) if source != reader
    }
    assert not division.between_layers and division.runs(0) == frozenset({0, 1})


def test_what_is_read_in_the_middle() -> None:
    graph = layout().graph
    reading = replace(layout(), graph=replace(graph, output_reads=graph.output_reads | {Edge(0, 0)}))
    with pytest.raises(SplitError, match=r"components cannot be used .*: 'the prediction' reads what 'blocks.0' makes"):
        divide_layers(reading, traces(Joint(), TOKENS)[0], 2, residual=False)
    divide_layers(reading, traces(Joint(), TOKENS)[0], 1, residual=False)


def test_tensors_of_other_shapes() -> None:
    """The recorded call has half of the tokens, as each of two parts has."""
    half = traces(Joint(), TOKENS // 2)[0]
    check_cut(layout(), TokenParts(TOKENS, 2), half)
    for wrong in ((layout(), TokenParts(TOKENS, 3)), (replace(layout(), made={0: {}, 1: {}}), TokenParts(TOKENS, 2))):
        with pytest.raises(SplitError, match="gives tensors of other shapes than was expected"):
            check_cut(*wrong, half)
