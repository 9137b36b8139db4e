"""`asyncdiff.plan`: from a model's name to a choice."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from asyncdiff.denoiser.graph import build_graph, operations
from asyncdiff.errors import ConfigurationError, SplitError
from asyncdiff.loading import check_model, load_pipeline, parts_of
from asyncdiff.plan.numbers import check_number, check_whole_number, shown
from asyncdiff.planning.candidates import AloneTimes, Candidate, Conditions, Planner
from asyncdiff.planning.choosing import choose, mark_best
from asyncdiff.planning.describing import describe
from asyncdiff.planning.device import DEVICES, Device
from asyncdiff.planning.first_step import first_step
from asyncdiff.planning.hollow import hollow_pipeline
from asyncdiff.planning.indication import read_indications
from asyncdiff.planning.links import Link, read_link
from asyncdiff.planning.measuring import Times, time_calls, time_rounds
from asyncdiff.planning.quantity import read_bytes
from asyncdiff.planning.subject import Subject
from asyncdiff.planning.timeline import Timeline

_MOST_DEVICES = 64
_NAMES = ("float32", "float16", "bfloat16")  # of number formats
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


@dataclass(frozen=True)
class Request:
    """What a plan is asked for, checked before anything is read. `plan` says what each means.

    Raises:
        ConfigurationError: a value that cannot work.
        ModelError: there is no such model.
    """

    model: str
    devices: int
    memory: str | float | None = None
    link: str = "pcie4"
    steps: int = 50
    warmup: int = 5
    batch: int = 1
    device: str | None = None
    tflops: float | None = None
    dtype: str | None = None
    measure: bool = False
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        check_whole_number("devices", self.devices, 1, _MOST_DEVICES)
        for name in ("steps", "warmup", "batch"):
            check_whole_number(name, getattr(self, name), 1)
        for name in ("model", "link"):
            if not isinstance(getattr(self, name), str):
                raise ConfigurationError(f"{name} must be written as text, not {shown(getattr(self, name))}")
        if self.device is not None and self.device not in tuple(DEVICES):
            raise ConfigurationError(f"device must be {' or '.join(DEVICES)}, not {shown(self.device)}")
        if self.dtype is not None and self.dtype not in _NAMES:
            raise ConfigurationError(f"dtype must be {', '.join(_NAMES)}, not {shown(self.dtype)}")
        if self.tflops is not None:
            check_number("tflops", self.tflops, 0)
        for name in ("device", "tflops"):
            if self.measure and getattr(self, name) is not None:
                raise ConfigurationError(f"{name} says what is modelled, and measure times this machine; give one")
        _ = self.memory_bytes, read_link(self.link)
        if self.measure:
            check_model(self.model, self.allow_pickle)
        else:
            parts_of(self.model)

    @property
    def memory_bytes(self) -> float | None:
        """Bytes that each device has."""
        if self.memory is None or isinstance(self.memory, str):
            return None if self.memory is None else read_bytes("memory", self.memory)
        return check_number("memory", self.memory, 0)

    @property
    def kind(self) -> Device:
        """The kind of device whose time is modelled, or measured."""
        own = "gpu" if torch.cuda.is_available() else "cpu"
        return DEVICES[self.device or (own if self.measure else "gpu")]

    @property
    def format(self) -> torch.dtype:
        """Number format of the weights."""
        found: torch.dtype = _FORMATS[self.kind.name] if self.dtype is None else getattr(torch, self.dtype)
        return found


def plan(
    model: str,
    devices: int,
    *,
    memory: str | float | None = None,
    link: str = "pcie4",
    steps: int = 50,
    warmup: int = 5,
    batch: int = 1,
    device: Literal["gpu", "cpu"] | None = None,
    tflops: float | None = None,
    dtype: str | None = None,
    measure: bool = False,
    allow_pickle: bool = False,
    inputs: Mapping[str, Any] | None = None,
) -> Plan:
    """What a model would do on so many devices: time, traffic and memory of every sensible way, and which one to take.

    No weights are read, and none are needed: of a model on the hub the small files are fetched. Times are modelled from
    counted operations, unless `measure` is set.

    Args:
        model: a demo model, a folder (its configuration files are enough), or a hub id.
        devices: how many there are.
        memory: of each, as "24GB", or in bytes. By default it is not looked at.
        link: between them: nvlink, pcie4, pcie3, ethernet, or bytes per second in one direction, as "12GB/s".
        steps: of a generation.
        warmup: ordinary steps at first.
        batch: how many prompts at the same time.
        device: their kind. By default gpu, or what this machine has, where it is measured.
        tflops: 10¹² operations per second that one of them reaches. By default a guess for its kind.
        dtype: number format of the weights. By default float16 on a GPU, float32 on a CPU.
        measure: load the model with its weights, and time its denoiser on this machine.
        allow_pickle: whether weights to measure with may be read that are no safetensors; pickles can run code.
        inputs: what the pipeline is to be called with, such as height and width, or an image.

    Raises:
        ConfigurationError: a value that cannot work, or a pipeline that cannot be run without its weights.
        ModelError: the model's configuration, or the weights to measure with, cannot be read.
        TraceError: the denoiser's call cannot be told without its weights.
    """
    request = Request(model, devices, memory, link, steps, warmup, batch, device, tflops, dtype, measure, allow_pickle)
    return plan_for(request, inputs or {})


def plan_for(request: Request, inputs: Mapping[str, Any]) -> Plan:
    """The plan that a request asks for. Errors: see `plan`."""
    given = {"batch": request.batch, **inputs}
    pipe = hollow_pipeline(request.model, request.format)
    step = first_step(pipe, given)
    subject = describe(pipe, step, request.batch)
    groups = [count for count in range(2, request.devices + 1) if subject.share_out(count) is not None]
    alone: Mapping[int, AloneTimes] = {}
    if request.measure:
        units = {unit.name for unit in build_graph(subject.trace, request.kind.rates).units}
        times, alone = _measured(request, step.denoiser, given, groups, units)
    else:
        times = _modelled(request, subject, groups)
    conditions = Conditions(
        devices=request.devices,
        memory=request.memory_bytes,
        link=read_link(request.link),
        rates=request.kind.rates,
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


def _modelled(request: Request, subject: Subject, groups: list[int]) -> Times:
    """Seconds of a call by the part of the batch, from its counted operations."""
    device = request.kind
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
