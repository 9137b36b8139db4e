"""Look into a pipeline's denoiser: its units, their cost, and what a division would send."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from asyncdiff.call import Call
from asyncdiff.denoiser.find import device_of, find_denoisers
from asyncdiff.denoiser.form import CallForm
from asyncdiff.denoiser.rates import rates_of
from asyncdiff.denoiser.trace import Trace, record
from asyncdiff.errors import ConfigurationError
from asyncdiff.hooks import intercept_call
from asyncdiff.launch import call_pipeline
from asyncdiff.plan.course import Course
from asyncdiff.plan.division import Division, divide_denoiser
from asyncdiff.plan.moments import Moment, Order
from asyncdiff.plan.schedule import Schedule
from asyncdiff.plan.split import Split
from asyncdiff.settings import Settings


@dataclass(frozen=True)
class UnitCost:
    """One call of a unit: its share of a denoiser call; component None means every device runs it."""

    name: str
    ordinal: int
    share: float
    component: int | None


@dataclass(frozen=True)
class LiveEdge:
    """A tensor that a component reads from another one."""

    unit: str
    leaf: int
    from_component: int
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class ComponentPart:
    """One component of the division."""

    units: tuple[str, ...]
    share: float
    reads: tuple[LiveEdge, ...]


@dataclass(frozen=True)
class StrideForecast:
    """What a stride would cost and give, by the model without communication."""

    stride: int
    devices: int
    bytes_per_round: int
    modelled_speedup: float


@dataclass(frozen=True)
class Sent:
    """One tensor, or several in one message, on its way.

    Attributes:
        source, reader: ranks of a group.
        what: how many live edges, or which prediction.
        bytes: how large.
    """

    source: int
    reader: int
    what: str
    bytes: int


@dataclass(frozen=True)
class ExchangedStep:
    """What is exchanged in a step, moment by moment; every moment is one batch.

    Attributes:
        steps: the steps of a generation in which it is so, from 0.
        kind: of these steps.
        moments: in the order in which all ranks take part.
    """

    steps: tuple[int, ...]
    kind: str
    moments: tuple[tuple[Sent, ...], ...]


@dataclass(frozen=True)
class Inspection:
    """A denoiser's division into components."""

    denoiser: str
    kind: str
    units: tuple[UnitCost, ...]
    components: tuple[ComponentPart, ...]
    forecasts: tuple[StrideForecast, ...]
    exchange: tuple[ExchangedStep, ...]


def inspect_denoisers(
    pipe: Any,
    prompt: str,
    components: int,
    warmup: int,
    steps: int,
    strides: Sequence[int],
    split: Split | None = None,
) -> tuple[Inspection, ...]:
    """Trace one ordinary call of each denoiser of the pipeline and divide it, by hand where there is a split.

    The exchange is that of the first stride and the default method.

    Raises:
        ConfigurationError: the pipeline has no denoiser, or numbers that cannot work.
        SplitError: a denoiser cannot be divided into so many components.
    """
    schedules = [Schedule(components, stride, warmup) for stride in strides]
    denoisers = find_denoisers(pipe)
    traces: dict[str, Trace] = {}
    undo = [
        intercept_call(denoiser, functools.partial(_trace_first_call, traces, name, denoiser))
        for name, denoiser in denoisers.items()
    ]
    try:
        call_pipeline(pipe, prompt=prompt, num_inference_steps=2)
    finally:
        for detach in undo:
            detach()
    if not traces:
        raise ConfigurationError(f"{type(pipe).__name__} called no denoiser: no `unet` and no `transformer`")
    return tuple(
        _inspection(name, denoisers[name], trace, device_of(pipe, denoisers[name]), schedules, steps, split)
        for name, trace in traces.items()
    )


def _trace_first_call(
    traces: dict[str, Trace],
    name: str,
    denoiser: nn.Module,
    call: Call,
) -> Any:
    if name in traces:
        return call()
    result, traces[name] = record(denoiser, call, CallForm(denoiser).batch(call))
    return result


def _inspection(
    name: str,
    denoiser: nn.Module,
    trace: Trace,
    device: torch.device,
    schedules: Sequence[Schedule],
    steps: int,
    split: Split | None,
) -> Inspection:
    divisions = [divide_denoiser(trace, schedule, split, rates_of(device)) for schedule in schedules]
    graph, partition = divisions[0].graph, divisions[0].partition
    units = tuple(
        UnitCost(unit.name, unit.ordinal, unit.time / graph.time, partition.owner(index))
        for index, unit in enumerate(graph.units)
    )
    parts = []
    for own, share, reads in zip(partition.components, partition.shares, partition.reads, strict=True):
        edges = tuple(
            LiveEdge(
                unit=graph.units[edge.unit].name,
                leaf=edge.leaf,
                from_component=partition.owner(edge.unit) or 0,
                shape=graph.units[edge.unit].outputs[edge.leaf].shape,
                bytes=graph.bytes([edge]),
            )
            for edge in sorted(reads)
        )
        parts.append(ComponentPart(tuple(graph.units[unit].name for unit in sorted(own)), share, edges))
    forecasts = tuple(
        StrideForecast(
            stride=division.schedule.stride,
            devices=division.schedule.world_size,
            bytes_per_round=division.bytes_per_round,
            modelled_speedup=division.modelled_speedup(steps),
        )
        for division in divisions
    )
    settings = Settings(components=schedules[0].components, stride=schedules[0].stride, warmup=schedules[0].warmup)
    method = settings.chosen_method
    by_default = divide_denoiser(trace, settings.schedule(), split, rates_of(device), method)
    exchange = _exchange(by_default, steps, sum(leaf.bytes for leaf in trace.calls[0].outputs))
    return Inspection(name, type(denoiser).__name__, units, tuple(parts), forecasts, exchange)


def _exchange(division: Division, steps: int, prediction: int) -> tuple[ExchangedStep, ...]:
    """The exchanges of a generation, equal steps together; `prediction` is the size of one in bytes."""
    course, order = Course(division.schedule, steps - 1), Order(division)
    found: dict[tuple[str, tuple[tuple[Sent, ...], ...]], list[int]] = {}
    for step in course.steps():
        moments = tuple(
            _sent(division, moment, step.index, prediction) for moment in order.of(course, step.index).moments
        )
        found.setdefault((step.kind.value, moments), []).append(step.index)
    return tuple(ExchangedStep(tuple(indices), kind, moments) for (kind, moments), indices in found.items())


def _sent(division: Division, moment: Moment, index: int, prediction: int) -> tuple[Sent, ...]:
    edges = [
        Sent(message.source, message.reader, f"{len(message.edges)} live edges", division.graph.bytes(message.edges))
        for message in moment.messages
    ]
    predictions = [
        Sent(source, reader, "prediction" if at == index else f"prediction of {at - index} steps later", prediction)
        for at, source in moment.results
        for reader in range(division.schedule.world_size)
        if reader != source
    ]
    return (*edges, *predictions)
