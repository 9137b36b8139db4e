"""How long a denoiser's call takes on this machine, of the whole batch and of parts of it."""

import statistics
import time
from collections.abc import Collection, Mapping
from typing import Any

import torch

from asyncdiff.call import Call
from asyncdiff.denoiser.find import device_of, find_denoisers
from asyncdiff.denoiser.form import CallForm
from asyncdiff.errors import ConfigurationError
from asyncdiff.hooks import intercept_call
from asyncdiff.launch import call_pipeline
from asyncdiff.plan.parts import Parts
from asyncdiff.planning.first_step import call_arguments
from asyncdiff.runtime.batch import batch_rules

_REPEATS = 5


class _CaughtError(BaseException):
    """The call that is to be timed has been made. No pipeline catches it."""


def measured_calls(pipe: Any, name: str, inputs: Mapping[str, Any], groups: Collection[int]) -> dict[float, float]:
    """Seconds of the denoiser's first call in a pipeline's own call, by the part of the batch that it is given.

    Medians of five, after one that is not counted.

    Args:
        pipe: with its weights, on the device.
        name: the pipeline's name for the denoiser.
        inputs: what the pipeline is called with, beside a prompt.
        groups: into how many parts the batch is divided.

    Raises:
        ConfigurationError: the pipeline cannot be called so.
    """
    denoiser = find_denoisers(pipe)[name]
    form, device = CallForm(denoiser), device_of(pipe, denoiser)
    found: dict[float, float] = {}

    def measure(call: Call) -> None:
        batch = form.batch(call)
        found[1.0] = _seconds(call, device)
        rule = next(iter(batch_rules(form.main(call), call.given)), None)
        for count in groups:
            part = Parts(batch, count).size / batch
            if rule is not None and part not in found:
                found[part] = _seconds(call.giving(rule.part(call.given, 0, count)), device)
        raise _CaughtError

    undo = intercept_call(denoiser, measure)
    try:
        call_pipeline(pipe, **call_arguments(pipe, inputs))
    except _CaughtError:
        return found
    finally:
        undo()
    raise ConfigurationError(f"{type(pipe).__name__} did not call its {name!r}")


def _seconds(call: Call, device: torch.device) -> float:
    taken = []
    for _ in range(_REPEATS + 1):
        _finish(device)
        begin = time.perf_counter()
        call.with_own_containers()()
        _finish(device)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[1:])


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
