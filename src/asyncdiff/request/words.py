"""What is asked of a pipeline in words that are the same for all, and the arguments that each pipeline has for them."""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from asyncdiff.errors import ConfigurationError
from asyncdiff.plan.numbers import check_whole_number, shown
from asyncdiff.request.signature import Signature

_SIZE = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")

# The names that diffusers' pipelines have for one thing; each has at most one of a row.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt",),
    "negative_prompt": ("negative_prompt", "neg_prompt"),
    "image": ("image", "images"),
    "mask": ("mask_image", "mask"),
    "control_image": ("control_image", "conditioning_frames", "control_video"),
    "video": ("video",),
    "width": ("width",),
    "height": ("height",),
    "frames": ("num_frames", "video_length"),
    "count": ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt", "batch_size"),
    "guidance": ("guidance_scale",),
    "steps": ("num_inference_steps",),
}
# Where a pipeline makes pictures of nothing but words and a picture that controls it, it calls that one `image`.
_CONTROLLING_PARTS = ("controlnet", "adapter")
# Where a pipeline paints a part of a picture anew, that is the name of the mask, which it cannot do without; a `mask`
# some can. The other stands for picture and mask.
_PAINTED_PART, _ENCODED_PART = "mask_image", "masked_image_latents"
# Those that are a list of pictures even where there is one.
_LISTS = ("conditioning_frames", "control_video", "video")

COUNTS = _NAMES["count"]
"""Those that say how many are made: of each prompt, or where there is none, at all."""

OURS = ("generator", "return_dict")
"""Those that are given to every call, whatever is asked."""

GOVERNED = frozenset(name for names in _NAMES.values() for name in names)
"""The arguments of pipelines for which there is a word."""


@dataclass(frozen=True)
class Size:
    """Of a picture, in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True)
class Request:
    """What is asked of a pipeline. What is None, or empty, is left to the pipeline.

    Attributes:
        prompt, negative_prompt: what is to be drawn, and what is not.
        image: pictures to begin with, or to animate.
        mask: what of the picture is painted anew: white.
        control_image: pictures that control a ControlNet or an adapter.
        video: the frames of a video to begin with.
        size: of what is drawn.
        frames: of a video.
        count: how many pictures, videos or sounds.
        guidance: guidance scale.
        steps: denoising steps.
        arguments: further ones of the pipeline's call, by name.

    Raises:
        ConfigurationError: numbers that cannot work.
    """

    prompt: str | None = None
    negative_prompt: str | None = None
    image: tuple[Image.Image, ...] = ()
    mask: Image.Image | None = None
    control_image: tuple[Image.Image, ...] = ()
    video: tuple[Image.Image, ...] = ()
    size: Size | None = None
    frames: int | None = None
    count: int | None = None
    guidance: float | None = None
    steps: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("frames", "count", "steps"):
            if getattr(self, name) is not None:
                check_whole_number(name, getattr(self, name), 1)
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise ConfigurationError(f"guidance must be a finite number, not {self.guidance}")

    def of(self, prompt: str | None) -> "Request":
        """The same of another prompt."""
        return dataclasses.replace(self, prompt=prompt)

    def arguments_for(self, signature: Signature) -> dict[str, Any]:
        """The arguments of a call of the pipeline.

        Raises:
            ConfigurationError: the pipeline takes no such thing, needs another, or is given one twice.
        """
        found: dict[str, Any] = {}
        words: dict[str, str] = {}
        for word, value in self._given().items():
            name = _name_of(word, signature)
            if name in found:
                raise ConfigurationError(f"{signature.pipeline} takes one picture as {name!r}, not {word!r} as well")
            words[name] = word.replace("_", "-")
            found[name] = [value] if name in _LISTS and not isinstance(value, list) else value
        for name, value in self.arguments.items():
            if name in found:
                raise ConfigurationError(f"{name!r} is what {words[name]!r} says; give that alone")
            if name in OURS or name.startswith("callback"):
                raise ConfigurationError(f"{name!r} is given by asyncdiff itself")
            found[name] = value
        # Some pipelines take any name, and do nothing with most.
        return dataclasses.replace(signature, takes_any=False).call((), found)

    def _given(self) -> dict[str, Any]:
        """What is not left to the pipeline, by word."""
        size = self.size
        every: dict[str, Any] = {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "image": _one_or_list(self.image),
            "mask": self.mask,
            "control_image": _one_or_list(self.control_image),
            "video": list(self.video) or None,
            "width": None if size is None else size.width,
            "height": None if size is None else size.height,
            "frames": self.frames,
            "count": self.count,
            "guidance": self.guidance,
            "steps": self.steps,
        }
        return {word: value for word, value in every.items() if value is not None}


def _is_controlled(signature: Signature) -> bool:
    """Whether the pipeline has a part that a picture controls."""
    return any(part in signature.parts for part in _CONTROLLING_PARTS)


def advice_on(arguments: Mapping[str, Any]) -> str:
    """On a call that has failed inside of the pipeline, given its arguments; empty where nothing is to be said."""
    further = {name: value for name, value in arguments.items() if name not in GOVERNED}
    if not further:
        return ""
    given = ", ".join(f"{name}={shown(value)}" for name, value in further.items())
    return f"Only the pipeline can judge what is given to it as it stands: {given}. Is it what the pipeline takes?"


def lacking(request: Request, signature: Signature) -> tuple[str, str] | None:
    """The word for what the pipeline cannot do without and is not given, and a sentence that says so."""
    is_given = request.control_image or request.image or request.video or request.arguments
    if _is_controlled(signature) and not is_given:
        return "control_image", f"{signature.pipeline} is controlled by a picture"
    missing = _missing_of_painted(request, signature)
    if missing is not None:
        return missing, f"{signature.pipeline} paints a part of a picture anew, and needs the {missing}"
    return None


def _missing_of_painted(request: Request, signature: Signature) -> str | None:
    """Of a pipeline that paints a part of a picture anew: the word for what it is not given of picture and mask."""
    if _PAINTED_PART not in signature.names or _ENCODED_PART in request.arguments:
        return None
    given = {"image": request.image, "mask": request.mask}
    names = {word: _name_of(word, signature) for word in given if any(name in signature.names for name in _NAMES[word])}
    return next((word for word, name in names.items() if not given[word] and name not in request.arguments), None)


def read_size(name: str, value: Any) -> Size:
    """A size that is written as "128x128".

    Raises:
        ConfigurationError: it is none.
    """
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ConfigurationError(f"{name} must be a width and a height in pixels, '128x128', not {shown(value)}")
    return Size(int(found[1]), int(found[2]))


def _name_of(word: str, signature: Signature) -> str:
    """The pipeline's argument for a word."""
    names = _NAMES[word]
    if word == "control_image" and _is_controlled(signature):
        names = (*names, "image")
    name = next((name for name in names if name in signature.names), None)
    if name is not None:
        return name
    called = word.replace("_", " ")
    raise ConfigurationError(f"{signature.pipeline} takes no {called}; it takes {', '.join(signature.names)}")


def _one_or_list(pictures: tuple[Image.Image, ...]) -> Any:
    return pictures[0] if len(pictures) == 1 else list(pictures) or None
