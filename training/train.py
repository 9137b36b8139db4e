"""Train, export and measure the two demo pipelines of asyncdiff.

In order: `vae`, then `unet` and `dit` (at the same time if there are cores for both) and `decoder`,
then `export`, `evaluate` and `grid`. `classifier` needs none of them.
Every training continues where its work folder left off.
"""

from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from asyncdiff.demo import load_demo
from training.autoencoder import AutoencoderTask, DecoderTask, encode, load_autoencoder, to_tensor
from training.classifier import ClassifierTask, export_classifier
from training.denoisers import Adapter, DenoiserTask, DiTAdapter, UNetAdapter
from training.emoji import DEFAULT_FONT, all_glyphs, load_font, prompted_pictures, render
from training.export import export_pipeline, export_reference, record
from training.loop import Trainer
from training.measure import measure_agreement, sample_grid
from training.tokenizer import build_tokenizer

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)

DEFAULT_CHECKPOINTS = Path(__file__).parents[1] / "src" / "asyncdiff" / "checkpoints"


class Demo(str, Enum):
    UNET = "unet"
    DIT = "dit"


_ADAPTERS: dict[Demo, type[UNetAdapter] | type[DiTAdapter]] = {Demo.UNET: UNetAdapter, Demo.DIT: DiTAdapter}

WorkFolder = Annotated[Path, typer.Option("--work", help="Folder of checkpoints and previews.")]
Minutes = Annotated[float, typer.Option(help="Wall-clock budget; the learning rate decays to its end.")]
BatchSize = Annotated[int, typer.Option(help="Pictures per step.")]
Device = Annotated[str, typer.Option(help="Where to compute, e.g. cpu or cuda.")]
Threads = Annotated[int, typer.Option(help="CPU threads.")]
Seed = Annotated[int, typer.Option(help="Seed of all random numbers.")]
Font = Annotated[Path, typer.Option(help="NotoColorEmoji.ttf")]
Checkpoints = Annotated[Path, typer.Option(help="Folder that is shipped.")]
Guidance = Annotated[float, typer.Option(help="Guidance scale.")]
Steps = Annotated[int, typer.Option(help="Denoising steps.")]


@app.callback()
def main(threads: Threads = 1, seed: Seed = 0) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(seed)


@app.command()
def vae(
    work: WorkFolder,
    minutes: Minutes = 12.0,
    batch_size: BatchSize = 16,
    device: Device = "cpu",
    font: Font = DEFAULT_FONT,
) -> None:
    """Train the autoencoder on every emoji of a single code point."""
    loaded = load_font(font)
    prompted = {picture.glyph for picture in prompted_pictures()}
    others = [render(glyph, loaded) for glyph in all_glyphs(loaded) if glyph not in prompted]
    task = AutoencoderTask(_prompted_pixels(font), to_tensor(others), torch.device(device))
    Trainer(task, work / "vae", torch.device(device)).train(minutes, batch_size)


@app.command()
def decoder(
    work: WorkFolder,
    minutes: Minutes = 8.0,
    batch_size: BatchSize = 16,
    device: Device = "cpu",
    font: Font = DEFAULT_FONT,
) -> None:
    """Train the decoder further, on noisy latents of the prompted pictures; the latents stay as they are."""
    pixels = _prompted_pixels(font)
    task = DecoderTask(load_autoencoder(work, pixels), pixels, torch.device(device))
    Trainer(task, work / "decoder", torch.device(device)).train(minutes, batch_size)


@app.command()
def unet(
    work: WorkFolder,
    minutes: Minutes = 60.0,
    batch_size: BatchSize = 32,
    device: Device = "cpu",
    font: Font = DEFAULT_FONT,
) -> None:
    """Train the UNet of the first pipeline and its text encoder."""
    _train_denoiser(Demo.UNET, work, minutes, batch_size, torch.device(device), font)


@app.command()
def dit(
    work: WorkFolder,
    minutes: Minutes = 60.0,
    batch_size: BatchSize = 32,
    device: Device = "cpu",
    font: Font = DEFAULT_FONT,
) -> None:
    """Train the transformer of the second pipeline and its text encoders."""
    _train_denoiser(Demo.DIT, work, minutes, batch_size, torch.device(device), font)


@app.command()
def classifier(work: WorkFolder, minutes: Minutes = 4.0, batch_size: BatchSize = 96, device: Device = "cpu") -> None:
    """Train the classifier of the quality study on the shipped pictures, and save it beside the study."""
    task = ClassifierTask(torch.device(device))
    trainer = Trainer(task, work / "classifier", torch.device(device))
    trainer.train(minutes, batch_size)
    with trainer.averaged():
        typer.echo(f"recognises {task.accuracy():.1f} % of altered pictures")
        export_classifier(task)


@app.command()
def export(
    name: Demo, work: WorkFolder, checkpoints: Checkpoints = DEFAULT_CHECKPOINTS, font: Font = DEFAULT_FONT
) -> None:
    """Save a trained pipeline in half precision where the package ships it."""
    pixels = _prompted_pixels(font)
    adapter = _build_adapter(name, work, pixels, torch.device("cpu"))
    export_pipeline(adapter, work / name.value, checkpoints / name.value)
    export_reference(prompted_pictures(), pixels, checkpoints)


@app.command()
def evaluate(
    name: Demo,
    guidance: Guidance,
    steps: Steps = 50,
    seeds: Annotated[int, typer.Option(help="Pictures per prompt.")] = 1,
    every: Annotated[int, typer.Option(help="Take every n-th prompt only.")] = 1,
    device: Device = "cpu",
    checkpoints: Checkpoints = DEFAULT_CHECKPOINTS,
) -> None:
    """Measure the prompt agreement of a shipped pipeline and record it beside the weights."""
    agreement = measure_agreement(load_demo(name.value).to(device), guidance, steps, seeds, every)
    typer.echo(agreement)
    record(checkpoints / name.value, agreement)


@app.command()
def grid(
    name: Demo,
    guidance: Guidance,
    picture: Annotated[Path, typer.Option(help="Where to save the grid.")],
    steps: Steps = 50,
    seed: Seed = 0,
) -> None:
    """Draw a grid of labelled samples of a shipped pipeline."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    sample_grid(load_demo(name.value), guidance, steps, seed).save(picture, optimize=True)


def _train_denoiser(name: Demo, work: Path, minutes: float, batch_size: int, device: torch.device, font: Path) -> None:
    pixels = _prompted_pixels(font)
    adapter = _build_adapter(name, work, pixels, device)
    latents = encode(adapter.pipeline.vae, pixels.to(device))
    captions = [picture.captions for picture in prompted_pictures()]
    Trainer(DenoiserTask(adapter, latents, captions), work / name.value, device).train(minutes, batch_size)


def _build_adapter(name: Demo, work: Path, pixels: Tensor, device: torch.device) -> Adapter:
    autoencoder = load_autoencoder(work, pixels)
    tokenizer = build_tokenizer(caption for picture in prompted_pictures() for caption in picture.captions)
    return _ADAPTERS[name](autoencoder, tokenizer, device)


def _prompted_pixels(font: Path) -> Tensor:
    loaded = load_font(font)
    return to_tensor([render(picture.glyph, loaded) for picture in prompted_pictures()])


if __name__ == "__main__":
    app()
