"""Values that are written as text, and read from files."""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from asyncdiff import ConfigurationError
from asyncdiff.request.files import read_picture, read_pictures
from asyncdiff.request.signature import Signature
from asyncdiff.request.values import read_arguments, read_values

SDXL = Signature.of_class(diffusers.StableDiffusionXLImg2ImgPipeline, ())


def value(name: str, text: str, signature: Signature | None = SDXL) -> Any:
    return read_values({name: text}, signature)[name]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("strength", "0.5", 0.5),
        ("strength", "1", 1),
        ("eta", "null", None),
        ("guess_mode", "true", True),
        ("prompt_2", "7", "7"),
        ("prompt_2", "a red = apple", "a red = apple"),
        ("prompt_2", '["a", "b"]', ["a", "b"]),
        ("timesteps", "[999, 500]", [999, 500]),
        ("original_size", "[64, 32]", (64, 32)),
        ("cross_attention_kwargs", '{"scale": 0.5}', {"scale": 0.5}),
    ],
)
def test_values_get_the_types_that_the_pipeline_says(name: str, text: str, expected: Any) -> None:
    found = value(name, text)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("strength", "much", "strength must be a number, not 'much'"),
        ("strength", "true", "strength must be a number, not True"),
        ("timesteps", "9", "timesteps must be a list, not 9"),
        ("ip_adapter_image", "dog.png", "ip_adapter_image must be "),
        ("ip_adapter_image", "dog.png", "what @FILE holds"),
        ("strength", "NaN", "strength must be a number, not 'NaN'"),
        ("strength", "1e999", "strength must be a finite number, not 1e999"),
        ("latents", "5", "latents must be what @FILE holds, not 5"),
        ("clip_skip", "1.5", "clip_skip must be a whole number, not 1.5"),
    ],
)
def test_values_of_other_types_are_refused(name: str, text: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        value(name, text)
    assert sentence in str(raised.value)


def test_of_a_pipeline_that_is_not_known_yet_any_value_is_taken() -> None:
    assert value("strength", "0.5", None) == 0.5 and value("strength", "much", None) == "much"


def test_names_and_values() -> None:
    assert read_arguments(["strength=0.5", "prompt_2=a=b", "x="]) == {"strength": "0.5", "prompt_2": "a=b", "x": ""}
    for wrong in ("strength", "=1", "a b=1", "--x=1"):
        with pytest.raises(ConfigurationError, match="is not written NAME=VALUE"):
            read_arguments([wrong])
    with pytest.raises(ConfigurationError, match="'x' is given twice"):
        read_arguments(["x=1", "x=2"])


def test_files_are_what_their_endings_say(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 2), (255, 0, 0, 9)).save(tmp_path / "dog.png")
    (tmp_path / "a.json").write_text(json.dumps({"scale": 1}))
    (tmp_path / "a.txt").write_text("a fox\n")
    np.save(tmp_path / "a.npy", np.arange(3))
    save_file({"x": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"x": torch.ones(2), "y": torch.zeros(1)}, tmp_path / "two.safetensors")
    picture = value("ip_adapter_image", f"@{tmp_path}/dog.png")
    assert (picture.mode, picture.size) == ("RGB", (4, 2))
    assert value("cross_attention_kwargs", f"@{tmp_path}/a.json") == {"scale": 1}
    assert value("prompt_2", f"@{tmp_path}/a.txt") == "a fox"
    assert value("latents", f"@{tmp_path}/a.npy").tolist() == [0, 1, 2]
    assert value("latents", f"@{tmp_path}/one.safetensors").tolist() == [1, 1]
    assert value("latents", f"@{tmp_path}/two.safetensors").keys() == {"x", "y"}


@pytest.mark.parametrize("ending", ["gif", "mp4"])
def test_a_video_is_its_frames(tmp_path: Path, ending: str) -> None:
    from asyncdiff.made.files import write_video

    frames = tuple(Image.new("RGB", (32, 16), (60 * number, 0, 0)) for number in range(4))
    write_video(frames, tmp_path / f"film.{ending}")
    found = read_pictures("--video", tmp_path / f"film.{ending}")
    assert [(frame.mode, frame.size) for frame in found] == [("RGB", (32, 16))] * 4
    reds = [np.asarray(frame)[..., 0].mean() for frame in found]
    assert np.allclose(reds, [0, 60, 120, 180], atol=8)
    with pytest.raises(ConfigurationError, match="must hold one picture, not 4"):
        read_picture("--mask", tmp_path / f"film.{ending}")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("none.png", None, "No such file"),
        ("text.png", b"no picture", "is no picture that Pillow can read"),
        ("none.gif", None, "there is no such file"),
        ("text.gif", b"GIF89a", "is no video that can be read"),
        ("text.mp4", b"no video", "is no video that can be read"),
        ("text.json", b"{", "cannot be read"),
        ("text.npy", b"no numbers", "cannot be read"),
        ("text.safetensors", b"no tensors", "cannot be read"),
        ("text.txt", b"\xff\xfe\xfa", "cannot be read"),
    ],
)
def test_files_that_do_not_hold_that(tmp_path: Path, name: str, content: bytes | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=sentence):
        value("latents", f"@{tmp_path / name}")


def test_what_holds_more_than_eight_bits(tmp_path: Path) -> None:
    steps = np.linspace(0, 2**16 - 1, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(steps).save(tmp_path / "deep.png")
    found = np.asarray(read_picture("--image", tmp_path / "deep.png"))
    assert np.array_equal(found[..., 0], steps >> 8) and np.array_equal(found[..., 0], found[..., 2])
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ConfigurationError, match="holds fractions; save it with 8 or 16 bits"):
        read_picture("--image", tmp_path / "float.tiff")
    Image.fromarray(np.full((8, 8), 2**20, np.int32)).save(tmp_path / "long.tiff")
    with pytest.raises(ConfigurationError, match="holds numbers of 32 bits"):
        read_picture("--image", tmp_path / "long.tiff")


def test_an_array_of_text_is_no_tensor(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array(["x"]))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        value("latents", f"@{tmp_path}/a.npy")


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        value("latents", f"@{tmp_path}/a.npy")
