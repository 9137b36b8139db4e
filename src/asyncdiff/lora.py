"""LoRA files that are put on a pipeline, with their scales, before its denoiser is divided."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncdiff.errors import AsyncDiffError, ConfigurationError, ModelError
from asyncdiff.plan.numbers import shown


@dataclass(frozen=True)
class Lora:
    """A file of LoRA weights, and by how much they count."""

    file: Path
    scale: float = 1.0


def read_lora(text: str) -> Lora:
    """A LoRA that is written FILE, or FILE=SCALE.

    Raises:
        ConfigurationError: there is no such file, it is no safetensors file, or the scale is no number.
    """
    name, equals, scale = text.rpartition("=")
    file = Path(text)
    number = 1.0
    if equals and not file.exists():
        file = Path(name)
        try:
            number = float(scale)
        except ValueError as error:
            raise ConfigurationError(f"{text!r}: the scale of a LoRA is a number, not {shown(scale)}") from error
        if not math.isfinite(number):
            raise ConfigurationError(f"{text!r}: the scale of a LoRA is a finite number, not {shown(scale)}")
    if not file.is_file():
        raise ConfigurationError(f"there is no file {str(file)!r}; a LoRA is written FILE or FILE=SCALE")
    if file.suffix != ".safetensors":
        raise ConfigurationError(f"{str(file)!r} is no .safetensors file: others can run code when they are read")
    return Lora(file.absolute(), number)


def put_on(pipe: Any, loras: Sequence[Lora]) -> None:
    """Load them into a pipeline, or into `Workers`, and set their scales.

    Raises:
        ConfigurationError: the pipeline takes no LoRA.
        ModelError: a file is none for this pipeline.
    """
    if not loras:
        return
    if not hasattr(pipe, "load_lora_weights") or not hasattr(pipe, "set_adapters"):
        raise ConfigurationError(f"{type(pipe).__name__} takes no LoRA")
    names = [f"lora_{number}" for number in range(1, len(loras) + 1)]
    for name, lora in zip(names, loras, strict=True):
        file = Path(lora.file)  # which is text after a way between processes
        try:
            pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
        except (AsyncDiffError, MemoryError):
            raise
        except Exception as error:  # whatever the libraries stumble over in a file
            said = " ".join(str(error).split()) or type(error).__name__
            raise ModelError(f"{file} cannot be loaded as a LoRA of {type(pipe).__name__}: {said}") from error
    try:
        pipe.set_adapters(names, [lora.scale for lora in loras])
    except (AsyncDiffError, MemoryError):
        raise
    except Exception as error:  # of a file for another model nothing was loaded
        files = ", ".join(str(lora.file) for lora in loras)
        raise ModelError(f"{files}: one of them holds nothing for {type(pipe).__name__}") from error
