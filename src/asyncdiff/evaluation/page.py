"""An evaluation as one HTML file: tables, and every picture beside the sequential one with the difference."""

import base64
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from asyncdiff.evaluation.compare import pixels
from asyncdiff.evaluation.metrics import mean_and_half_interval
from asyncdiff.evaluation.study import Evaluation, Picture, Scores, Series, devices_of, title_of
from asyncdiff.settings import Settings

_LARGEST_PNG = 256 * 256  # pixels; larger pictures are embedded as JPEG, or the page would be too heavy
_JPEG_QUALITY = 92
_SMALLEST_WIDTH, _LARGEST_WIDTH = 192, 320  # as shown
_FACTORS = (64, 32, 16, 8, 4, 2, 1)
_BRIGHT = 99  # per cent of a usual picture's differences are not cut off by the factor


@dataclass(frozen=True)
class Row:
    """One line of the summary, as text; empty where there is nothing to say."""

    title: str
    is_chosen: bool
    devices: str
    psnr: str
    worst: str
    worst_pair: int
    ssim: str
    metrics: tuple[str, ...]
    seconds: str
    speedup: str
    modelled: str
    sent: str
    calls: str
    failure: str  # the last line of what was said; a traceback belongs on the terminal


@dataclass(frozen=True)
class Shown:
    """One picture on the page: itself and the difference as data URIs, and what is said of it."""

    title: str
    picture: str
    difference: str
    caption: str


@dataclass(frozen=True)
class Comparison:
    """One prompt and seed: the sequential picture, then every setting's."""

    prompt: str
    seed: int
    pictures: tuple[Shown, ...]


def render(evaluation: Evaluation) -> str:
    """The page, with everything in it."""
    factor = difference_factor(evaluation)
    environment = Environment(loader=PackageLoader("asyncdiff"), autoescape=True, undefined=StrictUndefined)
    study = evaluation.study
    return environment.get_template("evaluation.html").render(
        study=study,
        title=title_of(study.settings[0]),
        described=describe(study.settings[0]),
        local=evaluation.local,
        on_cpu=evaluation.on_cpu,
        machine=evaluation.machine,
        dtype=study.dtype or ("float32" if evaluation.on_cpu else "float16"),
        metrics=evaluation.metrics,
        rows=summary(evaluation),
        notes=[
            (title_of(series.setting), said)
            for series in evaluation.series
            if series.setting
            for said in series.warnings
        ],
        factor=factor,
        width=min(max(evaluation.sequential.pictures[0].image.width, _SMALLEST_WIDTH), _LARGEST_WIDTH),
        comparisons=_comparisons(evaluation, factor),
    )


def describe(setting: Settings) -> str:
    """A setting in words."""
    components, devices, groups = setting.told_components or 1, devices_of(setting), setting.guidance or 1
    words = [
        f"method {setting.method}",
        *(
            [f"{components} component{'s' * (components > 1)}", f"stride {setting.stride}"]
            if setting.tokens is None
            else [f"{setting.tokens} parts of the tokens"]
        ),
        f"{setting.warmup} warm-up step{'s' * (setting.warmup > 1)}",
    ]
    if setting.bridge is not None and setting.bridge > 1:
        words.append(f"one round in {setting.bridge} steps")
    if setting.target_speedup is not None:
        words.append(f"bridged to {setting.target_speedup:g} times the speed")
    if setting.max_error is not None:
        words.append(f"more computed where forecasts are off by more than {setting.max_error:g}")
    if setting.cooldown is not None:
        words.append(f"{setting.cooldown} cool-down step{'s' * (setting.cooldown != 1)}")
    if setting.resync_every is not None:
        words.append(f"in full every {setting.resync_every} steps")
    if groups > 1:
        words.append(f"guidance over {groups} groups of devices")
    if setting.time_shift:
        words.append("timesteps shifted")
    return ", ".join(words) + f"; {devices} device{'s' * (devices > 1)}"


def summary(evaluation: Evaluation) -> list[Row]:
    """The summary: the sequential pipeline first, then every setting."""
    sequential = statistics.fmean(picture.seconds for picture in evaluation.sequential.pictures)
    scores = evaluation.sequential_scores
    first = Row(
        title="sequential",
        is_chosen=False,
        devices="1",
        psnr="",
        worst="",
        worst_pair=0,
        ssim="",
        metrics=tuple(f"{scores[metric.name]:.2f}" if metric.name in scores else "" for metric in evaluation.metrics),
        seconds=f"{sequential:.2f}",
        speedup="",
        modelled="",
        sent="",
        calls="",
        failure="",
    )
    names = [metric.name for metric in evaluation.metrics]
    pairs = zip(evaluation.series, evaluation.scores, strict=True)
    return [first, *(_row(evaluation, series, score, sequential, names) for series, score in pairs)]


def decibels(value: float) -> str:
    """A PSNR as text."""
    return "identical" if math.isinf(value) else f"{value:.1f} dB"


def difference_factor(evaluation: Evaluation) -> int:
    """By what the differences of all pictures are multiplied: as much as shows those of a usual picture whole."""
    differences = [
        float(np.percentile(np.abs(pixels(picture.image) - pixels(original.image)), _BRIGHT))
        for series in evaluation.series
        for picture, original in zip(series.pictures, evaluation.sequential.pictures, strict=False)
    ]
    usual = statistics.median([value for value in differences if value] or [0.0])
    return next((factor for factor in _FACTORS if factor * usual <= 1), 1)


def difference(picture: Image.Image, original: Image.Image, factor: int) -> Image.Image:
    """How far a picture is from the original in each channel, multiplied by the factor; black is equal."""
    values = np.clip(np.abs(pixels(picture) - pixels(original)) * factor, 0, 1)
    return Image.fromarray(np.round(values * 255).astype(np.uint8))


def _row(evaluation: Evaluation, series: Series, scores: Scores | None, sequential: float, names: Sequence[str]) -> Row:
    setting = series.setting
    if setting is None:
        raise ValueError("the sequential series has no setting")
    worst = 0 if scores is None else min(range(len(scores.psnr)), key=scores.psnr.__getitem__)
    seconds = statistics.fmean(picture.seconds for picture in series.pictures) if series.pictures else math.nan
    return Row(
        title=title_of(setting),
        is_chosen=setting == evaluation.study.settings[0],
        devices=str(devices_of(setting)),
        psnr=_psnr(scores.psnr) if scores else "",
        worst=decibels(scores.psnr[worst]) if scores else "",
        worst_pair=worst,
        ssim=f"{statistics.fmean(scores.ssim):.4f}" if scores else "",
        metrics=tuple(f"{scores.metrics[name]:.4g}" if scores else "" for name in names),
        seconds=f"{seconds:.2f}" if scores else "",
        speedup=f"{sequential / seconds:.2f}×" if scores and not evaluation.local else "",
        modelled=_modelled(series.pictures),
        sent=_sent(series.pictures),
        calls=_calls(series.pictures),
        failure=(series.failure or "").strip().rpartition("\n")[2],
    )


def _psnr(values: Sequence[float]) -> str:
    """Mean and interval; pictures without any difference have no PSNR, they are counted."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "identical"
    mean, half = mean_and_half_interval(finite)
    text = f"{mean:.1f} dB" if half is None else f"{mean:.1f} ± {half:.1f} dB"
    equal = len(values) - len(finite)
    return text + (f" ({equal} of {len(values)} identical)" if equal else "")


def _modelled(pictures: Sequence[Picture]) -> str:
    accounts = [picture.account.modelled_speedup for picture in pictures if picture.account]
    means = _means(accounts)
    if len(means) == 1:
        return f"{next(iter(means.values())):.2f}×"
    return ", ".join(f"{name} {value:.2f}×" for name, value in means.items())


def _sent(pictures: Sequence[Picture]) -> str:
    sent = [picture.account.bytes_sent for picture in pictures if picture.account]
    return f"{statistics.fmean(sent) / 2**20:.1f}" if sent else ""


def _calls(pictures: Sequence[Picture]) -> str:
    means = _means([picture.account.calls for picture in pictures if picture.account])
    return ", ".join(f"{value:g} {kind}" for kind, value in means.items() if value)


def _means(accounts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    if not accounts:
        return {}
    return {key: statistics.fmean(account[key] for account in accounts) for key in accounts[0]}


def _comparisons(evaluation: Evaluation, factor: int) -> list[Comparison]:
    found = []
    for number, (prompt, seed) in enumerate(evaluation.study.pairs):
        original = evaluation.sequential.pictures[number].image
        shown = [Shown("sequential", data_uri(original), "", "the original")]
        for series, scores in zip(evaluation.series, evaluation.scores, strict=True):
            if scores is None or series.setting is None:
                continue
            picture = series.pictures[number].image
            caption = f"{decibels(scores.psnr[number])}, SSIM {scores.ssim[number]:.4f}"
            changed = data_uri(difference(picture, original, factor))
            shown.append(Shown(title_of(series.setting), data_uri(picture), changed, caption))
        found.append(Comparison(prompt, seed, tuple(shown)))
    return found


def data_uri(picture: Image.Image) -> str:
    """A picture for a page: without loss where it is small."""
    buffer = io.BytesIO()
    kind = "png" if picture.width * picture.height <= _LARGEST_PNG else "jpeg"
    picture.convert("RGB").save(buffer, kind, quality=_JPEG_QUALITY, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
