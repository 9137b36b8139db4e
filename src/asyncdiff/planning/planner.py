"""`asyncdiff.plan`: from a model's name to a choice."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from asyncdiff.denoiser.graph import build_graph, operations
from asyncdiff.errors import SplitError
from asyncdiff.loading import load_pipeline
from asyncdiff.planning.asked import Request
from asyncdiff.planning.candidates import AloneTimes, Candidate, Conditions, Planner
from asyncdiff.planning.choosing import choose, mark_best
from asyncdiff.planning.describing import describe
from asyncdiff.planning.device import DEVICES, Device
from asyncdiff.planning.first_step import first_step
from asyncdiff.planning.hollow import hollow_pipeline
from asyncdiff.planning.indication import read_indications
from asyncdiff.planning.links import Link, read_link
from asyncdiff.planning.measuring import Times, time_calls, time_rounds
from asyncdiff.planning.subject import Subject
from asyncdiff.planning.timeline import Timeline

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
    subject = describe(pipe, step, request.batch)
    groups = [count for count in range(2, request.devices + 1) if subject.share_out(count) is not None]
    alone: Mapping[int, AloneTimes] = {}
    if request.measure:
        units = {unit.name for unit in build_graph(subject.trace, device.rates).units}
        times, alone = _measured(request, step.denoiser, given, groups, units)
    else:
        times = _modelled(request, device, subject, groups)
    conditions = Conditions(
        devices=request.devices,
        memory=request.memory_bytes,
        link=read_link(request.link),
        rates=device.rates,
        steps=request.steps,
        warmup=request.warmup,
        call=times.calls,
        outside=times.outside,
        alone=alone,
        units=times.units,
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


def _modelled(request: Request, device: Device, subject: Subject, groups: list[int]) -> Times:
    """Seconds of a call by the part of the batch, from its counted operations."""
    speed = device.speed if request.tflops is None else request.tflops * 1e12
    parts = {share.part for count in (1, *groups) if (share := subject.share_out(count)) is not None}
    return Times({part: operations(subject.trace, device.rates, part) / speed for part in parts}, outside=0.0)


def _measured(
    request: Request, denoiser: str, given: Mapping[str, Any], groups: list[int], units: Collection[str]
) -> tuple[Times, Mapping[int, AloneTimes]]:
    """Seconds of calls and units, and of rounds by the number of components, on this machine."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipe = load_pipeline(request.model, request.dtype, device, request.allow_pickle)
    pipe.set_progress_bar_config(disable=True)
    times = time_calls(pipe, denoiser, given, groups, units)
    alone = {}
    for components in range(1, request.devices + 1):
        try:
            alone[components] = time_rounds(pipe, given, components, times)
        except SplitError:
            break  # there are no more parts
    return times, alone


def _device_of(request: Request) -> Device:
    """The kind of device whose time is modelled, or measured."""
    own = "gpu" if torch.cuda.is_available() else "cpu"
    return DEVICES[request.device or (own if request.measure else "gpu")]


def _format_of(request: Request, device: Device) -> torch.dtype:
    """Number format of the weights."""
    found: torch.dtype = _FORMATS[device.name] if request.dtype is None else getattr(torch, request.dtype)
    return found
