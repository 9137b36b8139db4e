"""What pipelines take and make, from the command line: videos, sound, pictures of pictures, in two processes."""

import re
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from typer.testing import CliRunner, Result

from asyncdiff.commands.app import app
from asyncdiff.made.media import Made
from asyncdiff.made.output import made_by
from asyncdiff.request.files import read_pictures
from asyncdiff.request.signature import Signature
from asyncdiff.request.words import Request, Size
from tests.commands.test_cli import run_forked  # noqa: F401 (a fixture)
from tests.processes import run_ranks
from tests.tiny.base import PIXELS, SIZE
from tests.tiny.saved import save, save_pictures

STEPS = 4
# Name, what is typed, and the same in Python: what a word is called there, pictures by their files.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "svd": (f"--image dog.png --size {SIZE}x{SIZE} --frames 3 --set fps=5", {"num_frames": 3, "fps": 5}),
    "animatediff": ("fox --frames 4 --negative-prompt cat", {"num_frames": 4, "negative_prompt": "cat"}),
    "wan": (f"fox --frames 5 --size {PIXELS}x{PIXELS} --set max_sequence_length=7", {}),
    "img2img": ("fox --image dog.png --set strength=0.5 --guidance 4", {"strength": 0.5, "guidance_scale": 4.0}),
    "inpaint": (f"fox --image dog.png --mask mask.png --size {PIXELS}x{PIXELS} --count 2", {}),
    "controlnet": ("fox --control-image edges.png --set controlnet_conditioning_scale=0.5", {}),
    "stable_audio": ("fox --set audio_end_in_s=6.0", {"audio_end_in_s": 6.0}),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which commands are typed."""
    monkeypatch.chdir(tmp_path)
    save_pictures(tmp_path)
    return tmp_path


def by_hand(name: str, folder: Path) -> Made:
    """The pipeline as its user calls it in Python."""
    dog, edges, white = (read_pictures("", folder / f"{each}.png")[0] for each in ("dog", "edges", "mask"))
    arguments: dict[str, dict[str, Any]] = {
        "svd": {"image": dog, "height": SIZE, "width": SIZE},
        "wan": {"num_frames": 5, "height": PIXELS, "width": PIXELS, "max_sequence_length": 7},
        "img2img": {"image": dog},
        "inpaint": dict(image=dog, mask_image=white, height=PIXELS, width=PIXELS, num_images_per_prompt=2),
        "controlnet": {"image": edges, "controlnet_conditioning_scale": 0.5},
    }
    words = {} if name == "svd" else {"prompt": "fox"}
    pipe = DiffusionPipeline.from_pretrained(folder / name)
    pipe.set_progress_bar_config(disable=True)
    given = words | arguments.get(name, {}) | CASES[name][1]
    return made_by(pipe, pipe(**given, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(3)))


def typed(name: str, *more: str) -> list[str]:
    words = CASES[name][0].split()
    return ["generate", *words, "--model", name, "--steps", str(STEPS), "--seed", "3", *more]


@pytest.mark.whole
@pytest.mark.parametrize("name", CASES)
def test_what_is_typed_is_what_the_pipeline_makes(
    name: str,
    place: Path,
    run_forked: Callable[..., Result],  # noqa: F811
) -> None:
    """All steps in full: bit for bit what its user gets from Python, in two processes."""
    save(name, place / name)
    done = run_forked(*typed(name, "--components", "2", "--warmup", str(STEPS), "--compare"))
    assert done.exit_code == 0, done.stderr
    assert "x as fast, the same" in done.stdout
    steps, calls = re.search(r"(\d+) steps on 2 devices", done.stdout), re.search(r"(\d+) calls in full", done.stdout)
    assert steps and calls
    in_a_step = 2 if name == "wan" else 1  # its guidance's branches are calls of their own
    assert int(calls[1]) == in_a_step * int(steps[1]), "of another picture there are fewer than are asked for"
    done = run_forked(*typed(name, "--devices", "1"))
    assert done.exit_code == 0, done.stderr
    expected = by_hand(name, place)
    if expected.kind == "picture":
        count = len(expected.pictures)
        files = [place / ("out.png" if count == 1 else f"out-{number + 1}.png") for number in range(count)]
        for file, picture in zip(files, expected.pictures, strict=True):
            with Image.open(file) as found:
                assert found.tobytes() == picture.tobytes()
    elif expected.kind == "sound":
        with wave.open(str(place / "out.wav")) as file:
            sound = expected.sounds[0]
            assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (
                *(sound.samples.shape[0], sound.rate, sound.samples.shape[1]),
            )
    else:
        frames = imageio.mimread(place / "out.mp4")
        assert len(frames) == len(expected.frames)
        assert frames[0].shape == (*expected.frames[0].size[::-1], 3)


@pytest.mark.parametrize(
    ("name", "words", "sentence"),
    [
        ("svd", "fox --image dog.png", "StableVideoDiffusionPipeline takes no prompt"),
        ("svd", "", "StableVideoDiffusionPipeline needs 'image'"),
        ("svd", "--image cat.png", "--image cat.png cannot be read"),
        ("svd", "--image dog.png --set fps=fast", "fps must be a whole number, not 'fast'"),
        ("svd", "--image dog.png --set frames_per_second=5", "takes no 'frames_per_second'"),
        ("svd", "--image dog.png --frames 3 --set num_frames=3", "'num_frames' is what 'frames' says"),
        ("svd", "--image dog.png --out a.gif --fps 60", "--fps 60: a .gif has at most 50 frames a second"),
        ("svd", "--image dog.png --out a.xbm", ".xbm cannot hold a picture of colours"),
        ("controlnet", "fox", "is controlled by a picture: --control-image"),
        ("inpaint", "fox --image dog.png", "paints a part of a picture anew, and needs the mask: --mask"),
        ("inpaint", "fox --mask mask.png", "paints a part of a picture anew, and needs the image: --image"),
        (
            "svd",
            "--image dog.png --size large",
            "--size must be a width and a height in pixels, '128x128', not 'large'",
        ),
        ("svd", "--image dog.png --lora style.safetensors", "--lora there is no file 'style.safetensors'"),
        ("svd", "--image dog.png --lora dog.png=1", "is no .safetensors file"),
        ("svd", "--image dog.png --out out.mp3", "--out out.mp3: .mp3 is no format to write"),
    ],
)
def test_what_a_folder_says_it_cannot_be_asked_is_refused_before_it_is_loaded(
    name: str, words: str, sentence: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(name, place / name)
    monkeypatch.setattr("asyncdiff.launch.elastic_launch", lambda *given: pytest.fail("work was begun"))
    done = CliRunner().invoke(app, ["generate", *words.split(), "--model", name])
    assert done.exit_code == 2 and sentence in done.stderr and done.stderr.count("\n") == 1, done.output


@pytest.mark.parametrize("command", ["generate rocket --devices 1", "evaluate --prompts one.txt"])
def test_what_only_the_pipeline_can_judge_is_told_where_it_fails(
    command: str,
    place: Path,
    run_forked: Callable[..., Result],  # noqa: F811
) -> None:
    """The text encoder has no layer so far from its last one: an error of torch's, deep in the pipeline."""
    (place / "one.txt").write_text("rocket\n")
    done = run_forked(*command.split(), "--set", "clip_skip=99", "--steps", "1")
    assert done.exit_code == 1, done.output
    assert "rank 0 failed:" in done.stderr and "IndexError" in done.stderr
    *_, last = done.stderr.strip().splitlines()
    assert last == (
        "Only the pipeline can judge what is given to it as it stands: clip_skip=99. Is it what the pipeline takes?"
    )


def test_a_video_is_evaluated_frame_by_frame(place: Path) -> None:
    save("svd", place / "svd")
    words = ["--image", "dog.png", "--size", f"{SIZE}x{SIZE}", "--frames", "3", "--steps", "5"]
    settings = ["--components", "2", "--warmup", "2", "--cooldown", "0", "--out", "report.html"]
    done = CliRunner().invoke(app, ["evaluate", "--model", "svd", *words, *settings], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.stderr
    page = (place / "report.html").read_text()
    assert "no prompt" in page and "worst frame" in page and "1 video of 5 steps" in page
    assert page.count('class="film"') == 3 and 'max="2"' in page


def on_rank(rank: int, folder: Path, request: Request) -> list[np.ndarray[Any, Any]]:
    from asyncdiff import AsyncDiff

    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    with AsyncDiff(pipe, components=2, warmup=2, cooldown=0, timeout=60):
        output = pipe(**request.arguments_for(Signature.of(pipe)), generator=torch.Generator().manual_seed(0))
    return [np.asarray(frame) for frame in made_by(pipe, output).frames]


@pytest.mark.whole
def test_the_description_of_a_request_serves_scripts_too(place: Path) -> None:
    folder = save("wan", place / "wan")
    request = Request("fox", size=Size(PIXELS, PIXELS), frames=5, steps=STEPS, arguments={"max_sequence_length": 7})
    first, second = run_ranks(2, on_rank, folder, request, joined=True)
    assert len(first) == 5 and all(np.array_equal(*pair) for pair in zip(first, second, strict=True))
