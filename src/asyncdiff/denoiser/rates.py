"""How a kind of device weighs bytes, arithmetic and started operators against each other.

Constants, not measurements: the same model must be divided in the same way in every run.
"""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class DeviceRates(NamedTuple):
    """In floating-point operations, roughly.

    Attributes:
        per_byte: done in the time in which the device moves one byte.
        per_operator: done in the time in which the host starts one operator; 0 where the device does not run ahead.
    """

    per_byte: float
    per_operator: float


CPU = DeviceRates(8.0, 0.0)
# The host of a large GPU takes some 15 microseconds for an operator of a denoiser, Python's part included; the virtual
# machine of benchmarks/results/gpu-h200.json took twice that.
ELSEWHERE = DeviceRates(100.0, 5e9)


def rates_of(device: "torch.device") -> DeviceRates:
    """Those of a device's kind."""
    return CPU if device.type == "cpu" else ELSEWHERE
