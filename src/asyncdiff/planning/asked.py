"""What a plan is asked for: checked here, before anything is read or any library imported that a plan is made with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from asyncdiff.errors import ConfigurationError
from asyncdiff.model_files import check_model, parts_of
from asyncdiff.plan.numbers import check_number, check_whole_number, shown
from asyncdiff.planning.device import DEVICES
from asyncdiff.planning.links import read_link
from asyncdiff.planning.quantity import read_bytes

if TYPE_CHECKING:
    from asyncdiff.planning.planner import Plan

_MOST_DEVICES = 64
_NAMES = ("float32", "float16", "bfloat16")  # of number formats


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
) -> "Plan":
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
    from asyncdiff.planning.planner import plan_for

    if not isinstance(inputs or {}, Mapping) or "batch" in (inputs or {}):
        raise ConfigurationError(
            "inputs are what the pipeline's call takes, by name, such as {'height': 512}; how many prompts there are, "
            f"batch says; not {shown(inputs)}"
        )
    request = Request(model, devices, memory, link, steps, warmup, batch, device, tflops, dtype, measure, allow_pickle)
    return plan_for(request, inputs or {})
