"""The study's results: one JSON line for every point, one file for every model."""

import json
from pathlib import Path

from benchmarks.quality.measuring import Record
from benchmarks.quality.settings import MODELS, Setting


class Store:
    """What has been measured; a point measured again takes the place of the older one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._records: dict[Setting, Record] = {}
        for model in MODELS:
            if self._path(model).exists():
                lines = self._path(model).read_text(encoding="utf-8").splitlines()
                self._records |= {record.setting: record for record in map(Record.read, map(json.loads, lines))}

    def __contains__(self, setting: Setting) -> bool:
        return setting in self._records

    @property
    def records(self) -> list[Record]:
        """Each point's, that with the most pictures, in the order in which they were measured first."""
        most: dict[Setting, Record] = {}
        for setting, record in self._records.items():
            known = most.setdefault(setting.regardless_of_prompts, record)
            if known.setting.prompts < setting.prompts:
                most[setting.regardless_of_prompts] = record
        return list(most.values())

    def add(self, record: Record) -> None:
        """Keep a record, on disk too."""
        self._folder.mkdir(parents=True, exist_ok=True)
        known = record.setting in self._records
        self._records[record.setting] = record
        model = record.setting.model
        if not known:
            with self._path(model).open("a", encoding="utf-8") as file:
                file.write(_line(record))
            return
        unfinished = self._path(model).with_suffix(".part")
        own = [_line(other) for other in self._records.values() if other.setting.model == model]
        unfinished.write_text("".join(own), encoding="utf-8")
        unfinished.replace(self._path(model))

    def find(self, setting: Setting) -> Record | None:
        """A point's record, that with the most pictures if there are several."""
        wanted = setting.regardless_of_prompts
        return next((record for record in self.records if record.setting.regardless_of_prompts == wanted), None)

    def _path(self, model: str) -> Path:
        return self._folder / f"{model}.jsonl"


def _line(record: Record) -> str:
    return json.dumps(record.written(), separators=(",", ":")) + "\n"
