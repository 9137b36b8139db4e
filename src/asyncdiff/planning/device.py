"""How fast a kind of device computes what is counted of a call. Pure."""

from dataclasses import dataclass

from asyncdiff.denoiser.rates import CPU, ELSEWHERE, DeviceRates


@dataclass(frozen=True)
class Device:
    """A kind of device.

    Attributes:
        name: of the kind.
        rates: what its bytes and started operators weigh in operations.
        speed: operations per second that are reached in a denoiser, not those printed on it.
    """

    name: str
    rates: DeviceRates
    speed: float


# An A100 with half of its 312 TFLOPS reached; a thread of a server's processor.
DEVICES = {device.name: device for device in (Device("gpu", ELSEWHERE, 150e12), Device("cpu", CPU, 40e9))}
