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

from asyncdiff.evaluation.compare import Likeness, pixels
from asyncdiff.evaluation.metrics import mean_and_half_interval
from asyncdiff.evaluation.study import Evaluation, Picture, Scores, Series
from asyncdiff.evaluation.written import devices_of, title_of
from asyncdiff.made.files import FRAMES_PER_SECOND, wav
from asyncdiff.made.media import Frames, Made
from asyncdiff.settings import Settings

_LARGEST_PNG = 256 * 256  # pixels; larger pictures are embedded as JPEG, or the page would be too heavy
_JPEG_QUALITY = 92
_SMALLEST_WIDTH, _LARGEST_WIDTH = 192, 320  # as shown
_WIDEST_FRAME = 640  # of a film: it is hundreds of pictures
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
class Film:
    """Pictures one after the other, in one sheet as a data URI: so many, in rows of so many."""

    sheet: str
    frames: int
    columns: int


@dataclass(frozen=True)
class Shown:
    """What was made, on the page: itself and the difference, its sounds as data URIs, and what is said of it."""

    title: str
    film: Film | None
    difference: Film | None
    sounds: tuple[str, ...]
    caption: str


@dataclass(frozen=True)
class Comparison:
    """One prompt and seed: the sequential picture, then every setting's."""

    prompt: str
    seed: int
    shown: tuple[Shown, ...]

    @property
    def frames(self) -> int:
        """How many pictures play one after the other."""
        film = self.shown[0].film
        return 0 if film is None else film.frames


def render(evaluation: Evaluation) -> str:
    """The page, with everything in it."""
    factor = difference_factor(evaluation)
    environment = Environment(loader=PackageLoader("asyncdiff"), autoescape=True, undefined=StrictUndefined)
    study, first = evaluation.study, evaluation.sequential.pictures[0].made
    return environment.get_template("evaluation.html").render(
        study=study,
        kind=first.kind,
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
        width=min(max(first.frames[0].width if first.frames else 0, _SMALLEST_WIDTH), _LARGEST_WIDTH),
        ratio=first.frames[0].height / first.frames[0].width if first.frames else 1,
        milliseconds=1000 // FRAMES_PER_SECOND,
        comparisons=_comparisons(evaluation, factor),
    )


def describe(setting: Settings) -> str:
    """A setting in words."""
    components, devices, groups = setting.told_components or 1, devices_of(setting), setting.guidance or 1
    words = [
        f"method {setting.method}",
        *_divided(setting, components),
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


def _divided(setting: Settings, components: int) -> list[str]:
    """What a step is divided into, in words."""
    of_layers = [f"{components} component{'s' * (components > 1)}"]
    if setting.tokens is None:
        return [*of_layers, f"stride {setting.stride}"]
    of_tokens = f"{setting.tokens} parts of the tokens{' with fresh keys' if setting.has_fresh_keys else ''}"
    return [of_tokens, *(of_layers if components > 1 else [])]


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
        float(np.percentile(np.abs(pixels(frame) - pixels(original)), _BRIGHT))
        for series in evaluation.series
        for picture, plain in zip(series.pictures, evaluation.sequential.pictures, strict=False)
        for frame, original in zip(picture.made.frames, plain.made.frames, strict=False)
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
    likenesses = () if scores is None else scores.likenesses
    worst = min(range(len(likenesses)), key=lambda number: likenesses[number].worst, default=0)
    seconds = statistics.fmean(picture.seconds for picture in series.pictures) if series.pictures else math.nan
    return Row(
        title=title_of(setting),
        is_chosen=setting == evaluation.study.settings[0],
        devices=str(devices_of(setting)),
        psnr=_psnr([likeness.decibels for likeness in likenesses]) if scores else "",
        worst=decibels(likenesses[worst].worst) if scores else "",
        worst_pair=worst,
        ssim=_ssim(likenesses),
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


def _ssim(likenesses: Sequence[Likeness]) -> str:
    """The mean; of sound, and of pictures that are too small, there is none."""
    found = [likeness.ssim for likeness in likenesses if likeness.ssim is not None]
    return f"{statistics.fmean(found):.4f}" if found else ""


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
        original = evaluation.sequential.pictures[number].made
        shown = [Shown("sequential", film(original.frames), None, _sounds(original), "the original")]
        for series, scores in zip(evaluation.series, evaluation.scores, strict=True):
            if scores is None or series.setting is None:
                continue
            made = series.pictures[number].made
            pairs = zip(made.frames, original.frames, strict=True)
            changed = film(tuple(difference(frame, plain, factor) for frame, plain in pairs))
            caption = _caption(scores.likenesses[number])
            shown.append(Shown(title_of(series.setting), film(made.frames), changed, _sounds(made), caption))
        found.append(Comparison(prompt or "no prompt", seed, tuple(shown)))
    return found


def _caption(likeness: Likeness) -> str:
    worst = f", worst frame {decibels(likeness.worst)}" if likeness.frames > 1 else ""
    return decibels(likeness.decibels) + worst + ("" if likeness.ssim is None else f", SSIM {likeness.ssim:.4f}")


def _sounds(made: Made) -> tuple[str, ...]:
    return tuple(f"data:audio/wav;base64,{base64.b64encode(wav(sound)).decode()}" for sound in made.sounds)


def film(frames: Frames) -> Film | None:
    """The frames in one sheet, in rows; None where there are none."""
    if not frames:
        return None
    if len(frames) == 1:
        return Film(data_uri(frames[0]), 1, 1)
    columns = math.ceil(math.sqrt(len(frames)))
    factor = min(1.0, _WIDEST_FRAME / frames[0].width)
    width, height = round(frames[0].width * factor), round(frames[0].height * factor)
    sheet = Image.new("RGB", (columns * width, math.ceil(len(frames) / columns) * height))
    for number, frame in enumerate(frames):
        row, column = divmod(number, columns)
        sheet.paste(frame.convert("RGB").resize((width, height)), (column * width, row * height))
    return Film(data_uri(sheet), len(frames), columns)


def data_uri(picture: Image.Image) -> str:
    """A picture for a page: without loss where it is small."""
    buffer = io.BytesIO()
    kind = "png" if picture.width * picture.height <= _LARGEST_PNG else "jpeg"
    picture.convert("RGB").save(buffer, kind, quality=_JPEG_QUALITY, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
