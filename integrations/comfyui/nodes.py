"""The nodes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.utils

from .address import Address
from .client import Client, Drawn
from .errors import InputError
from .keys import usual_address
from .pictures import images_of, texts_of
from .settings import BELOW_ALL, chosen, read_names, widgets
from .written import read_arguments, read_split

_CATEGORY = "AsyncDiff"
_SERVICE = "ASYNCDIFF_SERVICE"
_SETTINGS = "ASYNCDIFF_SETTINGS"
_SECONDS_TO_LOOK = 5.0
_MOST_SECONDS = 24 * 3600
_MOST_SEED = 2**64 - 1
_MOST_PIXELS = 16384
_MOST_STEPS = 10000
_MOST_SCALE = 1000.0
_MOST_PICTURES = 4096


@dataclass(frozen=True)
class Service:
    """A service that was there. It holds no key: what nodes hand on may be shown and stored.

    Attributes:
        model: what it draws with.
        seconds: that a request may take, waiting included.
    """

    address: Address
    model: str
    seconds: float


class AsyncDiffService:
    """The loader: finds the service."""

    CATEGORY = _CATEGORY
    DESCRIPTION = "A service of asyncdiff, started with 'asyncdiff serve', that draws for the sampler."
    RETURN_TYPES = (_SERVICE, "STRING")
    RETURN_NAMES = ("service", "model")
    OUTPUT_TOOLTIPS = ("For the AsyncDiff Sampler.", "The name of the model that it draws with.")
    FUNCTION = "find"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        address = {"default": usual_address(), "tooltip": "Where the service is, as it says itself when it is started."}
        timeout = {
            "default": 600,
            "min": 1,
            "max": _MOST_SECONDS,
            "tooltip": "Seconds after which pictures are given up, waiting for a place in the line included.",
        }
        return {"required": {"address": ("STRING", address)}, "optional": {"timeout": ("INT", timeout)}}

    @classmethod
    def VALIDATE_INPUTS(cls, address: str | None) -> bool | str:
        # None: what is linked is not known yet.
        return True if address is None else _sentence(Address.of, address)

    @classmethod
    def IS_CHANGED(cls, address: str | None, timeout: int | None = None) -> str:
        """Another model, or a service that was started anew and may have other settings: then all is drawn again.

        What this raises counts as a change, so that the service is looked for once more.
        """
        if address is None:
            return ""
        # Nobody may interrupt this: ComfyUI would take the interruption for a change, and go on.
        model = Client(Address.of(address)).model(_SECONDS_TO_LOOK)
        return f"{model.name} {model.since}"

    def find(self, address: str, timeout: int = 600) -> tuple[Service, str]:
        """
        Raises:
            InputError: the address is none, or the environment has no proper key.
            ServiceError: nobody answers there, or somebody else.
        """
        place = Address.of(address)
        client = Client(place, _check)
        client.wait_until_it_can_draw()
        model = client.model()
        return Service(place, model.name, timeout), model.name


class AsyncDiffSettings:
    """The settings of asyncdiff for the pictures of one sampler."""

    CATEGORY = _CATEGORY
    DESCRIPTION = "How the denoiser is run. What is not touched is as the service has it."
    RETURN_TYPES = (_SETTINGS,)
    RETURN_NAMES = ("settings",)
    OUTPUT_TOOLTIPS = ("For the AsyncDiff Sampler.",)
    FUNCTION = "choose"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}, "optional": widgets()}

    @classmethod
    def VALIDATE_INPUTS(cls, split: str | None = None, left_out: str | None = None) -> bool | str:
        told = _sentence(read_split, split) if split else True
        return _sentence(read_names, left_out) if told is True and left_out else told

    def choose(self, **given: Any) -> tuple[dict[str, Any]]:
        """
        Raises:
            InputError: a value that is none, or a name of nothing.
        """
        return (chosen(given),)


class AsyncDiffSampler:
    """Draws pictures by a service."""

    CATEGORY = _CATEGORY
    DESCRIPTION = "Pictures of a prompt, drawn by a service of asyncdiff on its devices."
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("images", "about")
    OUTPUT_TOOLTIPS = ("The pictures.", "What was done: seconds, and the denoiser's calls of each kind.")
    FUNCTION = "draw"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        text = {"multiline": True, "dynamicPrompts": True}
        pixels = {"default": 0, "min": 0, "max": _MOST_PIXELS, "step": 8}
        own = "0: as the pipeline has it."
        return {
            "required": {
                "service": (_SERVICE, {"tooltip": "From the AsyncDiff Service."}),
                "prompt": ("STRING", {**text, "tooltip": "What to draw."}),
                "negative_prompt": ("STRING", {**text, "tooltip": "What not to draw. Not sent where it is empty."}),
                "seed": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": _MOST_SEED,
                        "control_after_generate": True,
                        "tooltip": "Of the noise. The same request with the same seed is the same picture.",
                    },
                ),
                "steps": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": _MOST_STEPS,
                        "tooltip": "Denoising steps. 0: as the service has it.",
                    },
                ),
                "guidance_scale": (
                    "FLOAT",
                    {
                        "default": float(BELOW_ALL),
                        "min": float(BELOW_ALL),
                        "max": _MOST_SCALE,
                        "step": 0.1,
                        "round": 0.01,
                        "tooltip": f"How closely the prompt is followed. {BELOW_ALL}: as the pipeline has it.",
                    },
                ),
                "width": ("INT", {**pixels, "tooltip": f"Pixels. {own}"}),
                "height": ("INT", {**pixels, "tooltip": f"Pixels. {own}"}),
                "batch_size": (
                    "INT",
                    {
                        "default": 1,
                        "min": 1,
                        "max": _MOST_PICTURES,
                        "tooltip": "How many pictures, at once: the service's n.",
                    },
                ),
            },
            "optional": {
                "settings": (_SETTINGS, {"tooltip": "From AsyncDiff Settings. Without: as the service has them."}),
                "image": ("IMAGE", {"tooltip": "To begin with, for a pipeline that takes one."}),
                "mask": ("MASK", {"tooltip": "Where it is white, the image is painted anew."}),
                "control_image": ("IMAGE", {"tooltip": "Edges, a depth or a pose, for a pipeline with ControlNet."}),
                "arguments": (
                    "STRING",
                    {"default": "", "tooltip": 'Others of the pipeline\'s, as JSON: {"strength": 0.6}, for instance.'},
                ),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(
        cls, width: int | None = None, height: int | None = None, arguments: str | None = None
    ) -> bool | str:
        told = True if width is None or height is None else _sentence(_size, width, height)
        return _sentence(read_arguments, arguments) if told is True and arguments else told

    def draw(
        self,
        service: Service,
        prompt: str,
        negative_prompt: str,
        seed: int,
        steps: int,
        guidance_scale: float,
        width: int,
        height: int,
        batch_size: int,
        settings: Mapping[str, Any] | None = None,
        image: Any = None,
        mask: Any = None,
        control_image: Any = None,
        arguments: str = "",
    ) -> tuple[Any, str]:
        """
        Raises:
            InputError: a width without a height, or arguments that are none.
            ServiceError: the service has refused it, in its own words, has failed, or is gone.
        """
        own = {
            "steps": steps or None,
            "guidance_scale": None if guidance_scale == BELOW_ALL else guidance_scale,
            "negative_prompt": negative_prompt or None,
            "image": _sent(image),
            "mask": _sent(mask),
            "control_image": _sent(control_image),
            "arguments": read_arguments(arguments) or None,
        }
        request = {
            "model": service.model,
            "prompt": prompt,
            "seed": seed,
            "n": batch_size,
            "size": _size(width, height),
            "asyncdiff": {**{name: value for name, value in own.items() if value is not None}, **(settings or {})},
        }
        drawn = Client(service.address, _check).draw(request, service.seconds, _Bar().tell)
        return images_of([picture.file for picture in drawn.pictures]), _about(drawn, service.model)


class _Bar:
    """The bar that ComfyUI shows in the node."""

    def __init__(self) -> None:
        self._bar = comfy.utils.ProgressBar(1)

    def tell(self, done: int, total: int | None) -> None:
        if total is not None:
            self._bar.update_absolute(done, total)


def _check() -> None:
    """Raises what ComfyUI ends a workflow by, if somebody wants it to end."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def _sent(images: Any) -> str | list[str] | None:
    """One picture, or a list of them, as a request holds them."""
    if images is None:
        return None
    texts = texts_of(images)
    return texts[0] if len(texts) == 1 else texts


def _size(width: int, height: int) -> str | None:
    """Of the pictures; None for the pipeline's own.

    Raises:
        InputError: it is none.
    """
    if not width and not height:
        return None
    if width <= 0 or height <= 0:
        raise InputError(
            f"width and height must both be numbers of pixels, or both 0 for those of the pipeline, not {width} and "
            f"{height}"
        )
    return f"{width}x{height}"


def _about(drawn: Drawn, model: str) -> str:
    """What was done, for people."""
    first, count = drawn.pictures[0], len(drawn.pictures)
    calls = ", ".join(f"{number} {kind}" for kind, number in first.steps.items() if number)
    return (
        f"{count} {'picture' if count == 1 else 'pictures'} of {first.size} by {model}, seed {first.seed}, in "
        f"{first.seconds:.2f} s ({drawn.seconds:.2f} s with waiting); denoiser calls: {calls or 'none'}"
    )


def _sentence(check: Any, *given: Any) -> bool | str:
    """True, or what is wrong, as ComfyUI wants it before a workflow is run."""
    try:
        check(*given)
    except InputError as error:
        return str(error)
    return True
