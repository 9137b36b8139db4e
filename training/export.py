"""Writes what the package ships: a pipeline in half precision, and the pictures it has learnt."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from training.autoencoder import to_sheet
from training.denoisers import Adapter
from training.emoji import Picture
from training.loop import load_average, progression

CLIP_PREFIX = "text_model."

_RECORD = "training.json"
_REFERENCE_SIZE = 32


def export_pipeline(adapter: Adapter, work: Path, folder: Path) -> None:
    """Save the averaged weights of a training as an ordinary pipeline folder."""
    load_average(adapter.modules, work)
    adapter.pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    with_usual_names(folder / "text_encoder")
    record(folder, asdict(progression(work)))


def with_usual_names(folder: Path) -> None:
    """Give a CLIP text encoder's weights the names that they have on the hub.

    The newest transformers save them without a prefix; those before silently draw random weights in their place.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] != "clip_text_model":
        return
    for file in folder.glob("*.safetensors"):
        weights = load_file(file)
        named = {key if key.startswith(CLIP_PREFIX) else CLIP_PREFIX + key: value for key, value in weights.items()}
        save_file(named, file, metadata={"format": "pt"})


def export_reference(pictures: Sequence[Picture], pixels: Tensor, folder: Path) -> None:
    """Save small copies of the training pictures, one below the other, and their captions."""
    small = F.interpolate(pixels, size=(_REFERENCE_SIZE, _REFERENCE_SIZE), mode="area")
    to_sheet(small, columns=1).save(folder / "pictures.png", optimize=True)
    captions = [picture.captions for picture in pictures]
    (folder / "captions.json").write_text(json.dumps(captions, indent=0), encoding="utf-8")


def record(folder: Path, facts: dict[str, Any]) -> None:
    """Add facts to the record of a pipeline's training."""
    path = folder / _RECORD
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(known | facts, indent=2) + "\n", encoding="utf-8")
