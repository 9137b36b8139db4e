"""`asyncdiff.plan`: from a model's name to a choice."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from asyncdiff.denoiser.graph import build_graph, operations
from asyncdiff.denoiser.trace import Trace
from asyncdiff.errors import AsyncDiffError, ConfigurationError, SplitError, TraceError
from asyncdiff.loading import load_pipeline
from asyncdiff.plan.link import Link
from asyncdiff.plan.timeline import Timeline
from asyncdiff.plan.token_counting import CountedTokens, count_tokens, why_not
from asyncdiff.planning.asked import Request
from asyncdiff.planning.candidates import AloneTimes, Candidate, Conditions, Planner
from asyncdiff.planning.choosing import choose, mark_best
from asyncdiff.planning.describing import describe
from asyncdiff.planning.device import DEVICES, Device
from asyncdiff.planning.first_step import FirstStep, call_arguments, first_step
from asyncdiff.planning.hollow import hollow_pipeline
from asyncdiff.planning.indication import read_indications
from asyncdiff.planning.links import read_link
from asyncdiff.planning.measuring import Times, time_calls, time_rounds, time_tokens
from asyncdiff.planning.sizes import other_sizes, possible_size
from asyncdiff.planning.subject import Subject
from asyncdiff.request.signature import Signature

_SIDES = ("height", "width")
_FORMATS = {"gpu": torch.float16, "cpu": torch.float32}


@dataclass(frozen=True)
class Plan:
    """What is predicted of a model on so many devices.

    Attributes:
        model: what was asked for.
        denoiser: the class of its denoiser.
        steps: of a generation.
        link: between the devices.
        memory: bytes that each device has; None where that was not to be looked at.
        call: seconds of one call of the denoiser on one device.
        is_measured: whether those were measured on this machine, or modelled from counted operations.
        calls: how often the denoiser is called in a step.
        pictures: how many a call of the pipeline makes.
        no_tokens: why the picture's tokens cannot be divided; None where they can, or where there is one device.
        candidates: every sensible way, those with few devices first.
        chosen: the one to take; None where nothing fits.
        reason: why, in a sentence.
        timeline: who does what when if the chosen way is taken, of one of its groups.
    """

    model: str
    denoiser: str
    steps: int
    link: Link
    memory: float | None
    call: float
    is_measured: bool
    calls: int
    pictures: int
    no_tokens: str | None
    candidates: tuple[Candidate, ...]
    chosen: Candidate | None
    reason: str
    timeline: Timeline | None


def plan_for(request: Request, inputs: Mapping[str, Any]) -> Plan:
    """The plan that a request asks for. Errors: see `asyncdiff.plan`."""
    device = _device_of(request)
    given = {"batch": request.batch, **inputs}

    def build() -> Any:
        return hollow_pipeline(request.model, _format_of(request, device))

    pipe = build()
    step = _at_a_possible_size(pipe, build, given)
    subject, no_tokens = describe(pipe, step), None
    if request.devices > 1:
        try:
            subject = replace(subject, tokens=_tokens(pipe, step, build, given, device))
        except AsyncDiffError as error:
            no_tokens = str(error)
    groups = [count for count in range(2, request.devices + 1) if subject.share_out(count) is not None]
    if request.measure:
        found = _measured(request, step.denoiser, given, groups, subject, device)
        if found.no_tokens is not None:
            subject, no_tokens = replace(subject, tokens=None), found.no_tokens
    else:
        found = _Found(_modelled(request, device, subject, groups))
    times = found.times
    conditions = Conditions(
        devices=request.devices,
        memory=request.memory_bytes,
        link=read_link(request.link),
        rates=device.rates,
        steps=request.steps,
        warmup=request.warmup,
        call=times.calls,
        outside=times.outside,
        alone=found.alone,
        units=times.units,
        by_tokens=found.by_tokens,
    )
    planner = Planner(subject, conditions, read_indications())
    candidates = mark_best(tuple(planner.candidates()))
    chosen, reason = choose(candidates)
    return Plan(
        model=request.model,
        denoiser=subject.kind,
        steps=request.steps,
        link=conditions.link,
        memory=conditions.memory,
        call=times.calls[1.0],
        is_measured=request.measure,
        calls=subject.calls,
        pictures=subject.pictures,
        no_tokens=no_tokens,
        candidates=candidates,
        chosen=chosen,
        reason=reason,
        timeline=None if chosen is None else planner.timeline(chosen.way),
    )


def _at_a_possible_size(pipe: Any, build: Callable[[], Any], given: Mapping[str, Any]) -> FirstStep:
    """The first step of a pipeline's call; where there is none because of the size, the error says which would do.

    Args:
        build: makes the pipeline anew.
    """
    call_arguments(pipe, given)  # what it does not take at all is no matter of its size
    try:
        return first_step(pipe, given)
    except (ConfigurationError, TraceError) as error:
        told = {name: given[name] for name in _SIDES if type(given.get(name)) is int}
        others = {name: value for name, value in given.items() if name not in told}

        def works(size: Mapping[str, int]) -> bool:
            try:
                first_step(build(), {**others, **size})
            except AsyncDiffError:
                return False
            return True

        found = possible_size(told, works) if told else None
        if found is None:
            raise
        advice = f"{_said(found)} would do" if found else f"leave {' and '.join(told)} out, and it is the model's own"
        raise ConfigurationError(f"{type(pipe).__name__} makes no pictures of {_said(told)}; {advice}") from error


def _said(size: Mapping[str, int]) -> str:
    return " and ".join(f"{name} {pixels}" for name, pixels in size.items())


def _tokens(
    pipe: Any, step: FirstStep, build: Callable[[], Any], given: Mapping[str, Any], device: Device
) -> CountedTokens:
    """What of a call is done for each of the picture's tokens: seen in the same call at other sizes.

    Args:
        step: with the call of this pipeline.
        build: makes the pipeline anew.

    Raises:
        AsyncDiffError: it cannot be divided by tokens; says why.
    """
    reason = why_not(step.trace)
    if reason is not None:
        raise SplitError(reason)
    if Signature.of(pipe).unknown(_SIDES) is not None:
        raise SplitError(f"{type(pipe).__name__} takes no height and width, by which tokens are counted")

    def at(*size: int) -> Trace:
        return first_step(build(), {**given, **dict(zip(_SIDES, size, strict=True))}).trace

    return count_tokens([step.trace, *other_sizes(step.trace, at)], device.rates, step.longer)


def _modelled(request: Request, device: Device, subject: Subject, groups: list[int]) -> Times:
    """Seconds of a call by the part of the batch, from its counted operations."""
    speed = device.speed if request.tflops is None else request.tflops * 1e12
    parts = {share.part for count in (1, *groups) if (share := subject.share_out(count)) is not None}
    return Times({part: operations(subject.trace, device.rates, part) / speed for part in parts}, outside=0.0)


@dataclass(frozen=True)
class _Found:
    """How long calls take, and what only a measurement tells.

    Attributes:
        times: of calls and units.
        alone: of rounds that one device computes, by the number of components.
        by_tokens: of calls with one of so many parts of the tokens, relative to undivided ones; with fresh keys or not.
        no_tokens: why there are none of these, where they were looked for.
    """

    times: Times
    alone: Mapping[int, AloneTimes] = field(default_factory=dict)
    by_tokens: Mapping[tuple[int, bool], float] = field(default_factory=dict)
    no_tokens: str | None = None


def _measured(
    request: Request, denoiser: str, given: Mapping[str, Any], groups: list[int], subject: Subject, device: Device
) -> _Found:
    """All that is measured on this machine."""
    here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipe = load_pipeline(request.model, request.dtype, here, request.allow_pickle)
    pipe.set_progress_bar_config(disable=True)
    units = {unit.name for unit in build_graph(subject.trace, device.rates).units}
    times = time_calls(pipe, denoiser, given, groups, units)
    alone = {}
    for components in range(1, request.devices + 1):
        try:
            alone[components] = time_rounds(pipe, given, components, times)
        except SplitError:
            break  # there are no more parts
    if subject.tokens is None:
        return _Found(times, alone)
    try:
        by_tokens = time_tokens(pipe, denoiser, given, range(2, request.devices + 1), times)
    except SplitError as error:
        return _Found(times, alone, no_tokens=str(error))
    return _Found(times, alone, by_tokens)


def _device_of(request: Request) -> Device:
    """The kind of device whose time is modelled, or measured."""
    own = "gpu" if torch.cuda.is_available() else "cpu"
    return DEVICES[request.device or (own if request.measure else "gpu")]


def _format_of(request: Request, device: Device) -> torch.dtype:
    """Number format of the weights."""
    found: torch.dtype = _FORMATS[device.name] if request.dtype is None else getattr(torch, request.dtype)
    return found
