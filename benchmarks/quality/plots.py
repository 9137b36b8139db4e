"""The pictures of the study: error against speed-up, error per step, and the drawn pictures side by side."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import BboxBase
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from asyncdiff.demo import DemoName, demo_prompts
from asyncdiff.plan.method import PAPER
from benchmarks.quality import knobs
from benchmarks.quality.drawing import draw, draw_sequentially, prompt_numbers
from benchmarks.quality.measuring import Record, to_pil
from benchmarks.quality.settings import Setting, base
from benchmarks.quality.store import Store

_TITLES: dict[DemoName, str] = {"unet": "demo UNet, DDIM", "dit": "demo DiT, flow matching"}
_PANEL = (6.4, 5.4)
_DPI = 110

# Colours that differ for the colour-blind too; a colour is a number of devices.
_DEVICES = {1: "#777777", 2: "#56b4e9", 3: "#56b4e9", 4: "#0072b2", 8: "#001f4d", 16: "#001f4d"}
_PAPER = "#d55e00"
_TAYLORSEER = "#cc79a7"

# Of a point's word, in printer's points from it: the first that is free.
_PLACES = ((4, 4), (4, -9), (-20, 4), (-20, -9), (4, 12), (4, -17), (-34, 12))

_GRID_PROMPTS = 6
_ENLARGED = 2
_AMPLIFIED = 5
_GAP = 6
_LABEL_WIDTH = 170


def draw_all(store: Store, models: Sequence[DemoName], folder: Path) -> None:
    """Write every picture that the results allow."""
    mpl.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    _figure(models, store, _error_against_speedup, folder / "quality-speedup.png")
    _figure(models, store, _error_per_step, folder / "quality-steps.png")
    for model in models:
        knobs.draw(store, model, _TITLES[model], folder / f"quality-knobs-{model}.png")
        grid(model).quantize(128).save(folder / f"quality-grid-{model}.png", optimize=True)


def _figure(models: Sequence[DemoName], store: Store, panel: Any, path: Path) -> None:
    """One panel for every model."""
    size = (_PANEL[0] * len(models), _PANEL[1])
    figure, axes = plt.subplots(1, len(models), figsize=size, squeeze=False, layout="constrained")
    for axis, model in zip(axes[0], models, strict=True):
        panel(axis, store, model)
        axis.set_title(_TITLES[model])
        if axis.get_legend_handles_labels()[0]:
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, fontsize=8, frameon=False)
        axis.grid(alpha=0.25)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.draw_without_rendering()  # lays it out
    for axis in axes[0]:
        _spread(axis)
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)


def _error_against_speedup(axis: Axes, store: Store, model: DemoName) -> None:
    start = base(model)
    same = [
        record
        for record in store.records
        if (record.setting.model, record.setting.scheduler, record.setting.steps, record.setting.warmup)
        == (model, start.scheduler, start.steps, start.warmup)
        and (record.setting.guidance_scale, record.setting.batch) == (start.guidance_scale, start.batch)
        and (record.setting.max_error, record.setting.cooldown) == (None, None)
    ]
    for devices in (1, 2, 4, 8):
        ours = [record for record in same if record.setting.family == "ours" and record.setting.devices == devices]
        label = f"ours, {devices} device{'s' if devices > 1 else ''}"
        _series(axis, ours, label, color=_DEVICES[devices], marker="o", linestyle="-" if devices == 1 else "none")
        if devices > 1:
            _frontier(axis, ours, _DEVICES[devices])
    _series(axis, _family(same, "paper"), "the paper's method", color=_PAPER, marker="^", linestyle="none")
    _series(axis, _family(same, "TaylorSeer"), "TaylorSeer, 1 device", color=_TAYLORSEER, marker="s", linestyle=":")
    axis.set_xlabel("modelled speed-up of the denoising loop")
    axis.set_ylabel("PSNR to the sequential picture, dB")


def _family(records: Iterable[Record], family: str) -> list[Record]:
    return [record for record in records if record.setting.family == family]


def _series(axis: Axes, records: list[Record], label: str, **style: Any) -> None:
    """Points with a word each."""
    if not records:
        return
    chosen = sorted(records, key=lambda record: record.modelled_speedup)
    speedups = [record.modelled_speedup for record in chosen]
    heights = [float(record.decibels.mean()) for record in chosen]
    axis.plot(speedups, heights, label=label, markersize=5, linewidth=1, **style)
    for record, speedup, height in zip(chosen, speedups, heights, strict=True):
        axis.annotate(
            _short(record.setting),
            (speedup, height),
            xytext=_PLACES[0],
            textcoords="offset points",
            fontsize=7,
            color=style["color"],
        )


def _spread(axis: Axes) -> None:
    """Put the words of points that lie close together where they do not cover each other, if there is such a place."""
    taken: list[BboxBase] = []
    for word in (text for text in axis.texts if isinstance(text, Annotation)):
        for place in (*_PLACES, _PLACES[0]):
            word.set_position(place)
            box = word.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def _frontier(axis: Axes, records: list[Record], color: str) -> None:
    """A line through the points that no other beats in both speed and error."""
    best: list[tuple[float, float]] = []
    for record in sorted(records, key=lambda record: -record.modelled_speedup):
        height = float(record.decibels.mean())
        if not best or height > best[-1][1]:
            best.append((record.modelled_speedup, height))
    if best:
        axis.plot(*zip(*best, strict=True), color=color, linewidth=1, alpha=0.5)


def _short(setting: Setting) -> str:
    if setting.taylorseer:
        return f"k{setting.taylorseer}"
    parts = [f"G{setting.guidance}"] if setting.guidance > 1 else []
    parts += [f"N{setting.components}"] if setting.components > 1 else []
    parts += [f"S{setting.stride}"] if setting.stride > 1 else []
    parts += [f"k{setting.bridge}"] if setting.bridge > 1 else []
    return " ".join(parts)


def _error_per_step(axis: Axes, store: Store, model: DemoName) -> None:
    curves = (
        (base(model, method=PAPER), _PAPER, "-"),
        (base(model, components=4, method=PAPER), _PAPER, "--"),
        (base(model), _DEVICES[4], "-"),
        (base(model, components=4), _DEVICES[4], "--"),
        (base(model, guidance=2, bridge=2), _DEVICES[2], "-"),
        (base(model, components=1, bridge=2), _DEVICES[1], "-"),
    )
    for setting, color, linestyle in curves:
        record = store.find(setting)
        if record:
            errors = [error or float("nan") for error in record.step_error]
            axis.semilogy(range(1, len(errors) + 1), errors, color=color, linestyle=linestyle, label=str(setting))
    axis.set_xlabel("step")
    axis.set_ylabel("relative error of the latent (RMS)")


def grid(model: DemoName) -> Image.Image:
    """The same prompts and seeds drawn by the plain pipeline, the paper's method and ours, with the differences."""
    numbers = prompt_numbers(_GRID_PROMPTS)
    rivals = (
        base(model, method=PAPER),
        base(model, components=3, stride=2, method=PAPER),
        base(model, guidance=2, bridge=2),
    )
    plain = draw_sequentially(base(model), numbers).pictures
    rows: list[tuple[str, Tensor]] = [("plain pipeline", plain)]
    for setting in rivals:
        drawn, account = draw(setting, numbers)
        title = f"{setting}\n{setting.devices} devices, {account.modelled_speedup:.1f}x"
        difference = (drawn.pictures - plain).abs()
        rows += [(title, drawn.pictures), (f"difference x {_AMPLIFIED}", 1 - (_AMPLIFIED * difference).clamp(0, 1))]
    return sheet(rows, [demo_prompts()[number] for number in numbers])


def sheet(rows: list[tuple[str, Tensor]], captions: list[str]) -> Image.Image:
    """Labelled rows of pictures."""
    side = rows[0][1].shape[-1] * _ENLARGED
    font = ImageFont.load_default(size=12)
    width = _LABEL_WIDTH + len(captions) * (side + _GAP)
    sheet = Image.new("RGB", (width, len(rows) * (side + _GAP) + 24), "white")
    canvas = ImageDraw.Draw(sheet)
    for place, caption in enumerate(captions):
        left = _LABEL_WIDTH + place * (side + _GAP)
        canvas.text((left + side / 2, 12), caption, fill="black", font=font, anchor="mm")
    for number, (title, pictures) in enumerate(rows):
        top = 24 + number * (side + _GAP)
        canvas.multiline_text((_GAP, top + side / 2), title, fill="black", font=font, anchor="lm")
        for place, picture in enumerate(torch.unbind(pictures)):
            enlarged = to_pil(picture).resize((side, side), Image.Resampling.BICUBIC)
            sheet.paste(enlarged, (_LABEL_WIDTH + place * (side + _GAP), top))
    return sheet
