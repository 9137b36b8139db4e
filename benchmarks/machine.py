"""The machine that a benchmark ran on."""

import datetime
import os
import platform
from typing import Any

import diffusers
import torch

from asyncdiff.evaluation.machine import cpu_model


def machine() -> dict[str, Any]:
    """The machine and the versions."""
    return {
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads_per_process": torch.get_num_threads(),
        "load_average_at_end": os.getloadavg(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
