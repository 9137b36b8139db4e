"""What a model's folder holds, looked at before anything is loaded, or any library that could load it."""

import json
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from safetensors import SafetensorError, safe_open

from asyncdiff.errors import ModelError

DemoName = Literal["unet", "dit"]

DEMO_MODELS = ("demo-unet", "demo-dit")
CHECKPOINTS = Path(__file__).parent / "checkpoints"
"""Where the demo pipelines are."""

PICKLE_WARNING = (
    "--allow-pickle: weights in .bin files are pickles, and reading a pickle can run code that the file brings. torch "
    "reads them with a narrower reader, which has had holes before. Use it for files of people whom you trust, and "
    "only once: pipe.save_pretrained(folder) writes safetensors, which hold numbers and nothing else."
)

INDEX = "model_index.json"
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_SAFE = ("diffusion_pytorch_model.safetensors", "model.safetensors")
_PICKLED = ("diffusion_pytorch_model.bin", "pytorch_model.bin")


def check_model(model: str, allow_pickle: bool = False, variant: str | None = None) -> None:
    """Look at a folder's files, so that what cannot be loaded is known before processes are started for it.

    What a model on the hub has is known when it is loaded.

    Raises:
        ModelError: there is no such folder, a file in it is missing or broken, or weights are there as pickles only; or
            no part has weights of the variant.
    """
    parts = parts_of(model)
    if variant is not None and (parts or model in DEMO_MODELS):
        check_variant(model, [part.place for part in parts], variant)
    for part in parts:
        _check_weights(part.place, allow_pickle, variant)
        has_some = any(path.suffix in (".safetensors", ".bin") for path in part.place.iterdir())
        if part.library == "diffusers" and (part.place / "config.json").is_file() and not has_some:
            raise ModelError(f"{part.place} has no weights: no .safetensors file")


def check_variant(model: str, places: Iterable[Path], variant: str) -> None:
    """See that some part of a model has weights of a variant.

    Args:
        places: the folders that its parts are in.

    Raises:
        ModelError: none has.
    """
    if not any(has_variant(place, variant) for place in places):
        raise ModelError(
            f"{model} has no weights of the variant {variant!r}: no part of it has a file like "
            f"{of_variant(_SAFE[0], variant)}; leave variant out, or name one that is there"
        )


def has_variant(place: Path, variant: str) -> bool:
    """Whether a folder holds files of a variant, however they are called."""
    return any(f".{variant}." in path.name for path in place.iterdir())


def variant_in(place: Path, variant: str | None) -> str | None:
    """Of which files a folder's weights are read: those of none where it has none of the variant that is wanted."""
    return variant if variant is not None and has_variant(place, variant) else None


def of_variant(name: str, variant: str | None) -> str:
    """What a file of weights, or an index of such files, is called where it is of a variant."""
    start, _, ending = name.rpartition(".")
    return name if variant is None else f"{start}.{variant}.{ending}"


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
            f"{model!r} is a file, but a model is a folder with a {INDEX}, or a hub id; to make a folder of it: "
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
            if not any(path.name != INDEX for path in folder.glob("*.json")):
                raise ModelError(f"the folder {model!r} has no {name!r}, which its {INDEX} names")
            place = folder  # the oldest pipelines have all in one folder
        found.append(Part(name, library, kind, place))
    return found


def folder_of(model: str, fetch: Callable[[], str]) -> Path:
    """Where a model's files are.

    Args:
        fetch: gets those of one on the hub, and returns where they are now.
    """
    if model in DEMO_MODELS:
        return demo_folder(model.removeprefix("demo-"))
    return Path(model) if Path(model).is_dir() else Path(fetch())


def demo_folder(name: str) -> Path:
    """Where a demo pipeline is.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in get_args(DemoName):
        known = " or ".join(repr(known) for known in get_args(DemoName))
        raise ValueError(f"There is no demo pipeline {name!r}; choose {known}.")
    return CHECKPOINTS / name


def index_of(folder: Path) -> dict[str, tuple[str, str]]:
    """The parts that a folder's index says it has, by name: the library that each is of, and its class.

    Raises:
        ModelError: it has no index, or one that cannot be read.
    """
    path = folder / INDEX
    if not path.is_file():
        raise ModelError(f"the folder {str(folder)!r} holds no diffusers pipeline: it has no {INDEX}")
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


def _check_weights(place: Path, allow_pickle: bool, variant: str | None) -> None:
    """Whether the weights in a folder, if any, are whole, and of a format that may be read."""
    try:
        names = {path.name for path in place.iterdir()}
    except OSError as error:
        raise ModelError(f"{place} cannot be read: {error}") from error
    wanted = variant_in(place, variant)
    read = {name for name in (of_variant(name, wanted) for name in _SAFE) if name in names}
    for name in (of_variant(f"{name}.index.json", wanted) for name in _SAFE):
        read |= _shards(place / name, names) if name in names else set()
    for name in sorted(read):
        try:
            (place / name).open("rb").close()  # of what may not be read, the next says that it is not there
            with safe_open(place / name, framework="np"):
                pass
        except OSError as error:
            raise ModelError(f"{place / name} cannot be read: {error}") from error
        except SafetensorError as error:
            raise ModelError(f"{place / name} is no safetensors file, or a part of one only: {error}") from error
    names_of_pickles = [of_variant(each, wanted) for name in _PICKLED for each in (name, f"{name}.index.json")]
    pickled = next((name for name in names_of_pickles if name in names), None)
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
