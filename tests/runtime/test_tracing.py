"""A trace holds what the report counts, changes no picture, and leaves nothing behind."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from asyncdiff import AsyncDiff, ConfigurationError, StoppedError
from tests.processes import run_ranks
from tests.tiny.narrow import load_narrow_demo

STEPS = 6
SETTINGS: dict[str, Any] = dict(components=2, warmup=2, cooldown=1, guidance=1)


def draw(pipe: Any, **extra: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    picture: torch.Tensor = pipe("rocket", num_inference_steps=STEPS, output_type="pt", generator=generator, **extra)[0]
    return picture


def entries(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    return found


def spans(found: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    return [each for each in found if each["ph"] == "X" and each["cat"] in kinds]


def within(inner: dict[str, Any], outer: dict[str, Any]) -> bool:
    return bool(outer["ts"] - 1 <= inner["ts"] and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"] + 1)


def _traced(rank: int, path: Path) -> dict[str, Any]:
    pipe: Any = load_narrow_demo()
    with AsyncDiff(pipe, **SETTINGS, executor="distributed", timeout=60) as attached:
        before = draw(pipe)
        with attached.trace(path):
            same = torch.equal(draw(pipe), before)
        report = attached.report()
        return {
            "same": same,
            "sent": report.bytes_sent,
            "units run": report.denoisers[0].counts.units_run,
        }


def test_two_ranks_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    told = run_ranks(2, _traced, path)
    assert [each.name for each in tmp_path.iterdir()] == ["trace.json"]
    found = entries(path)
    for rank, counted in enumerate(told):
        assert counted["same"]
        own = [each for each in found if each["pid"] == rank]
        steps = spans(own, "step")
        assert len(steps) == STEPS
        assert [step["name"] for step in steps[:3]] == ["step 0, full", "step 1, full", "step 2, round"]
        rounds = [step for step in steps if "round" in step["name"]]
        units = spans(own, "unit")
        assert sum(within(unit, step) for unit in units for step in rounds) == counted["units run"]
        assert spans(own, "stand-in")
        sent = [int(each["args"]["sent"].removesuffix(" B")) for each in own if each["ph"] == "b"]
        assert sum(sent) == counted["sent"] > 0
        waits = {wait["name"] for wait in spans(own, "waiting")}
        assert any("live edges" in name for name in waits)
        assert any("noise prediction" in name for name in waits)
        parts = {part["name"] for part in spans(own, "part")}
        assert {"text_encoder", "scheduler.step", "vae.decode"} <= parts
    begins = [min(each["ts"] for each in spans(found, "step") if each["pid"] == rank) for rank in (0, 1)]
    assert abs(begins[0] - begins[1]) < 10e6  # both clocks count from the same moment


def test_spans_of_a_row_lie_inside_of_each_other(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    pipe: Any = load_narrow_demo()
    with AsyncDiff(pipe, **SETTINGS, executor="local") as attached, attached.trace(path):
        draw(pipe)
    found = sorted((each for each in entries(path) if each["ph"] == "X"), key=lambda each: (each["ts"], -each["dur"]))
    open_spans: list[dict[str, Any]] = []
    for each in found:
        while open_spans and open_spans[-1]["ts"] + open_spans[-1]["dur"] <= each["ts"]:
            open_spans.pop()
        assert all(within(each, outer) for outer in open_spans)
        open_spans.append(each)


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    pipe: Any = load_narrow_demo()
    scheduler, vae = dict(vars(pipe.scheduler)), dict(vars(pipe.vae))
    with AsyncDiff(pipe, **SETTINGS, executor="local") as attached:
        plain = draw(pipe)
        with attached.trace(tmp_path / "trace.json"):
            assert torch.equal(draw(pipe), plain)
        assert torch.equal(draw(pipe), plain)
        with attached.trace(tmp_path / "other.json"):
            draw(pipe)
            attached.disable()
    assert len(spans(entries(tmp_path / "other.json"), "step")) == STEPS
    assert vars(pipe.scheduler).keys() == scheduler.keys()
    assert vars(pipe.vae).keys() == vae.keys()
    assert not pipe.text_encoder._forward_hooks and not pipe.text_encoder._forward_pre_hooks


def _failing(rank: int, path: Path) -> str:
    def stop(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 3 and rank == 1:
            raise ValueError("enough")
        return tensors

    pipe: Any = load_narrow_demo()
    with AsyncDiff(pipe, **SETTINGS, executor="distributed", timeout=20) as attached:
        try:
            with attached.trace(path):
                draw(pipe, callback_on_step_end=stop)
        except (ValueError, StoppedError) as error:
            return type(error).__name__
    return ""


def test_each_rank_keeps_its_own_where_a_generation_fails(tmp_path: Path) -> None:
    assert run_ranks(2, _failing, tmp_path / "trace.json") == ["StoppedError", "ValueError"]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["trace.rank0.json", "trace.rank1.json"]
    for rank in (0, 1):
        own = entries(tmp_path / f"trace.rank{rank}.json")
        assert {each["pid"] for each in own} == {rank}
        assert len(spans(own, "step")) >= 4


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    pipe: Any = load_narrow_demo()
    with AsyncDiff(pipe, **SETTINGS, executor="local") as attached:
        with pytest.raises(ConfigurationError, match="does not exist"), attached.trace(tmp_path / "no" / "trace.json"):
            pass
        with attached.trace(tmp_path / "one.json"):
            with pytest.raises(ConfigurationError, match="already"), attached.trace(tmp_path / "two.json"):
                pass
            draw(pipe)
        assert [each.name for each in tmp_path.iterdir()] == ["one.json"]
