"""All points as a table, and how tables get into a page."""

from pathlib import Path

import numpy as np

from benchmarks.quality.measuring import Record
from benchmarks.quality.settings import MODELS
from benchmarks.quality.statistics import mean
from benchmarks.quality.store import Store

_HEADER = (
    "| model | sampler | T | scale | w | point | devices | modelled speed-up | PSNR dB [95 %] | worst | SSIM "
    "| distance | Fréchet (plain) | agreement % (plain) | pictures |"
)


def markdown(store: Store) -> str:
    """One row for every point."""
    records = sorted(store.records, key=_order)
    return "\n".join([_HEADER, "| --- " * (_HEADER.count("|") - 1) + "|", *map(row, records)])


def row(record: Record) -> str:
    """A point as a row of the table."""
    setting = record.setting
    cells = (
        setting.model,
        setting.scheduler,
        setting.steps,
        f"{setting.guidance_scale:g}",
        setting.warmup,
        setting,
        setting.devices,
        f"{record.modelled_speedup:.2f}×",
        mean(record.decibels),
        f"{record.decibels.min():.1f}",
        f"{np.mean(record.similarity):.4f}",
        f"{np.mean(record.distance):.3f}",
        f"{record.frechet:.3f} ({record.frechet_sequential:.3f})",
        f"{record.agreement:.1f} ({record.agreement_sequential:.1f})",
        setting.prompts,
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def insert(page: Path, sections: dict[str, str]) -> None:
    """Put texts between the markers of their names, at the end of the page where there are none."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    for name, content in sections.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if begin not in text:
            text = f"{text}\n{begin}\n{end}\n" if text else f"{begin}\n{end}\n"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{content}\n{end}{rest.partition(end)[2]}"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")


def _order(record: Record) -> tuple[object, ...]:
    setting = record.setting
    sampling = (setting.scheduler, -setting.steps, setting.guidance_scale, setting.warmup)
    return (MODELS.index(setting.model), *sampling, setting.devices, record.modelled_speedup, str(setting))
