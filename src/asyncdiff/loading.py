"""Load the pipeline that a command is given: a demo model, a folder, or one from the hub."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from torch import nn
from transformers.utils import logging as transformers_logging

from asyncdiff.api import AsyncDiff, runs_in_processes
from asyncdiff.demo import absent_parts, load_demo, quiet_loading
from asyncdiff.denoiser.find import is_denoiser_class
from asyncdiff.errors import ModelError
from asyncdiff.exchange.world import local_device
from asyncdiff.model_files import DEMO_MODELS, INDEX, check_model, folder_of, index_of
from asyncdiff.request.signature import Signature
from asyncdiff.settings import Settings
from asyncdiff.weights.files import can_be_read_by_parts, hollow


def load_pipeline(
    model: str,
    dtype: str | None,
    device: torch.device,
    allow_pickle: bool = False,
    is_shared: bool = False,
    variant: str | None = None,
) -> DiffusionPipeline:
    """A demo pipeline, or one from a folder or the hub, on the device; loaded without bars and advice.

    Args:
        model: a demo model, a hub id, or a folder.
        dtype: number format of the weights; None for the usual one of the device.
        allow_pickle: whether weights may be read that are no safetensors.
        is_shared: whether to leave the pipeline on the CPU, and its denoisers' weights in their files, for `AsyncDiff`
            with `shard`.
        variant: of which files weights are read ("fp16": `*.fp16.safetensors`); those of none for parts that have none
            of that.

    Raises:
        ModelError: it cannot be loaded, or no part has weights of the variant.
    """
    check_model(model, allow_pickle, variant)
    transformers_logging.set_verbosity_error()
    chosen = getattr(torch, dtype) if dtype else (torch.float16 if device.type == "cuda" else torch.float32)
    with quiet_loading():
        if not is_shared:
            return _load(model, chosen, allow_pickle, {}, variant).to(device)
        folder = _fetched(model, variant)
        parts = hollow_parts(folder, chosen, variant)
        return _load(model if model in DEMO_MODELS else str(folder), chosen, allow_pickle, parts, variant)


def load(
    model: str,
    *,
    dtype: str | None = None,
    variant: str | None = None,
    allow_pickle: bool = False,
    **settings: Any,
) -> AsyncDiff:
    """Load a pipeline of which this process is to have a share only, and attach AsyncDiff to it.

    Started by torchrun, a rank reads the text encoders, the VAE and the rest, and of the denoiser nothing until its
    first call; then the weights that are its own. Neither its host nor its device ever holds the whole denoiser. The
    pipeline is `.pipe` of what is returned. In a process alone all is loaded, and it computes for all devices.

    Args:
        model: a demo model ("demo-unet", "demo-dit"), a folder, or a hub id.
        dtype: number format of the weights, for instance "bfloat16"; by default float16 on GPUs, else float32.
        variant: of which files weights are read: with "fp16" `diffusion_pytorch_model.fp16.safetensors`, or what
            `diffusion_pytorch_model.safetensors.index.fp16.json` names. Parts without such files have their ordinary
            ones read. What they are read as, `dtype` says.
        allow_pickle: whether weights may be read that are no safetensors; such a denoiser is read whole.
        settings: those of `AsyncDiff`; `shard` is True unless it is given.

    Raises:
        ModelError: it cannot be loaded, or no part has weights of the variant.
        ConfigurationError, SplitError, ExchangeError: as of `AsyncDiff`.
    """
    chosen = Settings(**({"shard": True} | settings))
    device = local_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    is_shared = chosen.shard and runs_in_processes(chosen)
    return AsyncDiff(load_pipeline(model, dtype, device, allow_pickle, is_shared, variant), **chosen.arguments())


def hollow_parts(folder: Path, dtype: torch.dtype, variant: str | None = None) -> dict[str, nn.Module]:
    """The denoisers of a pipeline by name, with weights that are not read yet.

    Those whose weights cannot be read one by one, because they are quantized or no safetensors, are left out.

    Raises:
        ModelError: the files do not hold all weights.
    """
    found = {}
    for part, (library, name) in index_of(folder).items():
        kind = getattr(diffusers, name, None) if library == "diffusers" else None
        is_model = isinstance(kind, type) and issubclass(kind, nn.Module) and is_denoiser_class(kind)
        if is_model and (folder / part).is_dir() and can_be_read_by_parts(folder / part, variant):
            found[part] = hollow(kind, folder / part, dtype, variant)
    return found


def signature_of(model: str) -> Signature | None:
    """What a model's pipeline can be called with, before it is loaded.

    None of one on the hub, and of one whose class is not in diffusers.

    Raises:
        ModelError: the folder's index cannot be read.
    """
    if model not in DEMO_MODELS and not Path(model).is_dir():
        return None
    folder = folder_of(model, lambda: "")
    parts = index_of(folder)
    name = json.loads((folder / INDEX).read_text(encoding="utf-8"))["_class_name"]
    with quiet_loading():  # whose class is imported now, with all that it knows of
        kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    return Signature.of_class(kind, parts) if isinstance(kind, type) else None


def _fetched(model: str, variant: str | None) -> Path:
    """Where a model's files are; those of one on the hub are fetched whole."""
    try:
        return folder_of(model, lambda: DiffusionPipeline.download(model, use_safetensors=True, variant=variant))
    except Exception as error:  # whatever the hub's library stumbles over
        raise ModelError(f"{model} cannot be fetched: {_reason(error, False)}") from error


def _load(
    model: str, dtype: torch.dtype, allow_pickle: bool, parts: Mapping[str, nn.Module], variant: str | None
) -> DiffusionPipeline:
    """The pipeline, on the CPU; parts that are given are not loaded."""
    if model == "demo-unet":
        return load_demo("unet", dtype, **parts)
    if model == "demo-dit":
        return load_demo("dit", dtype, **parts)
    return _from_pretrained(model, dtype, allow_pickle, parts, variant)


def _from_pretrained(
    model: str, dtype: torch.dtype, allow_pickle: bool, parts: Mapping[str, nn.Module], variant: str | None
) -> DiffusionPipeline:
    given = {**(absent_parts(Path(model)) if Path(model).is_dir() else {}), **parts}
    try:
        # None: safetensors where there are any.
        pipe = DiffusionPipeline.from_pretrained(
            model, torch_dtype=dtype, use_safetensors=None if allow_pickle else True, variant=variant, **given
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever the libraries stumble over in a file
        raise ModelError(f"{model} cannot be loaded: {_reason(error, allow_pickle)}") from error
    for part, module in pipe.components.items():
        weights = module.named_parameters() if isinstance(module, nn.Module) else ()
        missing = next((name for name, weight in weights if weight.is_meta), None)
        if missing is not None:
            raise ModelError(f"{model} cannot be loaded: its {part!r} has no weights for {missing!r}")
    return pipe


def _reason(error: Exception, allow_pickle: bool) -> str:
    """What a library said, in one line."""
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError):
        said = f"{said} is missing"
    if "ignore_mismatched_sizes" in said:
        return f"weights of another shape than the configuration beside them says ({said})"
    if not allow_pickle and "safetensors" in said:
        return f"{said} (it may have old checkpoints, .bin, only; --allow-pickle reads those of people whom you trust)"
    return said
