"""diffusers' own tests with AsyncDiff attached: what is seen of a test, what it is judged to say, what is counted."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image
from transformers import AutoTokenizer, CLIPTokenizer, T5EncoderModel

from benchmarks.diffusers_tests import attach
from benchmarks.diffusers_tests.__main__ import main
from benchmarks.diffusers_tests.digest import Digest
from benchmarks.diffusers_tests.records import Failure, PipeCall, Record, by_test, from_line, to_line
from benchmarks.diffusers_tests.stand_ins import make_hub
from benchmarks.diffusers_tests.summary import differing, summarise, table
from benchmarks.diffusers_tests.verdict import (
    CHECK,
    CRASHED,
    DIFFERS,
    FAILS,
    FORM,
    HUB,
    IDLE,
    INFINITE,
    MISSING,
    NO_ROUND,
    NUMBERS,
    RAISED,
    REFUSED,
    ROUNDS,
    SAME,
    SKIPPED,
    UNSTEADY,
    USABLE,
    judge_full,
    judge_plain,
    judge_rounds,
)
from tests.tiny import PIPELINES, run

ROOT = Path(__file__).parents[2]

CALL = PipeCall("FluxPipeline", form="Tensor(float32, 1x3x8x8)", values="a")
PLAIN = Record("test_x", "passed", (CALL, CALL))
WRONG = Failure(("AssertionError", "Exception"), "not close", origin="tests")
REFUSAL = Failure(("ConfigurationError", "AsyncDiffError", "ValueError", "Exception"), "a cache", origin="asyncdiff")


def failed(failure: Failure, *calls: PipeCall, outcome: str = "failed") -> Record:
    return Record("test_x", outcome, calls or PLAIN.calls, failure)


def passed(**changed: Any) -> Record:
    """The second call of two is another."""
    return replace(PLAIN, calls=(CALL, replace(CALL, **changed)))


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (PLAIN, USABLE),
        (Record("test_x", "passed"), IDLE),
        (Record("test_x", "skipped", skipped="needs a GPU"), SKIPPED),
        (failed(WRONG), FAILS),
        (failed(Failure(("OSError",), "We couldn't connect to 'https://huggingface.co' to load")), HUB),
        (failed(Failure(("OSError",), "no file", causes=("LocalEntryNotFoundError",))), HUB),
        (failed(Failure(("ConnectionError",), "no network while diffusers' tests are run")), HUB),
        (failed(Failure(("Crash",), "worker gw0 crashed"), outcome="crashed"), CRASHED),
    ],
)
def test_plain(record: Record, kind: str) -> None:
    assert judge_plain(record).kind == kind


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (PLAIN, SAME),
        (passed(values="b"), DIFFERS),
        (passed(form="Tensor(float32, 2x3x8x8)"), DIFFERS),
        (replace(PLAIN, calls=(CALL,)), DIFFERS),
        (passed(refused="ConfigurationError: no denoiser"), REFUSED),
        (passed(refused="ConfigurationError: no denoiser", values="b"), DIFFERS),
        (failed(REFUSAL), REFUSED),
        (failed(Failure(("ExchangeError", "AsyncDiffError"), "too late", origin="asyncdiff")), RAISED),
        (failed(WRONG), CHECK),
        (failed(replace(WRONG, origin="diffusers")), RAISED),
        (failed(Failure(("KeyError", "LookupError", "Exception"), "'x'", origin="tests")), RAISED),
        (Record("test_x", "skipped", skipped="asyncdiff is there"), MISSING),
        (failed(Failure(("Crash",), "worker gw0 crashed"), outcome="crashed"), CRASHED),
        (None, MISSING),
    ],
)
def test_all_steps_in_full(record: Record | None, kind: str) -> None:
    """Any other number, form or call of a pipeline counts, whatever the test itself thinks of it."""
    assert judge_full(PLAIN, record).kind == kind


def test_numbers_of_a_test_that_draws_as_it_likes() -> None:
    """Only where two plain runs differ as well."""
    assert judge_full(PLAIN, passed(values="b"), again=PLAIN).kind == DIFFERS
    assert judge_full(PLAIN, passed(values="b"), again=passed(values="c")).kind == UNSTEADY
    assert judge_full(PLAIN, PLAIN, again=passed(values="c")).kind == SAME


def test_the_reason_says_which_call() -> None:
    assert judge_full(PLAIN, passed(values="b")).reason == "call 2 of 2, FluxPipeline: not the same values"


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (passed(values="b", rounds=1), ROUNDS),
        (PLAIN, NO_ROUND),
        (passed(form="Tensor(float32, 2x3x8x8)", rounds=1), FORM),
        (passed(finite=False, rounds=1), INFINITE),
        (passed(refused="ConfigurationError: no denoiser", rounds=1), REFUSED),
        (failed(WRONG, CALL), NUMBERS),
        (failed(WRONG, replace(CALL, finite=False)), INFINITE),
        (failed(replace(WRONG, origin="asyncdiff"), CALL), RAISED),
        (failed(REFUSAL), REFUSED),
        (None, MISSING),
    ],
)
def test_rounds(record: Record | None, kind: str) -> None:
    """A check of the test's own may fail; an error, another form or a number that is none may not be."""
    assert judge_rounds(PLAIN, record).kind == kind


def test_what_is_not_finite_anyway() -> None:
    plain = passed(finite=False)
    assert judge_rounds(plain, passed(finite=False, rounds=1)).kind == ROUNDS


def test_a_record_is_read_as_it_was_written() -> None:
    for record in (PLAIN, failed(WRONG, CALL), Record("test_x", "skipped", skipped="no GPU\nnone at all")):
        line = to_line(record)
        assert line.count("\n") == 1
        assert from_line(line) == record


class Made(BaseOutput):
    """A result as pipelines have it."""

    images: Any
    text: str = ""


def test_digest() -> None:
    """One bit more or less is seen, in whatever it lies."""
    picture = np.zeros((2, 2, 3), np.uint8)
    plain = Made(images=[Image.fromarray(picture)], text="a")
    tensors = (torch.zeros(2, 3, dtype=torch.bfloat16), [np.zeros(3), None, 1.0])
    picture[1, 1, 2] = 1
    changed = Made(images=[Image.fromarray(picture)], text="a")
    nudged = (torch.zeros(2, 3, dtype=torch.bfloat16), [np.array([0, 0, 5e-324]), None, 1.0])
    for one, other in ((plain, changed), (tensors, nudged), (plain, Made(images=plain.images, text="b"))):
        assert Digest(one).form == Digest(other).form
        assert Digest(one).values == Digest(one).values != Digest(other).values
    assert Digest(plain).form == "Made(images: list[Image(RGB, 2x2)], text: str)"
    assert Digest(tensors).form == "tuple[Tensor(bfloat16, 2x3), list[ndarray(float64, 3), NoneType, float]]"
    assert Digest(tensors).finite
    assert not Digest((torch.tensor([1.0, float("nan")]),)).finite
    assert not Digest({"audio": [np.array(np.inf)]}).finite


@contextmanager
def watched(mode: str) -> Iterator[attach.Watch]:
    watch = attach.Watch(attach.MODES[mode])
    watch.begin()
    try:
        yield watch
    finally:
        watch.end()


@pytest.mark.filterwarnings("ignore:asyncdiff accelerates nothing")
def test_watch() -> None:
    """With all steps in full every number is the plain call's, with rounds not; the classes are left as they were."""
    tiny = PIPELINES["sd15"]
    pipe = tiny.build()
    method = type(pipe).__call__
    seen: dict[str, PipeCall] = {}
    for mode in attach.MODES:
        with watched(mode) as watch:
            run(pipe, tiny, num_inference_steps=2)
            (seen[mode],) = watch.calls
    assert type(pipe).__call__ is method
    assert seen["full"] == seen["plain"]
    assert seen["rounds"] == replace(seen["plain"], values=seen["rounds"].values, rounds=2)  # of PNDM's three
    assert seen["rounds"].values != seen["plain"].values


@pytest.mark.filterwarnings("ignore:asyncdiff accelerates nothing")
def test_watch_would_see_a_result_that_is_spoilt(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = PIPELINES["sd15"]
    pipe = tiny.build()

    class Spoilt(attach.AsyncDiff):
        """The denoiser's results are off by a millionth."""

        def _denoise(self, name: str, call: Any) -> Any:
            result = super()._denoise(name, call)
            return (result[0] * (1 + 1e-6),)

    with watched("plain") as watch:
        run(pipe, tiny, num_inference_steps=2)
        plain = Record("test_x", "passed", tuple(watch.calls))
    monkeypatch.setattr(attach, "AsyncDiff", Spoilt)
    with watched("full") as watch:
        run(pipe, tiny, num_inference_steps=2)
        assert judge_full(plain, Record("test_x", "passed", tuple(watch.calls))).kind == DIFFERS


class Painter(DiffusionPipeline):
    """Has no denoiser; its call may call another pipeline, or fail."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(scheduler=scheduler)

    def __call__(self, helper: "Painter | None" = None, steps: int = 1) -> Any:
        return (torch.full((2,), 1 / steps) if helper is None else helper()[0],)


def test_watch_of_pipelines_that_are_refused_or_fail() -> None:
    pipe = Painter(DDIMScheduler())
    with watched("full") as watch:
        assert pipe(helper=Painter(DDIMScheduler()))[0].sum() == 2
        with pytest.raises(ZeroDivisionError):
            pipe(steps=0)
    outer, broken = watch.calls  # the helper's is no call of the test
    assert outer.form == "tuple[Tensor(float32, 2)]"
    assert outer.refused == broken.refused
    assert outer.refused.startswith("ConfigurationError: Painter has no denoiser")
    assert broken.error == "ZeroDivisionError"


def test_stand_ins(tmp_path: Path) -> None:
    """They are loaded as the tests load them, and know no more tokens than the tests' encoders."""
    told = {"cache_dir": make_hub(tmp_path), "local_files_only": True}
    clip = CLIPTokenizer.from_pretrained("hf-internal-testing/tiny-random-clip", **told)
    prompt = "A painting of a squirrel"
    ids = clip(prompt, padding="max_length", max_length=77).input_ids
    assert (ids[0], ids[-1], len(ids)) == (0, 2, 77)
    assert len(clip) < 1000
    assert clip.decode(ids, skip_special_tokens=True) == prompt.lower()
    assert len(AutoTokenizer.from_pretrained("hf-internal-testing/dummy-gemma", **told)) == 8
    tokenizer = AutoTokenizer.from_pretrained("hf-internal-testing/tiny-random-t5", **told)
    encoder = T5EncoderModel.from_pretrained("hf-internal-testing/tiny-random-t5", **told)
    assert tokenizer.decode(tokenizer(prompt).input_ids, skip_special_tokens=True) == prompt
    assert encoder(torch.tensor([tokenizer(prompt).input_ids])).last_hidden_state.shape[-1] == 32


def named(name: str, record: Record) -> Record:
    return replace(record, test=f"tests/pipelines/{name}")


def test_summary() -> None:
    """Tests that fail without AsyncDiff count nowhere else; those that did not simply pass are told with the reason."""
    names = ("a::same", "a::other", "b::unsteady", "b::refused")
    plain = by_test([*(named(name, PLAIN) for name in names), named("c::broken", failed(WRONG))])
    full = by_test(
        [
            named("a::same", PLAIN),
            named("a::other", passed(values="b")),
            named("b::unsteady", passed(values="b")),
            named("b::refused", passed(refused="ConfigurationError: no denoiser")),
            named("c::broken", failed(WRONG)),
        ]
    )
    unclear = differing(plain, full)
    assert unclear == ["tests/pipelines/a::other", "tests/pipelines/b::unsteady"]
    again = by_test([named("a::other", PLAIN), named("b::unsteady", passed(values="c"))])
    summary = summarise(plain, {"full": full}, again)
    assert (summary["tests"], summary["usable"], summary["pipelines"], summary["calls"]) == (5, 4, 1, 8)
    assert summary["modes"]["plain"] == {
        "counts": {USABLE: 4, FAILS: 1},
        "reasons": {FAILS: {"AssertionError: not close": ["c::broken"]}},
    }
    assert summary["modes"]["full"] == {
        "counts": {SAME: 1, REFUSED: 1, UNSTEADY: 1, DIFFERS: 1},
        "reasons": {
            REFUSED: {"ConfigurationError: no denoiser": ["b::refused"]},
            UNSTEADY: {"": ["b::unsteady"]},
            DIFFERS: {"call 2 of 2, FluxPipeline: not the same values": ["a::other"]},
        },
    }
    assert f"      1  {DIFFERS}" in table(summary)


TESTS = """
import pytest, torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel, UNet2DConditionModel

def pipe():
    torch.manual_seed(0)
    blocks = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    unet = UNet2DModel(sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, **blocks)
    return DDIMPipeline(unet, DDIMScheduler())

class TestDDIM:
    def test_shape(self):
        assert pipe()(num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 3)

    def test_hub(self):
        UNet2DConditionModel.from_pretrained("hf-internal-testing/not-there")

    def test_idle(self):
        assert pipe().unet

    @pytest.mark.skip("not today")
    def test_skipped(self):
        pass
"""


@pytest.mark.whole
def test_the_command(tmp_path: Path) -> None:
    """From a checkout to the results; one of its files cannot be imported."""
    folder = tmp_path / "checkout" / "tests" / "pipelines" / "ddim"
    folder.mkdir(parents=True)
    (tmp_path / "checkout" / "pyproject.toml").touch()
    (folder / "test_ddim.py").write_text(TESTS, encoding="utf-8")
    (folder / "test_broken.py").write_text("import nowhere\n", encoding="utf-8")
    output = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks.diffusers_tests", "--processes", "1", "--output", str(output)]
    command += ["--work", str(tmp_path / "work")]
    environment = os.environ | {"DIFFUSERS": str(tmp_path / "checkout")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    modes = json.loads(output.read_text(encoding="utf-8"))["modes"]
    assert modes["plain"]["counts"] == {USABLE: 1, IDLE: 1, HUB: 1, SKIPPED: 1, FAILS: 1}
    assert modes["plain"]["reasons"][FAILS] == {
        "ModuleNotFoundError: No module named 'nowhere'": ["ddim/test_broken.py"]
    }
    assert modes["full"]["counts"] == {SAME: 1}
    assert modes["rounds"]["counts"] == {ROUNDS: 1}

    (folder / "test_ddim.py").write_text("raise RuntimeError", encoding="utf-8")
    subprocess.run([*command, "--resume"], cwd=ROOT, env=environment, check=True, capture_output=True, timeout=300)
    assert json.loads(output.read_text(encoding="utf-8"))["modes"] == modes  # nothing was run again


def test_without_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing, and how to get it."""
    monkeypatch.setenv("DIFFUSERS", "/nowhere")
    monkeypatch.setattr(sys, "argv", ["diffusers_tests"])
    advice = rf"no tests/pipelines in /nowhere[\s\S]*git clone --depth 1 --branch v{diffusers.__version__} https"
    with pytest.raises(SystemExit, match=advice):
        main()
