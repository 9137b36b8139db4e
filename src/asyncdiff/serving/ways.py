"""How a replica's devices may be used for one request: what a page offers, of all that settings could say. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from asyncdiff.errors import AsyncDiffError
from asyncdiff.serving.wire import SETTINGS, Service
from asyncdiff.settings import Settings
from asyncdiff.workers.fitting import settings_for

# What says how devices are used. A way sets all of them, so that the service's own do not mix with them.
_OF_DEVICES = ("components", "stride", "guidance", "tokens", "split", "bridge", "target_speedup")
_BRIDGE = 2
_BRANCHES = 2  # of classifier-free guidance


@dataclass(frozen=True)
class Way:
    """One way to use the devices.

    Attributes:
        name: for programs.
        title: for people, in a few words.
        meaning: what the devices then do.
        settings: what the field `asyncdiff` of a request then holds.
    """

    name: str
    title: str
    meaning: str
    settings: Mapping[str, Any]


def ways_of(service: Service) -> tuple[Way, ...]:
    """Those that the service accepts with its number of devices; the first is its own."""
    own = ", ".join(f"{name}={value}" for name, value in service.settings.items())
    first = Way("service", "as the service has it", f"with {own}" if own else "asyncdiff chooses by the first call", {})
    return (first, *(way for way in _candidates(service.devices) if _is_accepted(way.settings, service)))


def sequential_way(service: Service) -> Mapping[str, Any] | None:
    """Settings with which all steps are computed in full, and each device computes the whole of every step.

    The picture is the ordinary pipeline's, and a step takes what it takes on one device. None where the service does
    not accept that: with `shard`, no device has all of the weights.
    """
    settings = {**_defaults(SETTINGS), "components": service.devices, "guidance": 1, "warmup": service.limits.steps}
    return settings if _is_accepted(settings, service) else None


def _candidates(devices: int) -> Iterator[Way]:
    for name, title, meaning, own in _divisions(devices):
        settings = {**_defaults(_OF_DEVICES), **own}
        yield Way(name, title, meaning, settings)
        bridged = f"{meaning}; after the warm-up every second step is forecast"
        yield Way(f"{name}-bridge", f"{title}, bridged", bridged, {**settings, "bridge": _BRIDGE})


def _divisions(devices: int) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    if devices == 1:
        yield "one", "one device", "the device computes all steps", {"components": 1}
        return
    if devices % _BRANCHES == 0:
        parts = devices // _BRANCHES
        title = "guidance" if parts == 1 else f"guidance and {parts} components"
        meaning = "each device computes a guidance branch, which changes nothing but rounding"
        if parts > 1:
            meaning = f"{parts} devices compute each guidance branch, a part of the denoiser each"
        yield "guidance", title, meaning, {"guidance": _BRANCHES, "components": parts}
    meaning = f"each device computes one of {devices} parts of the denoiser"
    yield "components", f"{devices} components", meaning, {"guidance": 1, "components": devices}


def _is_accepted(settings: Mapping[str, Any], service: Service) -> bool:
    if service.settings.get("shard"):
        return False  # the processes have a part of the weights each, and keep to it
    try:
        settings_for(service.devices, {**service.settings, **settings})
    except AsyncDiffError:
        return False
    return True


def _defaults(names: tuple[str, ...]) -> dict[str, Any]:
    default = Settings()
    return {name: getattr(default, name) for name in names}
