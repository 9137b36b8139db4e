"""The results as a file that is whole after every stage, and as tables. Times in milliseconds, memory in GiB."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

UNKNOWN = "–"


class Results:
    """A JSON file that several processes write one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any]:
        """All of it; nothing where there is no file."""
        found: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        return found

    def put(self, places: Sequence[str], value: Any) -> None:
        """Write a value at its place: the names of what it lies in, then its own."""
        content = self.read()
        inner = content
        for name in places[:-1]:
            inner = inner.setdefault(name, {})
        inner[places[-1]] = _plain(value)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(new, self.path)


def _plain(value: Any) -> Any:
    """JSON has no word for what is not a number."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show(content: Mapping[str, Any]) -> str:
    """The tables."""
    models: Mapping[str, Any] = content.get("models", {})
    parts = [_table(_HEAD, [_row(name, model) for name, model in models.items()])]
    parts.append("times in ms, N: the slowest rank's round; kernels: plain call/attached with N=1/the most of N=4")
    parts.append(_table(_MODELLED_HEAD, [row for name, model in models.items() for row in _modelled(name, model)]))
    parts.append("MODELLED, not measured: speed-up over the plain generation on one GPU (benchmarks/gpu/modelled.py)")
    for name, model in models.items():
        parts += [f"{name}, {stage}: {text}" for stage, text in model.get("failures", {}).items()]
    if "ranks" in content:
        parts.append(f"two ranks on one device against one process: {content['ranks']}")
    if "choice" in content:
        parts.append(f"two lines on two ranks on one device: {content['choice']}")
    return "\n".join(parts)


_HEAD = (
    *("model", "plain", "compiled", "N=1 cost %", "N=2", "N=3", "N=4", "kernels", "host N=4", "binds plain/N=1/N=4"),
    "peak GiB plain/N=4",
)
_MODELLED_HEAD = ("model", "devices", "way", "NVLink", "PCIe 4")


def _row(name: str, model: Mapping[str, Any]) -> list[str]:
    four = _at(model, "components=4", "ranks") or []
    timings = [rank["timing"] for rank in four]
    slowest: Mapping[str, Any] = max(timings, key=lambda timing: timing["device"], default={})
    peak = max((timing["peak_bytes"] or 0 for timing in timings), default=0)
    binds = (
        _at(model, "plain", "timing", "binds"),
        _at(model, "components=1", "timing", "binds"),
        slowest.get("binds"),
    )
    return [
        name,
        _number(_at(model, "plain", "timing", "device")),
        _number(_at(model, "compiled", "timing", "device")),
        _number(_at(model, "components=1", "cost_percent")),
        *(_number(_at(model, f"components={count}", "round")) for count in (2, 3, 4)),
        _kernels(model),
        _number(max((timing["host"] for timing in timings), default=None)),
        "/".join(bound or UNKNOWN for bound in binds),
        f"{_gib(_at(model, 'plain', 'timing', 'peak_bytes'))}/{_gib(peak)}",
    ]


def _kernels(model: Mapping[str, Any]) -> str:
    """As the profiler counted; where it did not, tensor operators, marked so."""
    counted = model.get("kernels", {})
    if counted.get("plain"):
        one, four = counted.get("components=1", [None]), counted.get("components=4", [None])
        return "/".join(str(max((n for n in found if n), default=UNKNOWN)) for found in ([counted["plain"]], one, four))
    ranks = _at(model, "components=4", "ranks") or []
    most = max((rank["timing"]["operators"] for rank in ranks), default=None)
    plain, one = (_at(model, stage, "timing", "operators") for stage in ("plain", "components=1"))
    return "/".join(UNKNOWN if count is None else str(count) for count in (plain, one, most)) + " op."


def _modelled(name: str, model: Mapping[str, Any]) -> list[list[str]]:
    found: dict[tuple[int, str], dict[str, float]] = {}
    for one in model.get("modelled", []):
        found.setdefault((one["devices"], one["way"]), {})[one["link"]] = one["speedup"]
    return [
        [name, str(devices), way, *(f"{speedups[link]:.2f}" for link in _MODELLED_HEAD[3:])]
        for (devices, way), speedups in sorted(found.items())
    ]


def _at(content: Any, *places: str) -> Any:
    for place in places:
        content = content.get(place) if isinstance(content, Mapping) else None
    return content


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1f}"


def _gib(value: int | None) -> str:
    return f"{value / 2**30:.1f}" if value else UNKNOWN


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    return "\n".join([lines[0], "-+-".join("-" * width for width in widths), *lines[1:]])
