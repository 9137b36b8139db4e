"""The options that several commands have; those of the settings are made from the settings themselves."""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from asyncdiff.commands.checks import read_split
from asyncdiff.commands.terminal import refuse
from asyncdiff.errors import AsyncDiffError
from asyncdiff.exchange.backends import check_backend
from asyncdiff.model_files import DEMO_MODELS
from asyncdiff.settings import Knob, MethodName, Settings, in_options, knobs


class Dtype(str, Enum):
    """Number formats of the weights."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


# The methods that have a name. Not every typer that this package supports takes a Literal.
_Method = Enum("_Method", {name.upper(): name for name in get_args(MethodName)}, type=str)  # type: ignore[misc]


Model = Annotated[
    str,
    typer.Option(help=f"{' or '.join(DEMO_MODELS)} (both are part of this package), a hub id, or a pipeline's folder."),
]
Weights = Annotated[
    Dtype | None, typer.Option(help="Number format of the weights. [default: float32 on CPU, float16 on GPU]")
]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        help="Read old checkpoints (.bin) too. They are pickles, which can run code of whoever made them, when they "
        "are read. [default: safetensors only]",
    ),
]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale. [default: the pipeline's own]")]
Steps = Annotated[int, typer.Option(min=1, help="Denoising steps.")]


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for every setting, in the place of its parameter `settings`."""

    @functools.wraps(command)
    def with_record(**given: Any) -> None:
        values = {knob.name: given.pop(_parameter_name(knob)) for knob in _with_option()}
        values["method"] = values["method"].value
        if values["split"] is not None:
            values["split"] = read_split(values["split"])
        try:
            settings = Settings(**values)
            check_backend(settings.backend)
        except AsyncDiffError as error:
            refuse(f"{in_options(str(error), '--')}.")
        command(settings=settings, **given)

    return with_parameters(with_record, command, {"settings": [_option(knob) for knob in _with_option()]})


def with_parameters(
    wrapper: Callable[..., None], command: Callable[..., None], instead: Mapping[str, Sequence[inspect.Parameter]]
) -> Callable[..., None]:
    """Let a command's wrapper have its parameters, with others in the place of some."""
    signature = inspect.signature(command, eval_str=True)
    parameters = [own for each in signature.parameters.values() for own in instead.get(each.name, [each])]
    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper


def is_typed(context: typer.Context, parameter: str) -> bool:
    """Whether an option of a command was typed, and is not the default."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")


def typed_settings(context: typer.Context, settings: Settings) -> dict[str, Any]:
    """Those of the settings that were typed, by name."""
    typed = (knob.name for knob in _with_option() if is_typed(context, _parameter_name(knob)))
    return {name: getattr(settings, name) for name in typed}


def setting_option(name: str) -> Any:
    """The type of a command's parameter that is this one setting."""
    return next(_option(knob).annotation for knob in knobs() if knob.name == name)


def _with_option() -> Iterator[Knob]:
    return (knob for knob in knobs() if knob.is_option)


def _parameter_name(knob: Knob) -> str:
    return knob.option.replace("-", "_")


def _option(knob: Knob) -> inspect.Parameter:
    kind, default = knob.kinds[0], knob.default
    least, text, metavar = knob.least, knob.help, None
    if knob.name == "method":
        kind, default = _Method, _Method(default)
    if knob.name == "split":
        kind, text, metavar = Path, f"JSON file with {knob.help}", "FILE"
    # Files are read, and refused in words of our own, by `checks`.
    name = f"--{knob.option}"
    if kind is bool and default is None:
        name += f"/--no-{knob.option}"
    option = typer.Option(name, help=text, min=least, metavar=metavar, readable=False)
    annotation: Any = Annotated[kind | None if default is None else kind, option]  # type: ignore[valid-type]
    return inspect.Parameter(
        _parameter_name(knob), inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation
    )


Warmup = setting_option("warmup")
SplitFile = setting_option("split")
