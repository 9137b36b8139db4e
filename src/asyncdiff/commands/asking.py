"""The options that say what is asked of a pipeline, the same in all commands that call one."""

import functools
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from asyncdiff.commands.options import Guidance, Steps, with_parameters
from asyncdiff.commands.terminal import refuse
from asyncdiff.errors import AsyncDiffError, ConfigurationError, ModelError
from asyncdiff.lora import Lora, read_lora
from asyncdiff.request.files import read_picture, read_pictures
from asyncdiff.request.signature import Signature
from asyncdiff.request.values import read_arguments, read_values
from asyncdiff.request.words import Request, lacking, read_size

LoraFiles = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE[=SCALE]", help="LoRA weights, a .safetensors file. Can be given again."),
]


def _options(
    *,
    steps: Steps = 50,
    guidance: Guidance = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What is not to be drawn.")] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", readable=False, help="A picture to begin with, or to animate; can be given again."
        ),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(metavar="FILE", readable=False, help="What of the picture is painted anew: white.")
    ] = None,
    control_image: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", readable=False, help="A picture, or a video, that controls a ControlNet."),
    ] = None,
    video: Annotated[
        Path | None, typer.Option(metavar="FILE", readable=False, help="A video to begin with: .mp4, .gif.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="WIDTHxHEIGHT", help="In pixels. [default: the pipeline's own]")
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Of a video. [default: the pipeline's own]")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A further argument of the pipeline's call; VALUE as JSON, as text, or @FILE: a picture, a video, "
            ".txt, .json, .npy, .safetensors. Can be given again.",
        ),
    ] = None,
    lora: LoraFiles = None,
) -> None:
    """What stands in the place of the parameters `asked` and `loras` of a command."""


def with_request(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a request, in the place of its parameter `asked`, and of `loras` after it.

    Its parameters `prompt` and `count`, if it has them, belong to the request as well. The command calls `asked` for
    the request when it has looked at all else: what the pipeline can be asked for, libraries know that take seconds to
    be imported.
    """
    own = [
        parameter.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for parameter in inspect.signature(_options, eval_str=True).parameters.values()
    ]

    @functools.wraps(command)
    def with_record(**given: Any) -> None:
        asked = {parameter.name: given.pop(parameter.name) for parameter in own}
        asked |= {name: given.pop(name) for name in ("prompt", "count") if name in given}
        # What a service's pipeline takes, the service knows.
        model = None if given.get("server") is not None else given["model"]
        command(asked=functools.partial(_request, model, **asked), loras=read_loras(asked["lora"]), **given)

    return with_parameters(with_record, command, {"asked": own, "loras": []})


def _request(model: str | None, **asked: Any) -> Request:
    """The request; the command ends where the pipeline cannot be asked for that, as far as it is known."""
    signature = None if model is None else _signature(model)
    if asked["guidance"] is not None and not math.isfinite(asked["guidance"]):
        refuse(f"--guidance must be a finite number, not {asked['guidance']}.")
    try:
        request = Request(
            prompt=asked.get("prompt"),
            negative_prompt=asked["negative_prompt"],
            image=_pictures("--image", asked["image"]),
            mask=None if asked["mask"] is None else read_picture("--mask", asked["mask"]),
            control_image=_pictures("--control-image", asked["control_image"]),
            video=() if asked["video"] is None else read_pictures("--video", asked["video"]),
            size=None if asked["size"] is None else read_size("--size", asked["size"]),
            frames=asked["frames"],
            count=asked.get("count"),
            guidance=asked["guidance"],
            steps=asked["steps"],
            arguments=read_values(read_arguments(asked["set_"] or ()), signature),
        )
        if signature is not None:
            _check(request, signature, has_prompt="prompt" in asked)
    except AsyncDiffError as error:
        refuse(f"{error}.")
    return request


def _check(request: Request, signature: Signature, has_prompt: bool) -> None:
    """Whether the pipeline can be asked for that, or for that with prompts from elsewhere."""
    if not has_prompt:
        request = request.of("" if "prompt" in signature.names else None)
    elif request.prompt is None and "prompt" in signature.names and not _begins_with_something(request):
        raise ConfigurationError(f"{signature.pipeline} draws a prompt, and none is given")
    missing = lacking(request, signature)
    if missing is not None:
        word, sentence = missing
        raise ConfigurationError(f"{sentence}: --{word.replace('_', '-')}")
    request.arguments_for(signature)


def _begins_with_something(request: Request) -> bool:
    return bool(request.image or request.video) or any("embeds" in name for name in request.arguments)


def _signature(model: str) -> Signature | None:
    from asyncdiff.loading import signature_of

    try:
        return signature_of(model)
    except ModelError:  # which the command says where it looks at the model
        return None


def read_loras(written: list[str] | None) -> tuple[Lora, ...]:
    """The LoRA files that are named; the command ends where one is none."""
    try:
        return tuple(read_lora(text) for text in written or ())
    except AsyncDiffError as error:
        refuse(f"--lora {error}.")


def _pictures(option: str, files: list[Path] | None) -> Any:
    return tuple(picture for file in files or () for picture in read_pictures(option, file))
