"""Train, export and measure the two demo pipelines of asyncdiff.

`all` does everything: `vae`, then `unet`, `dit` and `decoder` at the same time, then `export`, `evaluate` and `grid`,
which can be called one by one. `classifier` needs none of them.
Every training continues where its work folder left off.
"""

import json
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from asyncdiff.loading import load_pipeline
from training.autoencoder import AutoencoderTask, DecoderTask, encode, load_autoencoder, to_tensor
from training.classifier import ClassifierTask, export_classifier
from training.denoisers import Adapter, DenoiserTask, DiTAdapter, UNetAdapter
from training.emoji import DEFAULT_FONT, all_glyphs, load_font, prompted_pictures, render
from training.export import export_pipeline, export_reference, record
from training.loop import Progression, Trainer, reopen
from training.measure import measure_agreement, sample_grid
from training.tokenizer import build_tokenizer

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)

DEFAULT_CHECKPOINTS = Path(__file__).parents[1] / "src" / "asyncdiff" / "checkpoints"


class Demo(str, Enum):
    UNET = "unet"
    DIT = "dit"


_ADAPTERS: dict[Demo, type[UNetAdapter] | type[DiTAdapter]] = {Demo.UNET: UNetAdapter, Demo.DIT: DiTAdapter}

# Of all minutes; the decoder's are within the denoisers'.
_VAE_SHARE = 0.25
_DECODER_SHARE = 0.25

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
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True  # every batch has the same shape


@app.command(name="all")
def everything(
    work: WorkFolder,
    minutes: Annotated[float, typer.Option(help="For all trainings together; half a day on two cores.")] = 690.0,
    batch_size: BatchSize = 32,
    device: Device = "cpu",
    font: Font = DEFAULT_FONT,
    checkpoints: Checkpoints = DEFAULT_CHECKPOINTS,
) -> None:
    """Train both pipelines, one after the other what needs the other, and export, measure and draw them."""
    common = ["--work", str(work), "--device", device, "--font", str(font)]
    first = _VAE_SHARE * minutes
    _run(["vae", *common, "--minutes", str(first), "--batch-size", str(max(16, batch_size // 4))])
    denoisers = ["--minutes", str(minutes - first), "--batch-size", str(batch_size)]
    of_decoder = ["--minutes", str(_DECODER_SHARE * minutes), "--batch-size", str(max(16, batch_size // 4))]
    _run(
        ["unet", *common, *denoisers],
        ["dit", *common, *denoisers],
        ["decoder", *common, *of_decoder],
    )
    shipped = ["--checkpoints", str(checkpoints)]
    for name in Demo:
        _run(["export", name.value, "--work", str(work), "--font", str(font), *shipped])
    measured = ["--guidance", "5", *shipped, "--device", device]
    _run(*(["evaluate", name.value, *measured] for name in Demo))
    pictures = {name: str(work / f"demo-{name.value}.png") for name in Demo}
    _run(*(["grid", name.value, *measured, "--picture", pictures[name]] for name in Demo))


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


@app.command(name="reopen")
def reopen_shipped(name: Demo, work: WorkFolder, checkpoints: Checkpoints = DEFAULT_CHECKPOINTS) -> None:
    """Make a work folder from a shipped pipeline, so that its training can go on: `unet` or `dit`, with more minutes.

    The learning rate goes on where it was at the minutes that the training has had: of twice as many, in the middle.
    """
    pipeline = _shipped(checkpoints, name, "cpu")
    told = json.loads((checkpoints / name.value / "training.json").read_text(encoding="utf-8"))
    before = Progression(told["steps"], told["seconds"], told["loss"], told["device"])
    reopen(nn.ModuleDict({"vae": pipeline.vae}), work / "vae", Progression())
    parts = {"unet", "transformer", "text_encoder"} & pipeline.components.keys()
    reopen(nn.ModuleDict({part: pipeline.components[part] for part in sorted(parts)}), work / name.value, before)


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
    agreement = measure_agreement(_shipped(checkpoints, name, device), guidance, steps, seeds, every)
    typer.echo(agreement)
    record(checkpoints / name.value, agreement)


@app.command()
def grid(
    name: Demo,
    guidance: Guidance,
    picture: Annotated[Path, typer.Option(help="Where to save the grid.")],
    steps: Steps = 50,
    seed: Seed = 0,
    device: Device = "cpu",
    checkpoints: Checkpoints = DEFAULT_CHECKPOINTS,
) -> None:
    """Draw a grid of labelled samples of a shipped pipeline."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    sample_grid(_shipped(checkpoints, name, device), guidance, steps, seed).save(picture, optimize=True)


def _run(*commands: list[str]) -> None:
    """Commands of this program, each in a process of its own, all at the same time."""
    begun = [subprocess.Popen([sys.executable, "-m", "training.train", *command]) for command in commands]
    codes = [process.wait() for process in begun]
    if any(codes):
        raise typer.Exit(1)


def _train_denoiser(name: Demo, work: Path, minutes: float, batch_size: int, device: torch.device, font: Path) -> None:
    pixels = _prompted_pixels(font)
    adapter = _build_adapter(name, work, pixels, device)
    latents = encode(adapter.pipeline.vae, pixels.to(device))
    captions = [picture.captions for picture in prompted_pictures()]
    Trainer(DenoiserTask(adapter, latents, captions), work / name.value, device).train(minutes, batch_size)


def _shipped(checkpoints: Path, name: Demo, device: str) -> DiffusionPipeline:
    return load_pipeline(str(checkpoints / name.value), "float32", torch.device(device))


def _build_adapter(name: Demo, work: Path, pixels: Tensor, device: torch.device) -> Adapter:
    autoencoder = load_autoencoder(work, pixels)
    tokenizer = build_tokenizer(caption for picture in prompted_pictures() for caption in picture.captions)
    return _ADAPTERS[name](autoencoder, tokenizer, device)


def _prompted_pixels(font: Path) -> Tensor:
    loaded = load_font(font)
    return to_tensor([render(picture.glyph, loaded) for picture in prompted_pictures()])


if __name__ == "__main__":
    app()
