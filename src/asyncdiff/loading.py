"""Load the pipeline that a command is given: a demo model, a folder, or one from the hub."""

import json
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import logging as transformers_logging

from asyncdiff.api import AsyncDiff, runs_in_processes
from asyncdiff.demo import absent_parts, demo_folder, load_demo, quiet_loading
from asyncdiff.denoiser.find import is_denoiser_class
from asyncdiff.errors import ModelError
from asyncdiff.exchange.world import local_device
from asyncdiff.request.signature import Signature
from asyncdiff.settings import Settings
from asyncdiff.weights.files import can_be_read_by_parts, hollow

DEMO_MODELS = ("demo-unet", "demo-dit")

PICKLE_WARNING = (
    "--allow-pickle: weights in .bin files are pickles, and reading a pickle can run code that the file brings. torch "
    "reads them with a narrower reader, which has had holes before. Use it for files of people whom you trust, and "
    "only once: pipe.save_pretrained(folder) writes safetensors, which hold numbers and nothing else."
)

_INDEX = "model_index.json"
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_SAFE = ("diffusion_pytorch_model.safetensors", "model.safetensors")
_PICKLED = ("diffusion_pytorch_model.bin", "pytorch_model.bin")


def check_model(model: str, allow_pickle: bool = False) -> None:
    """Look at a folder's files, so that what cannot be loaded is known before processes are started for it.

    What a model on the hub has is known when it is loaded.

    Raises:
        ModelError: there is no such folder, a file in it is missing or broken, or weights are there as pickles only.
    """
    for part in parts_of(model):
        _check_weights(part.place, allow_pickle)
        has_some = any(path.suffix in (".safetensors", ".bin") for path in part.place.iterdir())
        if part.library == "diffusers" and (part.place / "config.json").is_file() and not has_some:
            raise ModelError(f"{part.place} has no weights: no .safetensors file")


class Part(NamedTuple):
    """A part of a pipeline in a folder.

    Attributes:
        name: what the pipeline calls it.
        library, kind: the library that it is of, and its class there.
        place: the folder that it is in.
    """

    name: str
    library: str
    kind: str
    place: Path


def parts_of(model: str) -> list[Part]:
    """The parts that a folder's pipeline must have; none of a demo model, or of one on the hub.

    Raises:
        ModelError: there is no such folder, it holds no pipeline, or a part of it is missing.
    """
    folder = Path(model)
    if model in DEMO_MODELS:
        return []
    if folder.is_file():
        raise ModelError(
            f"{model!r} is a file, but a model is a folder with a {_INDEX}, or a hub id; to make a folder of it: "
            "from_single_file() of its pipeline, and save_pretrained()"
        )
    if not folder.is_dir():
        if not _HUB_ID.fullmatch(model):
            raise ModelError(f"there is no folder {model!r}, and a hub id is written owner/name")
        return []
    found = []
    for name, (library, kind) in index_of(folder).items():
        place = folder / name
        if not place.is_dir():
            if not any(path.name != _INDEX for path in folder.glob("*.json")):
                raise ModelError(f"the folder {model!r} has no {name!r}, which its {_INDEX} names")
            place = folder  # the oldest pipelines have all in one folder
        found.append(Part(name, library, kind, place))
    return found


def load_pipeline(
    model: str, dtype: str | None, device: torch.device, allow_pickle: bool = False, is_shared: bool = False
) -> DiffusionPipeline:
    """A demo pipeline, or one from a folder or the hub, on the device; loaded without bars and advice.

    Args:
        model: a demo model, a hub id, or a folder.
        dtype: number format of the weights; None for the usual one of the device.
        allow_pickle: whether weights may be read that are no safetensors.
        is_shared: whether to leave the pipeline on the CPU, and its denoisers' weights in their files, for `AsyncDiff`
            with `shard`.

    Raises:
        ModelError: it cannot be loaded.
    """
    check_model(model, allow_pickle)
    transformers_logging.set_verbosity_error()
    chosen = getattr(torch, dtype) if dtype else (torch.float16 if device.type == "cuda" else torch.float32)
    with quiet_loading():
        if not is_shared:
            return _load(model, chosen, allow_pickle, {}).to(device)
        folder = _fetched(model)
        return _load(model if model in DEMO_MODELS else str(folder), chosen, allow_pickle, hollow_parts(folder, chosen))


def load(model: str, *, dtype: str | None = None, allow_pickle: bool = False, **settings: Any) -> AsyncDiff:
    """Load a pipeline of which this process is to have a share only, and attach AsyncDiff to it.

    Started by torchrun, a rank reads the text encoders, the VAE and the rest, and of the denoiser nothing until its
    first call; then the weights that are its own. Neither its host nor its device ever holds the whole denoiser. The
    pipeline is `.pipe` of what is returned. In a process alone all is loaded, and it computes for all devices.

    Args:
        model: a demo model ("demo-unet", "demo-dit"), a folder, or a hub id.
        dtype: number format of the weights, for instance "bfloat16"; by default float16 on GPUs, else float32.
        allow_pickle: whether weights may be read that are no safetensors; such a denoiser is read whole.
        settings: those of `AsyncDiff`; `shard` is True unless it is given.

    Raises:
        ModelError: it cannot be loaded.
        ConfigurationError, SplitError, ExchangeError: as of `AsyncDiff`.
    """
    chosen = Settings(**({"shard": True} | settings))
    device = local_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    is_shared = chosen.shard and runs_in_processes(chosen)
    return AsyncDiff(load_pipeline(model, dtype, device, allow_pickle, is_shared), **chosen.arguments())


def hollow_parts(folder: Path, dtype: torch.dtype) -> dict[str, nn.Module]:
    """The denoisers of a pipeline by name, with weights that are not read yet.

    Those whose weights cannot be read one by one, because they are quantized or no safetensors, are left out.

    Raises:
        ModelError: the files do not hold all weights.
    """
    found = {}
    for part, (library, name) in index_of(folder).items():
        kind = getattr(diffusers, name, None) if library == "diffusers" else None
        is_model = isinstance(kind, type) and issubclass(kind, nn.Module) and is_denoiser_class(kind)
        if is_model and (folder / part).is_dir() and can_be_read_by_parts(folder / part):
            found[part] = hollow(kind, folder / part, dtype)
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
    name = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["_class_name"]
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    return Signature.of_class(kind, parts) if isinstance(kind, type) else None


def folder_of(model: str, fetch: Callable[[], str]) -> Path:
    """Where a model's files are.

    Args:
        fetch: gets those of one on the hub, and returns where they are now.
    """
    if model in DEMO_MODELS:
        return demo_folder(model.removeprefix("demo-"))
    return Path(model) if Path(model).is_dir() else Path(fetch())


def _fetched(model: str) -> Path:
    """Where a model's files are; those of one on the hub are fetched whole."""
    try:
        return folder_of(model, lambda: DiffusionPipeline.download(model, use_safetensors=True))
    except Exception as error:  # whatever the hub's library stumbles over
        raise ModelError(f"{model} cannot be fetched: {_reason(error, False)}") from error


def _load(model: str, dtype: torch.dtype, allow_pickle: bool, parts: Mapping[str, nn.Module]) -> DiffusionPipeline:
    """The pipeline, on the CPU; parts that are given are not loaded."""
    if model == "demo-unet":
        return load_demo("unet", dtype, **parts)
    if model == "demo-dit":
        return load_demo("dit", dtype, **parts)
    return _from_pretrained(model, dtype, allow_pickle, parts)


def _from_pretrained(
    model: str, dtype: torch.dtype, allow_pickle: bool, parts: Mapping[str, nn.Module]
) -> DiffusionPipeline:
    given = {**(absent_parts(Path(model)) if Path(model).is_dir() else {}), **parts}
    try:
        # None: safetensors where there are any.
        pipe = DiffusionPipeline.from_pretrained(
            model, torch_dtype=dtype, use_safetensors=None if allow_pickle else True, **given
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


def index_of(folder: Path) -> dict[str, tuple[str, str]]:
    """The parts that a folder's index says it has, by name: the library that each is of, and its class.

    Raises:
        ModelError: it has no index, or one that cannot be read.
    """
    path = folder / _INDEX
    if not path.is_file():
        raise ModelError(f"the folder {str(folder)!r} holds no diffusers pipeline: it has no {_INDEX}")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), (str, list)):
        raise ModelError(f"{path} names no pipeline: it must be an object with a '_class_name'")
    return {
        part: (str(source[0]), str(source[1]))
        for part, source in index.items()
        if isinstance(source, list) and len(source) == 2 and not part.startswith("_") and None not in source
    }


def _check_weights(place: Path, allow_pickle: bool) -> None:
    """Whether the weights in a folder, if any, are whole, and of a format that may be read."""
    try:
        names = {path.name for path in place.iterdir()}
    except OSError as error:
        raise ModelError(f"{place} cannot be read: {error}") from error
    read = {name for name in _SAFE if name in names}
    for name in (f"{name}.index.json" for name in _SAFE):
        read |= _shards(place / name, names) if name in names else set()
    for name in sorted(read):
        try:
            (place / name).open("rb").close()  # of what may not be read, the next says that it is not there
            with safe_open(place / name, framework="pt"):
                pass
        except OSError as error:
            raise ModelError(f"{place / name} cannot be read: {error}") from error
        except SafetensorError as error:
            raise ModelError(f"{place / name} is no safetensors file, or a part of one only: {error}") from error
    pickled = next((name for name in _PICKLED if name in names or f"{name}.index.json" in names), None)
    if pickled is not None and not read and not allow_pickle:
        raise ModelError(
            f"{place} has its weights as a pickle only ({pickled}), and reading a pickle can run code that the file "
            "brings; save it as safetensors, or give --allow-pickle if you trust whoever made it"
        )


def _shards(index: Path, names: Collection[str]) -> set[str]:
    """The files among which weights are divided, all of which must be there."""
    try:
        shards = set(map(str, json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{index} is no list of files with weights: {error!r}") from error
    for shard in sorted(shards.difference(names)):
        raise ModelError(f"{index} names {shard}, which is not there")
    return shards
