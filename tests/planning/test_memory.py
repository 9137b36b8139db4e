"""Memory against such as was worked out by hand, and against what a real run takes."""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from asyncdiff import load_demo
from asyncdiff.call import Call, tensors_of
from asyncdiff.denoiser.footprint import peak_bytes
from asyncdiff.denoiser.rehearsal import rehearse
from asyncdiff.hooks import intercept_call
from asyncdiff.plan.method import FORECAST
from asyncdiff.plan.schedule import Schedule
from asyncdiff.planning.memory import heaviest
from asyncdiff.planning.subject import Share
from tests.planning.chain import LAYER, LAYERS, TENSOR, divided, subject

WHOLE = Share(1.0, 1)


class _Skip(nn.Module):
    """Keeps a wide tensor over two narrow ones."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.last = nn.Linear(10, 100), nn.Linear(100, 10), nn.Linear(10, 100)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        kept = self.wide(sample)
        narrow = self.narrow(kept)
        narrow = narrow.view(2, 5, 2).transpose(1, 2).reshape(2, 10)  # a copy
        return self.last(narrow).add_(kept)


def call_of(module: nn.Module, *shape: int) -> Call:
    return Call(module._call_impl, (torch.zeros(*shape), torch.tensor(1.0)), {})


def test_peak_by_hand() -> None:
    """What is kept, 2·100 numbers, is there until the end; beside it at most the last layer's input and output."""
    module = _Skip()
    assert peak_bytes(rehearse(module, call_of(module, 2, 10))) == 4 * (200 + 20 + 200)


def test_calls_that_are_not_made_give_their_result_alone() -> None:
    module = _Skip()
    trace = rehearse(module, call_of(module, 2, 10))
    last = next(number for number, call in enumerate(trace.calls) if call.name == "last")
    assert peak_bytes(trace, [last]) == 4 * (200 + 200), "its input is read by nobody else"
    every = [number for number, call in enumerate(trace.calls) if call.name]
    assert peak_bytes(trace, every) == 4 * (200 + 200)


def test_a_device_that_has_all_weights_by_hand() -> None:
    """Six versions, the one that comes and what is forecast; layer by layer an input and an output."""
    memory = heaviest(subject(), divided(Schedule(2, 1, 1), FORECAST), WHOLE)
    assert (memory.own_weights, memory.shared_weights) == (0, LAYERS * LAYER)
    assert memory.history == 8 * TENSOR
    assert memory.activations == 2 * TENSOR
    assert (memory.buffers, memory.others) == (10, 1750)
    assert memory.total == LAYERS * LAYER + 10 * TENSOR + 1760


@pytest.mark.parametrize("components", [2, 4])
def test_a_device_that_has_its_part_by_hand(components: int) -> None:
    memory = heaviest(subject(), divided(Schedule(components, 1, 1, chained=True), FORECAST), WHOLE)
    assert (memory.own_weights, memory.shared_weights) == (LAYERS * LAYER // components, 0)


def test_other_parts_are_dealt_out_where_weights_are_divided() -> None:
    """Both devices have two layers; the text encoder is the first one's, the VAE the second one's, which forecasts."""
    memory = heaviest(subject(), divided(Schedule(2, 1, 1, chained=True), FORECAST), WHOLE)
    assert (memory.history, memory.others) == (8 * TENSOR, 750)


def test_half_a_batch_takes_half_of_what_grows_with_it() -> None:
    division = divided(Schedule(2, 1, 1), FORECAST)
    whole, half = heaviest(subject(), division, WHOLE), heaviest(subject(), division, Share(0.5, 1))
    assert (half.history, half.activations) == (whole.history / 2, whole.activations / 2)
    assert half.shared_weights == whole.shared_weights


def test_two_streams_have_a_history_each() -> None:
    division = divided(Schedule(2, 1, 1), FORECAST)
    assert heaviest(subject(), division, Share(1.0, 2)).history == 16 * TENSOR


class _Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the memory that is really there while a call runs, but for what was there before."""

    def __init__(self, before: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kept = [tensor.untyped_storage() for tensor in before]
        self._sizes = {storage._cdata: 0 for storage in self._kept}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_of(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._sizes:
                self._sizes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self._sizes.pop, storage._cdata)
        self.peak = max(self.peak, sum(self._sizes.values()))
        return result


@pytest.mark.parametrize(("name", "part"), [("unet", "unet"), ("dit", "transformer")])
def test_what_is_counted_is_what_a_real_call_takes(name: Any, part: str) -> None:
    """Within a fifth: how long Python holds what it does not need is not counted."""
    pipe = load_demo(name)
    pipe.set_progress_bar_config(disable=True)
    denoiser = getattr(pipe, part)
    seen: list[tuple[int, int]] = []

    def look(call: Call) -> Any:
        living = _Living([*call.tensors, *denoiser.parameters(), *denoiser.buffers()])
        with living:
            result = call()
        seen.append((peak_bytes(rehearse(denoiser, call, 2)), living.peak))
        return result

    undo = intercept_call(denoiser, look)
    pipe("rocket", num_inference_steps=1, output_type="latent")
    undo()
    counted, real = seen[0]
    assert 0.8 * real <= counted <= 1.05 * real
