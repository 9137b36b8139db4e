"""How long a denoiser takes on this machine: calls of the whole batch, parts of it, rounds, and what is between.

The median of several times is taken: a generation meets what else the machine does as well. Of parts of the batch it is
what the slowest of the groups takes that compute them.
"""

import functools
import itertools
import statistics
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from asyncdiff.api import AsyncDiff
from asyncdiff.call import Call
from asyncdiff.denoiser.find import device_of, find_denoisers, finish
from asyncdiff.denoiser.form import CallForm
from asyncdiff.denoiser.graph import build_graph
from asyncdiff.denoiser.rates import rates_of
from asyncdiff.denoiser.trace import record
from asyncdiff.errors import ConfigurationError, SplitError
from asyncdiff.events import Events
from asyncdiff.hooks import intercept_call, listen
from asyncdiff.launch import call_pipeline
from asyncdiff.plan.course import Course
from asyncdiff.plan.parts import Parts
from asyncdiff.plan.schedule import StepKind
from asyncdiff.planning.candidates import AloneTimes
from asyncdiff.planning.first_step import call_arguments
from asyncdiff.planning.retiming import Seconds
from asyncdiff.runtime.axis import times_of
from asyncdiff.runtime.batch import batch_rules
from asyncdiff.runtime.token_finding import TokenFinder
from asyncdiff.runtime.units import UnitHooks

_REPEATS = 9  # at least, and for so many seconds: what else the machine does comes and goes
_SECONDS = 0.5
_STEPS = 6  # whose gaps are timed; the first is not counted
_STEPS_OF_ROUNDS = 16  # three in full, four rounds with bridged steps between, four more, two in full
_GENERATIONS = 3  # of rounds, after one that records the call


class _CaughtError(BaseException):
    """All that is to be timed has been. No pipeline catches it."""


@dataclass(frozen=True)
class Times:
    """Seconds.

    Attributes:
        calls: of a call, by the part of the batch that it is given.
        outside: between two calls: the scheduler, and what else the pipeline does.
        units: of each unit in a call of the whole batch.
    """

    calls: Mapping[float, float]
    outside: float
    units: Seconds = field(default_factory=dict)


def time_calls(
    pipe: Any, name: str, inputs: Mapping[str, Any], groups: Collection[int], units: Collection[str] = ()
) -> Times:
    """Time the denoiser in a pipeline's own call, after a call that is not counted.

    Args:
        pipe: with its weights, on the device.
        name: the pipeline's name for the denoiser.
        inputs: what the pipeline is called with, beside a prompt.
        groups: into how many parts the batch is divided.
        units: the modules of the denoiser whose calls are to be timed too.

    Raises:
        ConfigurationError: the pipeline cannot be called so.
    """
    denoiser = find_denoisers(pipe)[name]
    form, device = CallForm(denoiser), device_of(pipe, denoiser)
    calls: dict[float, float] = {}
    parts: dict[tuple[str, int], float] = {}
    gaps: list[float] = []
    left = 0.0

    def look(call: Call) -> Any:
        nonlocal left
        finish(device)
        gaps.append(time.perf_counter() - left)
        if not calls:
            calls.update(_calls(form, call, device, groups))
            parts.update(_parts(denoiser, units, call, device))
        elif len(gaps) > _STEPS:
            raise _CaughtError
        result = call()
        finish(device)
        left = time.perf_counter()
        return result

    undo = intercept_call(denoiser, look)
    arguments = call_arguments(pipe, inputs)
    if "num_inference_steps" in arguments:
        arguments["num_inference_steps"] = _STEPS + 1
    try:
        call_pipeline(pipe, **arguments)
    except _CaughtError:
        pass
    finally:
        undo()
    if len(gaps) < 2:
        raise ConfigurationError(f"{type(pipe).__name__} did not call its {name!r} twice")
    return Times(calls, statistics.median(gaps[1:]), parts)


def time_rounds(pipe: Any, inputs: Mapping[str, Any], components: int, times: Times) -> AloneTimes:
    """Time rounds of so many components, and bridged steps, all computed by this process.

    Args:
        pipe: with its weights, on the device.
        inputs: what the pipeline is called with, beside a prompt; it must take `num_inference_steps`.
        components: N.
        times: what was found of ordinary calls.
    """
    (device,) = {device_of(pipe, denoiser) for denoiser in find_denoisers(pipe).values()}
    ends: list[float] = []

    def note(*args: Any, **kwargs: Any) -> None:
        finish(device)
        ends.append(time.perf_counter())

    arguments = call_arguments(pipe, inputs) | {"num_inference_steps": _STEPS_OF_ROUNDS}
    undo = listen(pipe.scheduler, "step", note)  # before AsyncDiff does, which takes its own ear off in the end
    generations = []
    try:
        with AsyncDiff(pipe, components=components, guidance=1, bridge=2, executor="local") as attached:
            for _ in range(_GENERATIONS + 1):
                ends.clear()
                call_pipeline(pipe, **arguments)
                generations.append([after - before for before, after in itertools.pairwise(ends)])
            counts = attached.report().denoisers[0].counts
            steps = Course(attached.settings.schedule(components), len(ends) - 1).steps()
    finally:
        undo()
    calls = max(counts.steps // len(ends), 1)
    taken: dict[StepKind, list[float]] = {}
    for step, *seconds in zip(steps[1:], *generations[1:], strict=False):
        taken.setdefault(step.kind, []).append(statistics.median(seconds) / calls - times.outside)
    return AloneTimes(*(statistics.median(taken[kind][1:]) for kind in (StepKind.ROUND, StepKind.BRIDGED)))


def time_tokens(
    pipe: Any, name: str, inputs: Mapping[str, Any], counts: Collection[int], times: Times
) -> Mapping[tuple[int, bool], float]:
    """What a call with one of so many parts of a picture's tokens takes, relative to an undivided one.

    By how many parts, and whether keys are fresh: then a text is divided as well, where it can be.

    Args:
        pipe: with its weights, on the device.
        name: the pipeline's name for the denoiser.
        inputs: what the pipeline is called with, beside a prompt.
        counts: into how many parts.
        times: what was found of ordinary calls.

    Raises:
        SplitError: the denoiser cannot be divided by tokens.
    """
    denoiser = find_denoisers(pipe)[name]
    form, device = CallForm(denoiser), device_of(pipe, denoiser)
    units = UnitHooks(denoiser, Events(device))
    found: dict[tuple[int, bool], float] = {}

    def look(call: Call) -> Any:
        _, trace = record(denoiser, call.with_own_containers(), form.batch(call))
        graph = build_graph(trace, rates_of(device))
        units.add(graph)
        for count, fresh in itertools.product(counts, (True, False)):
            finder = TokenFinder(denoiser, units, form, trace, graph, is_bridged=True, divides_text=fresh)
            tokens = finder.find(call, count)
            part = tokens.trial.divided(tokens.layout, tokens.layout.parts(count), count - 1, [])
            found[count, fresh] = _seconds(part, device) / times.calls[1.0]
        raise _CaughtError

    undo = intercept_call(denoiser, look)
    try:
        call_pipeline(pipe, **call_arguments(pipe, inputs))
    except _CaughtError:
        pass
    except SplitError:
        if not found:  # into fewer parts it can be divided
            raise
    finally:
        undo()
        units.remove()
    return found


def _calls(form: CallForm, call: Call, device: torch.device, groups: Collection[int]) -> dict[float, float]:
    batch = form.batch(call)
    found = {1.0: _seconds(call, device)}
    rule = next(iter(batch_rules(form.main(call), call.given)), None)
    for count in groups:
        part = Parts(batch, count).size / batch
        if rule is not None and part not in found:
            # Groups wait for each other in every step, as long as the slowest takes.
            found[part] = expected_slowest(_times(call.giving(rule.part(call.given, 0, count)), device), count)
    return found


def expected_slowest(times: Sequence[float], count: int) -> float:
    """How long the slowest of so many takes on average, each of which takes one of these times, as likely as any."""
    shares = [((place + 1) / len(times)) ** count - (place / len(times)) ** count for place in range(len(times))]
    return sum(share * seconds for share, seconds in zip(shares, sorted(times), strict=True))


def _seconds(call: Call, device: torch.device) -> float:
    return statistics.median(_times(call, device))


def _times(call: Call, device: torch.device) -> list[float]:
    return times_of(lambda: call.with_own_containers()(), device, _repeats())


def _parts(denoiser: nn.Module, names: Collection[str], call: Call, device: torch.device) -> Seconds:
    """What each call of some modules takes, by the module's name and how many calls of it came before."""
    begun: dict[str, float] = {}
    taken: dict[str, list[float]] = {name: [] for name in names}

    def begin(name: str, *_: Any) -> None:
        finish(device)
        begun[name] = time.perf_counter()

    def end(name: str, *_: Any) -> None:
        finish(device)
        taken[name].append(time.perf_counter() - begun[name])

    undo = []
    for name in names:
        module = denoiser.get_submodule(name)
        undo.append(module.register_forward_pre_hook(functools.partial(begin, name)).remove)
        undo.append(module.register_forward_hook(functools.partial(end, name)).remove)
    found: dict[tuple[str, int], list[float]] = {}
    try:
        for _ in _repeats():
            for seconds in taken.values():
                seconds.clear()
            call.with_own_containers()()
            for name, seconds in taken.items():
                for ordinal, each in enumerate(seconds):
                    found.setdefault((name, ordinal), []).append(each)
    finally:
        for put_back in undo:
            put_back()
    return {of: statistics.median(times) for of, times in found.items()}


def _repeats() -> Iterator[int]:
    """So many, and for so long."""
    begin = time.perf_counter()
    for number in itertools.count():
        if number > _REPEATS and time.perf_counter() > begin + _SECONDS:
            return
        yield number
