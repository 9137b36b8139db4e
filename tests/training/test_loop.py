"""The training loop of the demo models goes on where it was, and from weights alone."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from training.loop import Progression, Trainer, load_average, progression, reopen

CPU = torch.device("cpu")
SECOND = 1 / 60  # in minutes


class Line:
    """Learns to double a number."""

    learning_rate = 0.02
    weight_decay = 0.0

    def __init__(self) -> None:
        self.modules = nn.ModuleDict({"line": nn.Linear(1, 1)})

    def loss(self, batch_size: int) -> Tensor:
        given = torch.randn(batch_size, 1)
        return (self.modules["line"](given) - 2 * given).float().square().mean()

    def preview(self) -> Image.Image:
        return Image.new("RGB", (8, 8))


def test_a_training_goes_on_where_it_was(tmp_path: Path) -> None:
    first = Trainer(Line(), tmp_path, CPU)
    untrained = first.parameters["line.weight"].item()
    first.train(0.5 * SECOND, 16)
    again = Trainer(Line(), tmp_path, CPU)
    assert again.progression == first.progression
    for name, weight in first.parameters.items():
        assert torch.equal(weight, again.parameters[name])
    again.train(SECOND, 16)
    assert again.progression.steps > first.progression.steps
    assert 60 * SECOND <= progression(tmp_path).seconds < 60 * SECOND + 5
    loaded = Line()
    load_average(loaded.modules, tmp_path)
    # How many steps a second has is another thing on every machine.
    assert abs(loaded.modules["line"].weight.item() - 2) < abs(untrained - 2)  # type: ignore[operator]
    assert sorted((tmp_path / "previews").iterdir())


def test_a_training_from_weights_alone_begins_gently(tmp_path: Path) -> None:
    """An optimizer that knows nothing yet would throw the first steps far at a full learning rate."""
    task = Line()
    nn.init.constant_(task.modules["line"].weight, 2.0)  # type: ignore[arg-type]
    reopen(task.modules, tmp_path, Progression(steps=3000, seconds=30 * SECOND, loss=0.1))
    trainer = Trainer(Line(), tmp_path, CPU)
    assert trainer.progression.steps == 3000
    trainer._step(16, 0.5)
    (group,) = trainer.optimizer.param_groups
    assert group["lr"] < 0.02 * Line.learning_rate
    assert abs(trainer.parameters["line.weight"].item() - 2) < 0.01
