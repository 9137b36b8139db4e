"""What pipelines make, in one form for all."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from asyncdiff.request.signature import Signature

Kind = Literal["picture", "video", "sound"]
Frames = tuple[Image.Image, ...]


@dataclass(frozen=True)
class Sound:
    """Sound.

    Attributes:
        samples: of shape (channels, samples), from -1 to 1.
        rate: samples per second.
    """

    samples: npt.NDArray[np.float32]
    rate: int


@dataclass(frozen=True)
class Made:
    """What one call of a pipeline has made: one kind of the three, or videos with their sound."""

    pictures: tuple[Image.Image, ...] = ()
    videos: tuple[Frames, ...] = ()
    sounds: tuple[Sound, ...] = ()

    @property
    def kind(self) -> Kind:
        """What it is above all."""
        return "video" if self.videos else "picture" if self.pictures else "sound"

    @property
    def frames(self) -> Frames:
        """All pictures, or all frames of all videos, in their order."""
        return self.pictures or tuple(frame for video in self.videos for frame in video)


# Arguments by which a pipeline's call tells what it makes.
_TELLING: dict[str, Kind] = {
    "num_videos_per_prompt": "video",
    "num_frames": "video",
    "num_waveforms_per_prompt": "sound",
    "num_images_per_prompt": "picture",
}


def kind_by(signature: Signature) -> Kind | None:
    """What a pipeline makes, where that can be told from what it takes."""
    return next((kind for name, kind in _TELLING.items() if name in signature.names), None)
