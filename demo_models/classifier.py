"""A small classifier of the demo pipelines' pictures: its features tell how far two pictures are apart.

Stands in for the networks behind LPIPS and FID, whose weights would have to be downloaded and which know
photographs, not emoji of 64x64 pixels. `training/classifier.py` trains it.
"""

import functools
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from asyncdiff import demo

WEIGHTS = Path(__file__).with_name("classifier.safetensors")
FEATURES = 32
INPUT_SIZE = 32

_CHECKPOINTS = Path(demo.__file__).with_name("checkpoints")
_WIDTHS = (32, 48, 64, 96)
_GROUPS = 8


class Classifier(nn.Module):
    """Tells which of the training pictures a picture shows.

    Takes pictures of shape (count, 3, height, width) with values from 0 to 1, and looks at them at the size
    at which the training pictures come with the package. Group norms, because a batch must not matter.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in zip((3, *_WIDTHS), _WIDTHS, strict=False):
            convolution = nn.Conv2d(before, width, 3, padding=1)
            layers += [convolution, nn.GroupNorm(_GROUPS, width), nn.SiLU(), nn.AvgPool2d(2)]
        side = INPUT_SIZE // 2 ** len(_WIDTHS)
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(_WIDTHS[-1] * side**2, FEATURES))
        self.head = nn.Linear(FEATURES, classes)

    def features(self, pictures: Tensor) -> Tensor:
        """What the classifier sees in the pictures: FEATURES numbers each."""
        small = F.interpolate(pictures, size=(INPUT_SIZE, INPUT_SIZE), mode="area")
        seen: Tensor = self.body(small * 2 - 1)
        return seen

    def forward(self, pictures: Tensor) -> Tensor:
        classes: Tensor = self.head(F.silu(self.features(pictures)))
        return classes


def truth() -> Tensor:
    """The pictures that the demo pipelines have learnt, in the order of their prompts, values from 0 to 1."""
    with Image.open(_CHECKPOINTS / "pictures.png") as column:
        values = np.asarray(column.convert("RGB"), dtype=np.float32) / np.float32(255)
    side = values.shape[1]
    return torch.from_numpy(values.reshape(-1, side, side, 3)).permute(0, 3, 1, 2).contiguous()


def captions() -> list[list[str]]:
    """The captions of every one of these pictures, its prompt first."""
    return [list(names) for names in json.loads((_CHECKPOINTS / "captions.json").read_text(encoding="utf-8"))]


@functools.cache
def load_classifier() -> Classifier:
    """The trained classifier."""
    weights = load_file(WEIGHTS)
    classifier = Classifier(len(weights["head.bias"]))
    classifier.load_state_dict({name: value.float() for name, value in weights.items()})
    return classifier.eval().requires_grad_(False)
