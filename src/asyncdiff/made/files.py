"""Files of what a pipeline has made: pictures, videos and sound, each by the ending of its name."""

import importlib.util
import io
import itertools
import wave
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from asyncdiff.errors import ConfigurationError
from asyncdiff.made.media import Frames, Kind, Made, Sound
from asyncdiff.request.files import NEEDS_VIDEO

FRAMES_PER_SECOND = 10
"""As diffusers' exporters have it."""

_ENDINGS: Mapping[Kind, tuple[str, ...]] = {"video": (".mp4", ".gif"), "sound": (".wav",)}
_SAMPLE = 2  # bytes of a sample of sound in a file


def kind_of(file: Path) -> Kind | None:
    """What a file of this name holds; None if nothing that can be written."""
    ending = file.suffix.lower()
    kind = next((kind for kind, endings in _ENDINGS.items() if ending in endings), None)
    if kind is not None:
        return kind
    Image.init()
    return "picture" if Image.registered_extensions().get(ending) in Image.SAVE else None


def check_file(file: Path) -> None:
    """
    Raises:
        ConfigurationError: no file of this name can be written.
    """
    if kind_of(file) is None:
        raise ConfigurationError(
            f"{file.suffix or 'no ending'} is no format to write; use .png for instance, .mp4 or .gif for a video, "
            ".wav for sound"
        )
    if kind_of(file) == "picture":
        try:
            Image.new("RGB", (16, 16)).save(io.BytesIO(), Image.registered_extensions()[file.suffix.lower()])
        except (OSError, ValueError, KeyError) as error:
            raise ConfigurationError(f"{file.suffix} cannot hold a picture of colours: {error}") from error
    if file.suffix.lower() == ".mp4" and not can_write_mp4():
        raise ConfigurationError(f".mp4 is written by imageio, which is not here: {NEEDS_VIDEO}; or use .gif")


def can_write_mp4() -> bool:
    """Whether what writes mp4 is installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("imageio", "imageio_ffmpeg"))


def usual(kind: Kind) -> str:
    """The ending of a file of this kind, where nobody has said one."""
    return {"picture": ".png", "video": ".mp4" if can_write_mp4() else ".gif", "sound": ".wav"}[kind]


def write_made(made: Made, out: Path, frames_per_second: int = FRAMES_PER_SECOND) -> list[Path]:
    """Write all of it; several get numbers, and what the ending does not suit gets its own.

    Returns:
        The files.

    Raises:
        OSError: a file cannot be written. ValueError: a picture cannot be in that format.
    """
    written = []
    for number, picture in enumerate(made.pictures):
        written.append(_place(out, "picture", number, len(made.pictures)))
        picture.save(written[-1])
    for number, video in enumerate(made.videos):
        written.append(_place(out, "video", number, len(made.videos)))
        write_video(video, written[-1], frames_per_second)
    for number, sound in enumerate(made.sounds):
        written.append(_place(out, "sound", number, len(made.sounds)))
        written[-1].write_bytes(wav(sound))
    return written


def write_video(video: Frames, file: Path, frames_per_second: int = FRAMES_PER_SECOND) -> None:
    """By diffusers' own exporters, which are there when something was drawn."""
    from diffusers.utils import export_to_gif, export_to_video

    frames = [frame.convert("RGB") for frame in video]
    if file.suffix.lower() == ".gif":
        export_to_gif(frames, str(file), fps=frames_per_second)
    else:
        # Else one whose size is no multiple of 16 would be stretched.
        export_to_video(frames, str(file), fps=frames_per_second, macro_block_size=2)


def wav(sound: Sound) -> bytes:
    """A file of sound, 16 bits a sample."""
    numbers = np.round(sound.samples.clip(-1, 1).T * (2 ** (8 * _SAMPLE - 1) - 1)).astype("<i2")
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setnchannels(numbers.shape[1])
        file.setsampwidth(_SAMPLE)
        file.setframerate(sound.rate)
        file.writeframes(numbers.tobytes())
    return written.getvalue()


def _place(out: Path, kind: Kind, number: int, count: int) -> Path:
    is_asked_for = kind_of(out) == kind
    suited = out if is_asked_for else out.with_suffix(usual(kind))
    numbered = suited if count == 1 else suited.with_stem(f"{suited.stem}-{number + 1}")
    return numbered if is_asked_for else _free(numbered)


def _free(file: Path) -> Path:
    """A name like this one that no file has: nobody has asked for it, so that nothing may be lost."""
    names = itertools.chain([file], (file.with_stem(f"{file.stem}-{number}") for number in itertools.count(2)))
    return next(name for name in names if not name.exists())
