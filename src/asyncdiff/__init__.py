"""asyncdiff: asynchronous denoising for any Hugging Face diffusers pipeline.

What computes is imported when it is first asked for: `asyncdiff --help` needs neither torch nor diffusers.
"""

import importlib
from typing import TYPE_CHECKING, Any

from asyncdiff.collecting import uncollected
from asyncdiff.errors import (
    AsyncDiffError,
    BusyError,
    ConfigurationError,
    ExchangeError,
    LabelError,
    ModelError,
    NotANumberError,
    OtherUnitsError,
    ProcessError,
    RankMismatchError,
    ShapeChangedError,
    SplitError,
    StoppedError,
    TraceError,
)
from asyncdiff.plan.method import Method

# The name of a room too (`asyncdiff.plan`), whose modules are imported by theirs, as in the line above.
from asyncdiff.planning.asked import plan
from asyncdiff.report import DenoiserReport, Report
from asyncdiff.request.words import Request

if TYPE_CHECKING:
    from asyncdiff.api import AsyncDiff
    from asyncdiff.demo import load_demo
    from asyncdiff.exchange.world import local_device
    from asyncdiff.loading import load
    from asyncdiff.planning.planner import Plan
    from asyncdiff.workers.workers import Workers

__all__ = [
    "AsyncDiff",
    "AsyncDiffError",
    "BusyError",
    "ConfigurationError",
    "DenoiserReport",
    "ExchangeError",
    "LabelError",
    "Method",
    "ModelError",
    "NotANumberError",
    "OtherUnitsError",
    "Plan",
    "ProcessError",
    "RankMismatchError",
    "Report",
    "Request",
    "ShapeChangedError",
    "SplitError",
    "StoppedError",
    "TraceError",
    "Workers",
    "load",
    "load_demo",
    "local_device",
    "plan",
]

# Where those names are from that are imported when they are asked for.
_LATER = {
    "AsyncDiff": "asyncdiff.api",
    "Plan": "asyncdiff.planning.planner",
    "Workers": "asyncdiff.workers.workers",
    "load": "asyncdiff.loading",
    "load_demo": "asyncdiff.demo",
    "local_device": "asyncdiff.exchange.world",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with uncollected():
        value = globals()[name] = getattr(importlib.import_module(_LATER[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
