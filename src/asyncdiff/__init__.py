"""asyncdiff: asynchronous denoising for any Hugging Face diffusers pipeline."""

from asyncdiff.api import AsyncDiff
from asyncdiff.demo import load_demo
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
from asyncdiff.exchange.world import local_device
from asyncdiff.loading import load
from asyncdiff.plan.method import Method

# The name of a room too (`asyncdiff.plan`), whose modules are imported by theirs, as in the line above.
from asyncdiff.planning.planner import Plan, plan
from asyncdiff.report import DenoiserReport, Report
from asyncdiff.request.words import Request
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
