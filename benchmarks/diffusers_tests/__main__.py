"""Run diffusers' own pipeline tests without AsyncDiff, with all steps in full, and with rounds.

python -m benchmarks.diffusers_tests --diffusers ../diffusers                       # all: hours, on two cores
python -m benchmarks.diffusers_tests --diffusers ../diffusers --only flux sd3       # some folders of tests/pipelines
python -m benchmarks.diffusers_tests --diffusers ../diffusers -k "not lora" --processes 1
python -m benchmarks.diffusers_tests --diffusers ../diffusers --resume              # what was finished before is kept
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import peft
import transformers

from benchmarks.diffusers_tests.records import Record, read
from benchmarks.diffusers_tests.stand_ins import make_hub, names
from benchmarks.diffusers_tests.summary import differing, summarise, table
from benchmarks.machine import machine

_ROOT = Path(__file__).parents[2]
_WORK = _ROOT / "build" / "diffusers-tests"
_RESULTS = _ROOT / "benchmarks" / "results" / "diffusers-tests.json"
_MODES = ("full", "rounds")
_FILES = 12  # of a part


def main() -> None:
    """Run the modes of one part after the other; write the results so far and print their counts."""
    begin = time.monotonic()
    given = _arguments()
    checkout = _checkout(given.diffusers)
    hub = make_hub(given.work / "hub")
    seen: dict[str, dict[str, Record]] = {name: {} for name in ("plain", *given.modes, "again")}
    parts = _parts(_targets(checkout, given.only))
    for number, files in enumerate(parts, 1):
        print(f"part {number} of {len(parts)}", flush=True)
        _run_part(seen, _Runs(checkout, hub, given, f"{number:03}"), files)
        if not seen["plain"]:
            sys.exit(f"no test was run; see {given.work}/*-plain.log")
        summary = summarise(seen["plain"], {mode: seen[mode] for mode in given.modes}, seen["again"])
        seconds = {name: round(sum(record.seconds for record in seen[name].values())) for name in seen}
        content = {"machine": machine(), **_versions(checkout, given), "seconds_of_tests": seconds}
        content |= {"parts": f"{number} of {len(parts)}", **summary}
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(summary))
    print(f"{given.output}, {time.monotonic() - begin:.0f} s; the tests' own words: {given.work}/*.log")


def _run_part(seen: dict[str, dict[str, Record]], runs: "_Runs", files: Sequence[Path]) -> None:
    """Some files in all modes; what was seen is added."""
    plain = runs.run("plain", "plain", files)
    attached = {mode: runs.run(mode, mode, files) for mode in runs.given.modes}
    unclear = differing(plain, attached.get("full", {}))
    # Whole files: what a class of tests computes once is computed in the first of them.
    files = sorted({runs.checkout / test.split("::")[0] for test in unclear})
    again = runs.run("again", "plain", files) if files else {}
    for name, records in {"plain": plain, **attached, "again": again}.items():
        seen[name] |= records


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diffusers_tests", description=__doc__.split("\n")[0])
    parser.add_argument("--diffusers", type=Path, help="the checkout; by default what DIFFUSERS names")
    parser.add_argument("--only", nargs="+", default=[], help="folders or files of tests/pipelines; by default all")
    parser.add_argument("-k", help="which tests, as pytest takes it")
    parser.add_argument("--modes", nargs="+", choices=_MODES, default=list(_MODES))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--resume", action="store_true", help="do not run again what a broken-off run left in --work")
    parser.add_argument("--work", type=Path, default=_WORK, help="where what was seen is kept; for one run at a time")
    parser.add_argument("--output", type=Path, default=_RESULTS)
    given = parser.parse_args()
    given.work = given.work.resolve()
    given.diffusers = given.diffusers or (Path(os.environ["DIFFUSERS"]) if os.environ.get("DIFFUSERS") else None)
    return given


def _checkout(told: Path | None) -> Path:
    """Where diffusers' tests are; ends with advice where they are not."""
    version = diffusers.__version__
    advice = f"git clone --depth 1 --branch v{version} https://github.com/huggingface/diffusers"
    if told is None or not (told / "tests" / "pipelines").is_dir():
        place = "DIFFUSERS names no checkout" if told is None else f"there is no tests/pipelines in {told}"
        sys.exit(
            f"{place}: diffusers' tests are not part of its package. Get them, and say where they are:\n"
            f"  {advice}\n  DIFFUSERS=./diffusers make test-diffusers"
        )
    checkout = told.resolve()
    tests_of = _version(checkout)
    if tests_of != version:
        print(f"the tests are of diffusers {tests_of}, installed is {version}; tests that fit:\n  {advice}")
    return checkout


def _version(checkout: Path) -> str:
    source = checkout / "src" / "diffusers" / "__init__.py"
    found = re.search(r'__version__ = "(.*)"', source.read_text(encoding="utf-8")) if source.exists() else None
    return found.group(1) if found else "unknown"


def _targets(checkout: Path, only: Sequence[str]) -> list[Path]:
    folder = checkout / "tests" / "pipelines"
    targets = [folder / name for name in only] or [folder]
    missing = [str(target) for target in targets if not target.exists()]
    if missing:
        sys.exit(f"not there: {', '.join(missing)}")
    return targets


def _parts(targets: Sequence[Path]) -> list[list[Path]]:
    """A few files each: a run of hours that is broken off has lost one of them."""
    files = sorted(
        {file for target in targets for file in (target.rglob("test_*.py") if target.is_dir() else [target])}
    )
    return [files[first : first + _FILES] for first in range(0, len(files), _FILES)]


def _versions(checkout: Path, given: argparse.Namespace) -> dict[str, Any]:
    return {
        "versions": {"transformers": transformers.__version__, "peft": peft.__version__, "tests": _version(checkout)},
        "chosen": {"only": given.only, "k": given.k},
        "stand_ins": names(),
    }


@dataclass(frozen=True)
class _Runs:
    """The runs of one part of the tests: one for each mode.

    Attributes:
        hub: what stands in for the model hub.
        part: its name among those of what is written.
    """

    checkout: Path
    hub: Path
    given: argparse.Namespace
    part: str

    def run(self, name: str, mode: str, files: Sequence[Path]) -> dict[str, Record]:
        """By pytest; what it says goes to a file, what was seen is returned."""
        records, log = self._file(f"{name}.jsonl"), self._file(f"{name}.log")
        if self.given.resume and records.exists():
            return read(records)
        unfinished = records.with_suffix(".unfinished")
        unfinished.write_text("", encoding="utf-8")
        command: list[Any] = [sys.executable, "-B", "-m", "pytest", "-c", self.checkout / "pyproject.toml"]
        command += ["--rootdir", self.checkout, "-p", "no:cacheprovider", "-W", "ignore", "-q", "--tb=short"]
        command += ["-p", "benchmarks.diffusers_tests.plugin", "--continue-on-collection-errors"]
        command += ["--asyncdiff-mode", mode, "--asyncdiff-records", unfinished]
        command += [] if name == "plain" else ["--asyncdiff-like", self._file("plain.jsonl")]
        # A class is tested by one process: what it computes once is then computed at the same place in every run.
        processes = self.given.processes
        command += ["-n", str(processes), "--dist", "loadscope"] if processes > 1 else []
        command += ["-k", self.given.k] if self.given.k else []
        # Nothing that lies in the user's own cache is used: what can be run must not depend on it.
        offline = {"HF_HUB_CACHE": str(self.hub), "HF_HOME": str(self.given.work), "HF_HUB_OFFLINE": "1"}
        print(f"  {name} … ({log})", flush=True)
        with log.open("w", encoding="utf-8") as output:
            subprocess.run(
                [*map(str, command), *map(str, files)],
                cwd=_ROOT,
                env=os.environ | offline | {"PYTHONHASHSEED": "0"},
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
        unfinished.rename(records)
        return read(records)

    def _file(self, name: str) -> Path:
        work: Path = self.given.work
        return work / f"{self.part}-{name}"


if __name__ == "__main__":
    main()
