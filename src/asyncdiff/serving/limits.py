"""What a request may ask for at most. Checked when it arrives, before anything is drawn. Pure."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from asyncdiff.errors import ConfigurationError
from asyncdiff.plan.numbers import check_number, check_whole_number, shown
from asyncdiff.request.words import Size, read_size

BODY_BYTES = 64 * 1024
"""How long a request may be. A prompt and all settings take a small part of that."""
BODY_BYTES_WITH_PICTURES = 16 * 2**20
"""How long it may be where the pipeline takes pictures."""

_LARGEST = Size(1024, 1024)
_MOST_FRAMES_PER_SECOND = 240
_MOST_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Limits:
    """The most that one request may ask for, and that the service holds.

    Attributes:
        steps: denoising steps.
        size: of a picture.
        pictures: in one request.
        frames: of a video.
        prompt: characters of a prompt, and of a negative one.
        waiting: requests that wait while others are drawn.
        seconds: from a request's arrival to its answer.

    Raises:
        ConfigurationError: a limit that is none.
    """

    steps: int = 100
    size: Size = _LARGEST
    pictures: int = 4
    frames: int = 121
    prompt: int = 1000
    waiting: int = 16
    seconds: float = 600.0

    def __post_init__(self) -> None:
        for own in dataclasses.fields(self):
            if own.type is int:
                check_whole_number(own.name, getattr(self, own.name), 1)
        check_number("seconds", self.seconds, 0, _MOST_SECONDS)

    def check_steps(self, value: Any) -> int:
        """
        Raises:
            ConfigurationError: it is not a number of steps within the limit. So in those below.
        """
        return check_whole_number("steps", value, 1, self.steps)

    def check_pictures(self, value: Any) -> int:
        return check_whole_number("n", value, 1, self.pictures)

    def check_frames(self, value: Any) -> int:
        return check_whole_number("frames", value, 1, self.frames)

    def check_rate(self, value: Any) -> int:
        return check_whole_number("fps", value, 1, _MOST_FRAMES_PER_SECOND)

    def check_picture(self, name: str, width: int, height: int) -> None:
        """Whether one that is given is no larger than one that may be asked for."""
        if width > self.size.width or height > self.size.height:
            raise ConfigurationError(f"{name} may have at most {self.size} pixels, not {Size(width, height)}")

    def check_prompt(self, name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise ConfigurationError(f"{name} must be text, not {shown(value)}")
        if len(value) > self.prompt:
            raise ConfigurationError(f"{name} must have at most {self.prompt} characters, not {len(value)}")
        if not _is_unicode(value):
            raise ConfigurationError(f"{name} must be text; it holds half of a character")
        return value

    def check_size(self, value: Any) -> Size:
        size = read_size("size", value)
        check_whole_number("the width in size", size.width, 1, self.size.width)
        check_whole_number("the height in size", size.height, 1, self.size.height)
        return size


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
