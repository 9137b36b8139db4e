"""The machine that something was measured on."""

import platform
from pathlib import Path

import torch


def cpu_model() -> str:
    """The processor's name, as well as the system tells it."""
    description = Path("/proc/cpuinfo")
    if description.exists():
        for line in description.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpu_models() -> tuple[str, ...]:
    """The name of every GPU that torch can use."""
    return tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
