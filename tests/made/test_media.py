"""What pipelines make, in one form, and its files."""

import wave
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from asyncdiff import ConfigurationError
from asyncdiff.made.files import check_file, kind_of, write_made
from asyncdiff.made.media import Made, Sound
from asyncdiff.made.output import made_by

RED = Image.new("RGB", (4, 2), "red")
REDS = np.zeros((2, 4, 3), np.float32)
REDS[..., 0] = 1
FIRST = torch.from_numpy(REDS).movedim(-1, 0)
PIPE: Any = SimpleNamespace(components={"vae": SimpleNamespace(sampling_rate=8000), "tokenizer": None})


def output(**given: Any) -> Made:
    return made_by(PIPE, SimpleNamespace(**given))


@pytest.mark.parametrize("form", [[RED], REDS[None], FIRST[None], [[RED]]], ids=["list", "array", "tensor", "layers"])
def test_pictures_in_every_form(form: Any) -> None:
    (found,) = output(images=form).pictures
    assert found.tobytes() == RED.tobytes() and output(images=form).kind == "picture"


@pytest.mark.parametrize(
    "form",
    [[[RED, RED]], np.stack([REDS, REDS])[None], torch.stack([FIRST, FIRST])[None], [np.stack([REDS, REDS])]],
    ids=["list", "array", "tensor", "arrays"],
)
def test_videos_in_every_form(form: Any) -> None:
    made = output(frames=form)
    assert made.kind == "video" and len(made.videos) == 1 and len(made.frames) == 2
    assert all(frame.tobytes() == RED.tobytes() for frame in made.frames)


@pytest.mark.parametrize(
    ("form", "channels"),
    [(np.ones((1, 2, 9)), 2), (np.ones((1, 9)), 1), (torch.ones(1, 2, 9, dtype=torch.float16), 2)],
)
def test_sound_in_every_form(form: Any, channels: int) -> None:
    made = output(audios=form)
    assert made.kind == "sound" and made.sounds[0].samples.shape == (channels, 9) and made.sounds[0].rate == 8000


def test_the_rate_is_that_of_what_makes_the_sound() -> None:
    """LTX 2 has a VAE and, after it, a vocoder."""
    vocoder = SimpleNamespace(config=SimpleNamespace(output_sampling_rate=24000))
    pipe = SimpleNamespace(components={"vae": PIPE.components["vae"], "vocoder": vocoder})
    made = made_by(pipe, SimpleNamespace(frames=[[RED]], audio=np.ones((1, 2, 4))))
    assert made.kind == "video" and made.sounds[0].rate == 24000


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"prediction": 1}, "makes no pictures, videos or sound"),
        ({"images": torch.zeros(1, 4, 8)}, "is no picture"),
        ({"images": torch.full((1, 3, 2, 2), float("nan"))}, "is no picture"),
        ({"audios": np.zeros((1, 1, 1, 1))}, "is no sound"),
    ],
)
def test_what_cannot_be_seen_or_heard(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        output(**given)
    with pytest.raises(ConfigurationError, match="does not say how many samples"):
        made_by(SimpleNamespace(components={}), SimpleNamespace(audios=np.ones((1, 4))))


def test_a_file_of_its_kind_is_written(tmp_path: Path) -> None:
    sound = Sound(np.array([[0, 0.5, -1, 2]], np.float32), 8000)
    made = Made(videos=((RED, RED),), sounds=(sound,))
    written = write_made(made, tmp_path / "a.gif")
    assert [path.name for path in written] == ["a.gif", "a.wav"]
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (1, 8000, 4)
        assert np.frombuffer(file.readframes(4), "<i2").tolist() == [0, 16384, -32767, 32767]
    with Image.open(tmp_path / "a.gif") as film:
        assert film.size == (4, 2)


def test_several_get_numbers_and_a_wrong_ending_another(tmp_path: Path) -> None:
    assert [path.name for path in write_made(Made((RED, RED)), tmp_path / "a.png")] == ["a-1.png", "a-2.png"]
    assert [path.name for path in write_made(Made((RED,)), tmp_path / "b.mp4")] == ["b.png"]


def test_what_nobody_has_named_is_written_over_nothing(tmp_path: Path) -> None:
    """A file whose ending was asked for is; that of another ending gets a name that is free."""
    for name in ("a.png", "b.png", "b-2.png"):
        (tmp_path / name).write_text("mine")
    assert [path.name for path in write_made(Made((RED,)), tmp_path / "a.png")] == ["a.png"]
    assert [path.name for path in write_made(Made((RED,)), tmp_path / "b.mp4")] == ["b-3.png"]
    assert (tmp_path / "b.png").read_text() == "mine" != (tmp_path / "a.png").read_bytes()


def test_names_of_files() -> None:
    assert [kind_of(Path(name)) for name in ("a.PNG", "a.jpg", "a.mp4", "a.gif", "a.wav", "a", "a.xyz")] == [
        *("picture", "picture", "video", "video", "sound"),
        *(None, None),
    ]
    for name in ("a", "a.xyz", "a.mp3"):
        with pytest.raises(ConfigurationError, match="is no format to write"):
            check_file(Path(name))


def test_without_what_writes_mp4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncdiff.made.files.can_write_mp4", lambda: False)
    with pytest.raises(ConfigurationError, match=r"pip install asyncdiff\[video\]; or use .gif"):
        check_file(Path("a.mp4"))
