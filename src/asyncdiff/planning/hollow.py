"""A pipeline from its configuration files alone: every module is there, and none of its weights takes memory."""

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from huggingface_hub import snapshot_download
from torch import nn

from asyncdiff.demo import quiet_loading
from asyncdiff.errors import ModelError
from asyncdiff.model_files import Part, folder_of, parts_of
from asyncdiff.planning.words import StandInTokenizer
from asyncdiff.weights.files import format_of, in_single_precision, without_memory

_LIBRARIES = {"diffusers": diffusers, "transformers": transformers}

# All that is fetched of a model on the hub: configurations, and the words of tokenizers.
_SMALL_FILES = ("*.json", "*.txt", "*.model")


def hollow_pipeline(model: str, dtype: torch.dtype) -> Any:
    """A pipeline of which everything is as in the model, but for the numbers in its weights. No weights are read.

    Args:
        model: a demo model, a folder, or a hub id; of the last the small files alone are fetched.
        dtype: number format of the weights.

    Raises:
        ModelError: its configuration cannot be read, or needs code that is not installed.
    """
    with quiet_loading():
        folder = _folder_of(model)
        told = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        kind = getattr(diffusers, str(told["_class_name"]), None)
        if kind is None:
            raise ModelError(
                f"{model} is a {told['_class_name']}, which diffusers {diffusers.__version__} does not have"
            )
        parts = {part.name: _part(part, dtype) for part in parts_of(str(folder))}
        wanted = inspect.signature(kind.__init__).parameters.values()
        settings = {name: value for name, value in told.items() if not isinstance(value, list)}
        # Some pipelines insist on being told of parts that they can do without.
        absent = {one.name: None for one in wanted if one.default is one.empty and one.name != "self"}
        known = absent | settings | parts
        given = {one.name: known[one.name] for one in wanted if one.name in known}
        try:
            pipe = kind(**given)
        except Exception as error:  # whatever a constructor stumbles over
            raise ModelError(f"{model} cannot be built from its configuration: {_said(error)}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _folder_of(model: str) -> Path:
    try:
        return folder_of(model, lambda: snapshot_download(model, allow_patterns=list(_SMALL_FILES)))
    except Exception as error:  # of the network, of the hub, or of the disk
        raise ModelError(f"the configuration of {model} cannot be fetched from the hub: {_said(error)}") from error


def _part(part: Part, dtype: torch.dtype) -> Any:
    """A part of a pipeline: without weights, and without words where there are none."""
    kind = _kind(part.library, part.kind)
    if kind is None:
        raise ModelError(f"{part.place} is a {part.library}.{part.kind}, which is not installed")
    try:
        if isinstance(kind, type) and issubclass(kind, nn.Module):
            return _hollow_module(kind, part.place, dtype)
        return _tokenizer(kind, part.place) if "Tokenizer" in part.kind else kind.from_pretrained(part.place)
    except Exception as error:  # whatever the libraries stumble over in a file
        raise ModelError(f"{part.place} cannot be built from its configuration: {_said(error)}") from error


def _kind(library: str, name: str) -> Any:
    """The class of a part; None where it is none that is installed here."""
    if library in _LIBRARIES:
        return getattr(_LIBRARIES[library], name, None)
    try:
        return getattr(importlib.import_module(f"diffusers.pipelines.{library}"), name, None)
    except ImportError:
        return None


def _hollow_module(kind: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    with without_memory():
        if issubclass(kind, diffusers.ModelMixin):
            module: nn.Module = kind.from_config(kind.load_config(folder))
        else:
            module = kind(kind.config_class.from_pretrained(folder))
    _hollow(module, dtype)
    return module.eval()


def _hollow(module: nn.Module, dtype: torch.dtype) -> None:
    """Put views of one number in the place of all weights, so that they are of the right form, and take no memory."""
    single = in_single_precision(module)
    twins: dict[int, nn.Parameter] = {}
    for prefix, part in module.named_modules():
        for name, weight in part._parameters.items():
            if weight is None:
                continue
            if id(weight) not in twins:
                is_number = weight.is_floating_point()
                format_ = format_of(f"{prefix}.{name}", dtype, single) if is_number else weight.dtype
                number = torch.zeros((), dtype=format_).expand(weight.shape)
                # Torch folds a product with a weight that can be trained otherwise than with one that cannot.
                twins[id(weight)] = nn.Parameter(number, weight.requires_grad)
            part._parameters[name] = twins[id(weight)]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(dtype) if buffer.is_floating_point() else buffer


def _tokenizer(kind: Any, folder: Path) -> Any:
    """A part's tokenizer, or what stands for it where there are no words."""
    try:
        return kind.from_pretrained(folder)
    except Exception:  # noqa: BLE001  whatever it misses: it is not needed to know what words there are
        return StandInTokenizer(folder)


def _said(error: Exception) -> str:
    """What a library said, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
