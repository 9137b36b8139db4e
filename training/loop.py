"""One training loop for every model here: a wall-clock budget, an average of the weights, resumption."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

_CHECKPOINT = "checkpoint.pt"
_WARM_UP_STEPS = 100
_EMA_DECAY = 0.995
_LOSS_SMOOTHING = 0.98  # for each step
_STEPS_BETWEEN_LOOKS = 10  # at the loss, for which the host waits for the device
_SAVES = 6  # of a whole training, beside the last


class Task(Protocol):
    """What the loop needs to know of a model."""

    modules: nn.ModuleDict
    learning_rate: float
    weight_decay: float

    def loss(self, batch_size: int) -> Tensor:
        """The loss of a freshly drawn batch."""

    def preview(self) -> Image.Image:
        """A picture of what the model can do now."""


@dataclass
class Progression:
    """How far a training has come."""

    steps: int = 0
    seconds: float = 0.0
    loss: float = math.nan
    device: str = "cpu"


class Trainer:
    """Trains a task for a number of minutes; continues where the work folder left off."""

    def __init__(self, task: Task, folder: Path, device: torch.device) -> None:
        self.task = task
        self.device = device
        self.progression = Progression()
        self.parameters = dict(task.modules.named_parameters())
        self.average = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=task.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=task.weight_decay,
            fused=device.type == "cuda",
        )
        self._warmed_up = 0  # steps that the optimizer has taken
        self._folder = folder
        self._checkpoint = folder / _CHECKPOINT
        self._previews = folder / "previews"
        self._previews.mkdir(parents=True, exist_ok=True)
        if self._checkpoint.exists():
            self._restore()
        self.progression.device = str(device)

    def train(self, minutes: float, batch_size: int) -> None:
        """Train until `minutes` have gone into the model, those before a resumption included."""
        budget = minutes * 60
        state = self.progression
        start = time.monotonic() - state.seconds
        kept = state.seconds
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns) as progress:
            bar = progress.add_task("starting", total=budget)
            progress.update(bar, completed=state.seconds)
            while state.seconds < budget:
                for _ in range(_STEPS_BETWEEN_LOOKS):
                    loss = self._step(batch_size, state.seconds / budget)
                    state.steps += 1
                seen = loss.item()
                state.seconds = time.monotonic() - start
                smoothing = _LOSS_SMOOTHING**_STEPS_BETWEEN_LOOKS
                state.loss = seen + smoothing * (state.loss - seen) if math.isfinite(state.loss) else seen
                text = f"{self._folder.name}: step {state.steps}, loss {state.loss:.4f}"
                progress.update(bar, completed=state.seconds, description=text)
                if state.seconds - kept > budget / _SAVES:
                    kept = state.seconds
                    progress.console.print(f"{text}, {state.seconds:.0f} s")
                    self._save()
                    self._preview()
        self._save()
        self._preview()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The task's modules with their averaged weights, in evaluation mode."""
        trained = {name: value.detach().clone() for name, value in self.parameters.items()}
        self._assign(self.average)
        self.task.modules.eval()
        try:
            yield
        finally:
            self._assign(trained)
            self.task.modules.train()

    def _step(self, batch_size: int, elapsed_share: float) -> Tensor:
        state = self.progression
        self._warmed_up += 1
        warm_up = min(1.0, self._warmed_up / _WARM_UP_STEPS)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, elapsed_share)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.task.learning_rate * warm_up * max(cosine, 0.01)
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.task.loss(batch_size)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimizer.step()
        decay = min(_EMA_DECAY, (1 + state.steps) / (10 + state.steps))
        torch._foreach_lerp_(
            list(self.average.values()), [value.detach() for value in self.parameters.values()], 1 - decay
        )
        return loss.detach()

    @torch.no_grad()
    def _assign(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def _preview(self) -> None:
        with self.averaged():
            self.task.preview().save(self._previews / f"{self.progression.steps:06d}.png")

    def _save(self) -> None:
        weights = {name: value.detach() for name, value in self.parameters.items()}
        _write(self._folder, weights, self.average, self.progression, self.optimizer.state_dict())

    def _restore(self) -> None:
        state = torch.load(self._checkpoint, map_location=self.device, weights_only=True)
        self._assign(state["weights"])
        self.average = state["average"]
        self.progression = Progression(**state["progression"])
        if state["optimizer"] is not None:
            self.optimizer.load_state_dict(state["optimizer"])
            self._warmed_up = self.progression.steps


def reopen(modules: nn.ModuleDict, folder: Path, before: Progression) -> None:
    """Make a work folder in which a training goes on from these weights, with an optimizer that knows nothing yet."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach() for name, value in modules.named_parameters()}
    _write(folder, weights, weights, before, None)


def _write(
    folder: Path,
    weights: dict[str, Tensor],
    average: dict[str, Tensor],
    progression: Progression,
    optimizer: dict[str, Any] | None,
) -> None:
    state = {"weights": weights, "average": average, "optimizer": optimizer, "progression": vars(progression)}
    unfinished = (folder / _CHECKPOINT).with_suffix(".part")
    torch.save(state, unfinished)
    unfinished.replace(folder / _CHECKPOINT)


@torch.no_grad()
def load_average(modules: nn.ModuleDict, folder: Path) -> None:
    """Load the averaged weights of a work folder."""
    average = _read(folder)["average"]
    for name, parameter in modules.named_parameters():
        parameter.copy_(average[name])


def has_checkpoint(folder: Path) -> bool:
    """Whether a training has been saved in a work folder."""
    return (folder / _CHECKPOINT).exists()


def progression(folder: Path) -> Progression:
    """How far the training in a work folder has come."""
    return Progression(**_read(folder)["progression"])


def _read(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / _CHECKPOINT, map_location="cpu", weights_only=True)
    return state
