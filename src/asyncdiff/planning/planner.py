"""`asyncdiff.plan`: from a model's name to a choice."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from asyncdiff.denoiser.graph import build_graph, operations
from asyncdiff.denoiser.trace import Trace
from asyncdiff.errors import AsyncDiffError, SplitError
from asyncdiff.loading import load_pipeline
from asyncdiff.plan.link import Link
from asyncdiff.plan.timeline import Timeline
from asyncdiff.plan.token_counting import CountedTokens, count_tokens, may_have_tokens
from asyncdiff.planning.asked import Request
from asyncdiff.planning.candidates import AloneTimes, Candidate, Conditions, Planner
from asyncdiff.planning.choosing import choose, mark_best
from asyncdiff.planning.describing import describe
from asyncdiff.planning.device import DEVICES, Device
from asyncdiff.planning.first_step import FirstStep, first_step
from asyncdiff.planning.hollow import hollow_pipeline
from asyncdiff.planning.indication import read_indications
from asyncdiff.planning.links import read_link
from asyncdiff.planning.measuring import Times, time_calls, time_rounds, time_tokens
from asyncdiff.planning.sizes import other_sizes
from asyncdiff.planning.subject import Subject

logger = logging.getLogger(__name__)

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
    candidates: tuple[Candidate, ...]
    chosen: Candidate | None
    reason: str
    timeline: Timeline | None


def plan_for(request: Request, inputs: Mapping[str, Any]) -> Plan:
    """The plan that a request asks for. Errors: see `asyncdiff.plan`."""
    device = _device_of(request)
    given = {"batch": request.batch, **inputs}
    pipe = hollow_pipeline(request.model, _format_of(request, device))
    step = first_step(pipe, given)
    subject = replace(describe(pipe, step, request.batch), tokens=_tokens(request, device, given, step))
    groups = [count for count in range(2, request.devices + 1) if subject.share_out(count) is not None]
    if request.measure:
        found = _measured(request, step.denoiser, given, groups, subject, device)
        subject = subject if found.by_tokens else replace(subject, tokens=None)
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
        candidates=candidates,
        chosen=chosen,
        reason=reason,
        timeline=None if chosen is None else planner.timeline(chosen.way),
    )


def _tokens(request: Request, device: Device, given: Mapping[str, Any], step: FirstStep) -> CountedTokens | None:
    """What of a call is done for each of the picture's tokens: seen in its first step at other sizes."""
    if request.devices == 1 or not may_have_tokens(step.trace):
        return None

    def at(height: int, width: int) -> Trace:
        pipe = hollow_pipeline(request.model, _format_of(request, device))
        return first_step(pipe, {**given, "height": height, "width": width}).trace

    try:
        return count_tokens([step.trace, *other_sizes(step.trace, at)], device.rates, step.longer)
    except AsyncDiffError as error:
        logger.info("tokens are not looked at: %s", error)
        return None


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
    """

    times: Times
    alone: Mapping[int, AloneTimes] = field(default_factory=dict)
    by_tokens: Mapping[tuple[int, bool], float] = field(default_factory=dict)


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
    counts = range(2, request.devices + 1) if subject.tokens is not None else ()
    return _Found(times, alone, time_tokens(pipe, denoiser, given, counts, times) if counts else {})


def _device_of(request: Request) -> Device:
    """The kind of device whose time is modelled, or measured."""
    own = "gpu" if torch.cuda.is_available() else "cpu"
    return DEVICES[request.device or (own if request.measure else "gpu")]


def _format_of(request: Request, device: Device) -> torch.dtype:
    """Number format of the weights."""
    found: torch.dtype = _FORMATS[device.name] if request.dtype is None else getattr(torch, request.dtype)
    return found
