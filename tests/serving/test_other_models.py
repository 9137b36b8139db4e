"""The service with other pipelines than the demo's: videos, pictures that are sent, LoRA weights. Real processes."""

import base64
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from typer.testing import CliRunner

from asyncdiff.commands.app import app
from asyncdiff.lora import Lora, put_on
from asyncdiff.made.files import write_video
from asyncdiff.made.output import made_by
from asyncdiff.request.files import read_pictures
from benchmarks.serving import served
from tests.tiny.base import PIXELS
from tests.tiny.narrow import load_narrow_demo, save_narrow_demo
from tests.tiny.saved import save, save_pictures
from tests.workers.drawing import save_adapter

pytestmark = [pytest.mark.whole, pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")]

STEPS = 4
# All steps in full: the ordinary pipeline's own numbers.
FULL = ["--devices", "2", "--components", "2", "--warmup", str(STEPS), "--steps", str(STEPS)]
SECONDS = 120.0


def plain(folder: Path, **arguments: Any) -> Any:
    """What the pipeline makes when its user calls it."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    return made_by(pipe, pipe(**arguments, num_inference_steps=STEPS, generator=generator))


def as_text(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def test_a_video(tmp_path: Path) -> None:
    folder = save("wan", tmp_path / "wan")
    own = {"frames": 5, "arguments": {"max_sequence_length": 7}}
    made = plain(folder, prompt="fox", num_frames=5, height=PIXELS, width=PIXELS, max_sequence_length=7)
    write_video(made.videos[0], tmp_path / "expected.mp4", 7)
    with served("--model", str(folder), *FULL) as service:
        client = service.client()
        more: Any = {"seed": 3, "fps": 7, "asyncdiff": own}
        video = client.videos.create(prompt="fox", size=f"{PIXELS}x{PIXELS}", extra_body=more)  # type: ignore[arg-type]
        end = time.monotonic() + SECONDS
        while (now := client.videos.retrieve(video.id)).status not in ("completed", "failed"):
            assert time.monotonic() < end
            time.sleep(0.1)
        assert now.status == "completed", now
        (tmp_path / "found.mp4").write_bytes(client.videos.download_content(video.id).read())
        with pytest.raises(openai.BadRequestError, match="WanPipeline makes videos: POST /v1/videos"):
            client.images.generate(prompt="fox")
        words = ["--frames", "5", "--size", f"{PIXELS}x{PIXELS}", "--steps", str(STEPS), "--seed", "3", "--fps", "7"]
        words += ["--set", "max_sequence_length=7", "--out", str(tmp_path / "typed.mp4")]
        done = CliRunner().invoke(app, ["generate", "fox", "--server", service.address, *words])
        assert done.exit_code == 0, done.output
    films = [read_pictures("", tmp_path / f"{name}.mp4") for name in ("expected", "found", "typed")]
    for film in films[1:]:
        assert len(film) == 5
        for frame, right in zip(film, films[0], strict=True):
            assert np.array_equal(np.asarray(frame), np.asarray(right))


def test_a_picture_of_a_picture(tmp_path: Path) -> None:
    folder = save("inpaint", tmp_path / "inpaint")
    save_pictures(tmp_path)
    dog, mask = (read_pictures("", tmp_path / f"{name}.png")[0] for name in ("dog", "mask"))
    size = {"height": PIXELS, "width": PIXELS}
    made = plain(folder, prompt="fox", image=dog, mask_image=mask, strength=0.9, **size)
    own = {"image": as_text(tmp_path / "dog.png"), "mask": as_text(tmp_path / "mask.png")}
    more: Any = {"seed": 3, "asyncdiff": {**own, "arguments": {"strength": 0.9}}}
    with served("--model", str(folder), *FULL) as service:
        asked = service.client().images.generate(prompt="fox", size=f"{PIXELS}x{PIXELS}", extra_body=more)  # type: ignore[arg-type]
    assert asked.data is not None
    found = Image.open(io.BytesIO(base64.b64decode(asked.data[0].b64_json or "")))
    assert found.tobytes() == made.pictures[0].tobytes()


def test_sound_is_refused_at_the_start(tmp_path: Path) -> None:
    folder = save("stable_audio", tmp_path / "stable_audio")
    sentence = "StableAudioPipeline makes sound, which this service does not send"
    with pytest.raises(RuntimeError, match=sentence), served("--model", str(folder), *FULL):
        pass


def test_lora_weights(tmp_path: Path) -> None:
    folder = save_narrow_demo(tmp_path / "narrow")
    save_adapter(tmp_path)
    pipe = load_narrow_demo()
    pipe.set_progress_bar_config(disable=True)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    put_on(pipe, [Lora(file, 0.5)])
    expected = pipe("fox", num_inference_steps=STEPS, generator=torch.Generator().manual_seed(3)).images[0]
    with served("--model", str(folder), *FULL, "--lora", f"{file}=0.5") as service:
        asked = service.client().images.generate(prompt="fox", extra_body={"seed": 3})
    assert asked.data is not None
    found = Image.open(io.BytesIO(base64.b64decode(asked.data[0].b64_json or "")))
    assert found.tobytes() == expected.tobytes()
