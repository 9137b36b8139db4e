"""asyncdiff: asynchronous denoising for any Hugging Face diffusers pipeline."""

from asyncdiff.api import AsyncDiff
from asyncdiff.demo import load_demo
from asyncdiff.errors import (
    AsyncDiffError,
    ConfigurationError,
    ExchangeError,
    LabelError,
    ModelError,
    OtherUnitsError,
    RankMismatchError,
    ShapeChangedError,
    SplitError,
    TraceError,
)
from asyncdiff.exchange.world import local_device
from asyncdiff.plan.method import Method
from asyncdiff.report import DenoiserReport, Report

__all__ = [
    "AsyncDiff",
    "AsyncDiffError",
    "ConfigurationError",
    "DenoiserReport",
    "ExchangeError",
    "LabelError",
    "Method",
    "ModelError",
    "OtherUnitsError",
    "RankMismatchError",
    "Report",
    "ShapeChangedError",
    "SplitError",
    "TraceError",
    "load_demo",
    "local_device",
]
