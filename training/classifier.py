"""Trains the classifier that the quality study measures with; needs no font, only what the package ships."""

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from demo_models.classifier import WEIGHTS, Classifier, truth
from training.autoencoder import to_sheet

_SHIFT = 0.12  # of half the picture's side
_ZOOM = 0.12
_COLOUR = 0.15
_NOISE = 0.15
_LABEL_SMOOTHING = 0.05
_BLUR = torch.tensor([1.0, 2.0, 1.0]) / 4


class ClassifierTask:
    """Which picture is it? Shown moved, zoomed, blurred, recoloured and noisy."""

    learning_rate = 3e-3
    weight_decay = 0.02

    def __init__(self, device: torch.device) -> None:
        self._pictures = truth().to(device)
        self.classifier = Classifier(len(self._pictures)).to(device)
        self.modules = nn.ModuleDict({"classifier": self.classifier})

    def loss(self, batch_size: int) -> Tensor:
        indices = torch.randint(len(self._pictures), (batch_size,), device=self._pictures.device)
        predicted = self.classifier(altered(self._pictures[indices])).float()
        return F.cross_entropy(predicted, indices, label_smoothing=_LABEL_SMOOTHING)

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Altered pictures above those that they are taken for."""
        shown = altered(self._pictures[::7])
        taken_for = self._pictures[self.classifier(shown).argmax(dim=1)]
        return to_sheet(torch.cat([shown, taken_for]) * 2 - 1, columns=len(shown))

    @torch.no_grad()
    def accuracy(self, repeats: int = 10) -> float:
        """How many altered pictures are recognised, in per cent."""
        expected = torch.arange(len(self._pictures), device=self._pictures.device)
        hits = [self.classifier(altered(self._pictures)).argmax(dim=1) == expected for _ in range(repeats)]
        return 100 * float(torch.stack(hits).float().mean())


def altered(pictures: Tensor) -> Tensor:
    """The pictures moved, zoomed, blurred, recoloured and noisy, each by its own chance."""
    count, device = len(pictures), pictures.device
    place = torch.zeros(count, 2, 3, device=device)
    place[:, 0, 0] = place[:, 1, 1] = 1 + _ZOOM * _signed(count, device=device)
    place[:, :, 2] = _SHIFT * _signed(count, 2, device=device)
    grid = F.affine_grid(place, list(pictures.shape), align_corners=False)
    moved = 1 - F.grid_sample(1 - pictures, grid, align_corners=False)  # white is outside
    kernel = torch.outer(_BLUR, _BLUR).to(device).expand(3, 1, 3, 3)
    blurred = F.conv2d(F.pad(moved, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    softened = moved + torch.rand(count, 1, 1, 1, device=device) * (blurred - moved)
    gain = 1 + _COLOUR * _signed(count, 3, 1, 1, device=device)
    noise = _NOISE * torch.rand(count, 1, 1, 1, device=device) * torch.randn_like(softened)
    return (1 + (softened - 1) * gain + noise).clamp(0, 1)


def export_classifier(task: ClassifierTask) -> None:
    """Save the weights in half precision where the study finds them."""
    weights = {name: value.half().contiguous() for name, value in task.classifier.state_dict().items()}
    save_file(weights, WEIGHTS)


def _signed(*shape: int, device: torch.device) -> Tensor:
    """Numbers evenly drawn from -1 to 1."""
    return 2 * torch.rand(*shape, device=device) - 1
