"""`asyncdiff plan` and `asyncdiff.plan`: what is told, and how it ends."""

import importlib
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from typer.testing import CliRunner, Result

import asyncdiff
from asyncdiff.commands.app import app
from asyncdiff.loading import load_pipeline
from asyncdiff.model_files import DEMO_MODELS
from tests.bad_input import good_folder
from tests.tiny.narrow import save_narrow_demos

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def a_wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set by its property, a width would stay: undoing sets what was measured before.
    monkeypatch.setattr("asyncdiff.commands.terminal.stdout._width", 200)


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small transformer's pipeline."""
    folder = tmp_path_factory.mktemp("models")
    save_narrow_demos(folder)
    return str(folder / "dit")


def planned(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", *arguments])


def as_data(*arguments: str) -> dict[str, Any]:
    done = planned(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("model", [*(pytest.param(name, marks=pytest.mark.whole) for name in DEMO_MODELS), "narrow"])
def test_candidates_chosen_and_reason(model: str, dit: str) -> None:
    model = dit if model == "narrow" else model
    found = as_data("--model", model, "--devices", "2", "--device", "cpu")
    ways = [candidate["way"] for candidate in found["candidates"]]
    for guidance, components, shard in ((1, 1, False), (2, 1, False), (1, 2, False), (1, 2, True)):
        assert {"guidance": guidance, "components": components, "shard": shard}.items() in [
            {name: way[name] for name in ("guidance", "components", "shard")}.items() for way in ways
        ]
    assert found["call"] == "modelled"
    assert found["chosen"] in found["candidates"] and found["chosen"]["is_best"]
    assert "demo models" in found["reason"] or "ordinary ones" in found["reason"]
    for candidate in found["candidates"]:
        parts = candidate["memory"]
        assert parts["total"] == sum(size for name, size in parts.items() if name != "total")
        assert candidate["fits"] and candidate["devices"] <= 2
    # No weights are read, but they are counted.
    pipe: Any = load_pipeline(model, None, torch.device("cpu"))
    denoiser = pipe.unet if model == "demo-unet" else pipe.transformer
    plain = found["candidates"][0]["memory"]
    assert plain["shared_weights"] == sum(weight.nbytes for weight in denoiser.parameters())
    assert plain["own_weights"] == 0


def test_a_folder_of_configurations_alone(tmp_path: Path) -> None:
    folder = good_folder(tmp_path / "pipeline")
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    found = as_data("--model", str(folder), "--devices", "4", "--batch", "2", "--steps", "20", "--link", "1GB/s")
    assert (found["pictures"], found["steps"], found["link"]["bandwidth"]) == (2, 20, 1e9)
    assert max(candidate["devices"] for candidate in found["candidates"]) == 4


def test_the_table(tmp_path: Path) -> None:
    done = planned("--devices", "2")
    assert done.exit_code == 0, done.stderr
    for words in ("(modelled)", "components=2", "exact", "guidance=2", "other modules", "indication", "AsyncDiff(pipe"):
        assert words in done.stdout


def test_at_80_columns_nothing_is_cut(dit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncdiff.commands.terminal.stdout._width", 80)
    lines = planned("--model", dit, "--devices", "4", "--memory", "1MB").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    settings = {setting for line in lines for setting in re.findall(r"\w+=\w+", line)}
    assert settings > {"guidance=2", "components=4", "stride=2", "bridge=4", "tokens=4", "fresh=False", "shard=True"}
    rows = [line for line in lines if re.search(r"\d\.\d\dx ", line)]
    assert rows and all(re.search(r"B +(exact|\d\d\.\d · \d\d\.\d|not) *$", line) for line in rows)


def test_why_no_way_divides_tokens(tmp_path: Path) -> None:
    save_narrow_demos(tmp_path)
    done = planned("--model", str(tmp_path / "unet"), "--devices", "2")
    assert "No way divides tokens: there are convolutions between its attentions." in done.stdout


@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        ("--height 30", "makes no pictures of height 30; height 32 would do"),
        ("--height 30 --width 70", "makes no pictures of height 30 and width 70; height 32 and width 64 would do"),
    ],
)
def test_a_size_that_the_model_cannot_have(size: str, sentence: str, dit: str) -> None:
    done = planned("--model", dit, "--devices", "1", *size.split())
    assert done.exit_code == 2
    assert f"CogView4Pipeline {sentence}" in " ".join(done.stderr.split())


def test_what_does_not_fit_says_by_how_much() -> None:
    done = planned("--devices", "2", "--memory", "1MB")
    assert done.exit_code == 2
    assert re.search(r"^ +\+[\d.]+ MiB *$", done.stdout, re.MULTILINE)
    assert "Nothing fits: components=2, shard=True needs the least" in done.stderr
    assert "more than there is" in done.stderr


@pytest.mark.whole
def test_where_the_whole_does_not_fit_a_part_of_the_weights_does(dit: str) -> None:
    whole = as_data("--model", dit, "--devices", "2")["candidates"][0]["memory"]["total"]
    found = as_data("--model", dit, "--devices", "2", "--memory", f"{whole - 10**5}B")
    assert found["chosen"]["way"]["shard"]
    assert [candidate["fits"] for candidate in found["candidates"]] == [
        candidate["way"]["shard"] for candidate in found["candidates"]
    ]


def test_the_timeline(dit: str, tmp_path: Path) -> None:
    out = tmp_path / "plan.svg"
    whole = as_data("--model", dit, "--devices", "1")["candidates"][0]["memory"]["total"]
    memory = ("--memory", f"{whole - 10**5}B")
    done = planned("--model", dit, "--devices", "2", *memory, "--timeline", str(out))
    assert done.exit_code == 0, done.stderr
    picture = ElementTree.parse(out).getroot()
    said = [title.text or "" for title in picture.iter(f"{SVG}title")]
    for words in ("computing, step 0 (chained)", "sending, step 5 (round)", "waiting, step 0 (chained)"):
        assert any(text.startswith(words) for text in said)
    rows = [text.text for text in picture.iter(f"{SVG}text")]
    assert rows.count("device 0") == rows.count("device 1") == 2


@pytest.mark.parametrize("model", ["dit", pytest.param("unet", marks=pytest.mark.whole)])
def test_measured_on_this_machine(model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("asyncdiff.planning.measuring._REPEATS", 1)  # times are not judged here
    monkeypatch.setattr("asyncdiff.planning.measuring._SECONDS", 0.0)
    save_narrow_demos(tmp_path)
    found = asyncdiff.plan(str(tmp_path / model), 2, measure=True, steps=10)
    assert found.is_measured and found.call > 0
    assert any(candidate.way.tokens == 2 for candidate in found.candidates) == (model == "dit")
    assert found.chosen is not None and found.timeline is not None
    assert found.timeline.seconds == pytest.approx(found.chosen.seconds)


def test_tokens_of_a_transformer(dit: str) -> None:
    """Exact over a link that carries the keys; over a slow one they are the slowest way."""
    asked = ("--model", dit, "--devices", "4", "--device", "cpu", "--link")
    fast, slow = (as_data(*asked, link)["candidates"] for link in ("1000GB/s", "1MB/s"))
    ways = [candidate["way"] for candidate in fast]
    place = next(
        number for number, way in enumerate(ways) if (way["tokens"], way["fresh"], way["bridge"]) == (4, True, 1)
    )
    assert fast[place]["is_exact"]
    assert fast[place]["devices"] == 4 and fast[place]["speedup"] > 2
    assert slow[place]["speedup"] < 1
    assert any((way["guidance"], way["tokens"], way["bridge"]) == (2, 2, 2) for way in ways)
    assert not any(way["bits"] for way in ways), "only where that is faster"
    few = [candidate for candidate in slow if candidate["way"]["bits"]]
    assert {way["bits"] for way in (candidate["way"] for candidate in few)} == {8}
    for candidate in few:
        whole = next(one for one in slow if one["way"] == candidate["way"] | {"bits": None})
        assert candidate["speedup"] > 1.5 * whole["speedup"]
        assert not candidate["is_exact"] and candidate["indication"] is None


def test_from_python(dit: str) -> None:
    found = asyncdiff.plan(dit, 2, memory=10**10, dtype="bfloat16", inputs={"height": 32, "width": 32})
    assert found.chosen is not None and found.denoiser == "CogView4Transformer2DModel"
    leaf_bytes = 2 * 12 * 4 * 4 * torch.bfloat16.itemsize
    halves = next(one for one in found.candidates if str(one.way) == "guidance=2, components=1")
    assert halves.bytes_per_picture == 50 * leaf_bytes


def test_prompts_in_the_inputs_are_counted(dit: str) -> None:
    inputs = {"prompt": ["a cat", "a dog", "a fox"], "num_images_per_prompt": 2}
    found = asyncdiff.plan(dit, 1, device="cpu", inputs=inputs)
    assert found.pictures == 6
    with pytest.raises(asyncdiff.AsyncDiffError, match="batch says 2 prompts, and the inputs have 3: leave batch out"):
        asyncdiff.plan(dit, 1, batch=2, inputs=inputs)


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"inputs": [1]}, "inputs are what the pipeline's call takes"),
        ({"inputs": {"batch": 2}}, "how many prompts there are, batch says"),
        ({"devices": 0}, "devices must be a whole number of at least 1, not 0"),
        ({"devices": True}, "devices must be a whole number of at least 1, not True"),
        ({"devices": 65}, "devices must be a whole number of at most 64, not 65"),
        ({"steps": 1.5}, "steps must be a whole number of at least 1, not 1.5"),
        ({"batch": "2"}, "batch must be a whole number of at least 1, not '2'"),
        ({"memory": -1}, "memory must be a number above 0, not -1"),
        ({"memory": float("nan")}, "memory must be a number above 0, not nan"),
        ({"memory": "much"}, "memory must be an amount above 0 with its unit, 24GB or 24GiB say, not 'much'"),
        ({"link": 12e9}, "link must be written as text, not 12000000000.0"),
        ({"link": "fast"}, "link must be nvlink, pcie4, pcie3, ethernet or a bandwidth such as 12GB/s"),
        ({"device": []}, "device must be gpu or cpu, not []"),
        ({"dtype": "int8"}, "dtype must be float32, float16, bfloat16, not 'int8'"),
        ({"tflops": 0}, "tflops must be a number above 0, not 0"),
        ({"measure": True, "tflops": 2}, "tflops says what is modelled, and measure times this machine; give one"),
        ({"model": None}, "model must be written as text, not None"),
        ({"model": "./missing"}, "there is no folder './missing', and a hub id is written owner/name"),
    ],
    ids=str,
)
def test_what_cannot_be_planned(told: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncdiff.planning.planner.plan_for", lambda *given: pytest.fail("work was begun"))
    with pytest.raises(asyncdiff.AsyncDiffError) as raised:
        asyncdiff.plan(**{"model": "demo-unet", "devices": 2, **told})
    assert sentence in str(raised.value) and "\n" not in str(raised.value)


def test_the_room_of_the_same_name_can_be_imported_from() -> None:
    assert importlib.import_module("asyncdiff.plan.mesh").Mesh and callable(asyncdiff.plan)
