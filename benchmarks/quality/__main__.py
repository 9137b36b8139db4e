"""Draws, measures and judges: `python -m benchmarks.quality`. What is measured already is not measured again."""

import argparse
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.quality import claims, distributed, table
from benchmarks.quality.drawing import reference, reference_path
from benchmarks.quality.measuring import measure
from benchmarks.quality.settings import MODELS, PARTS, Setting, points
from benchmarks.quality.store import Store

_RESULTS_PAGE = Path("docs/quality-results.md")

_console = Console()


def main() -> int:
    """Measure what is missing, or tell what has been measured."""
    given = _arguments()
    torch.set_num_threads(1)
    store = Store(given.results)
    if given.check_distributed:
        distributed.check(given.models, given.results / "distributed.json")
    if given.claims:
        judged = claims.markdown(claims.check(store, given.models))
        _console.print(Markdown(judged))
        table.insert(given.claims, {"claims": judged, "points": table.markdown(store)})
    if given.plots:
        from benchmarks.quality import plots  # needs the extra "study", measuring does not

        plots.draw_all(store, given.models, given.plots)
    if given.check_distributed or given.claims or given.plots:
        return 0
    wanted = points(given.models, given.only, given.prompts)
    missing = [setting for setting in wanted if given.again or setting not in store]
    _console.print(f"{len(wanted)} points, {len(missing)} to measure")
    failures = run(missing, store, given.references, given.processes, given.device)
    for failure in failures:
        _console.print(failure, markup=False, style="red")
    return 1 if failures else 0


def run(missing: list[Setting], store: Store, references: Path, processes: int, device: str = "cpu") -> list[str]:
    """Measure the points and store each as soon as it is there; returns what failed."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    failures = []
    with _pool(processes) as pool, Progress(*columns, console=_console) as progress:
        # Many points have the same reference: these first, so that no two processes draw the same.
        plain = {reference_path(setting, references): setting for setting in missing}
        absent = [setting for path, setting in plain.items() if not path.exists()]
        drawing = [pool.submit(reference, setting, references, device) for setting in absent]
        for drawn in progress.track(as_completed(drawing), total=len(drawing), description="plain pipeline"):
            drawn.result()
        measuring = {pool.submit(measure, setting, references, device): setting for setting in missing}
        for measured in progress.track(as_completed(measuring), total=len(measuring), description="points"):
            if error := measured.exception():
                failures.append(f"{measuring[measured]!r}: {type(error).__name__}: {error}")
                continue
            store.add(measured.result())
            progress.console.print(table.row(measured.result()), soft_wrap=True)
    return failures


def _pool(processes: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, mp_context=context, initializer=torch.set_num_threads, initargs=(1,))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS, help="which points to measure")
    parser.add_argument(
        "--prompts",
        type=int,
        default=128,
        help="pictures of the base point; of a claim's half, of one factor's a fourth",
    )
    parser.add_argument("--processes", type=int, default=1, help="so many points at a time, one thread each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--again", action="store_true", help="measure anew what has been measured")
    parser.add_argument(
        "--claims", type=Path, nargs="?", const=Path("docs/quality-results.md"), help="judge the results"
    )
    parser.add_argument("--plots", type=Path, nargs="?", const=Path("docs/images"), help="draw the results")
    parser.add_argument("--check-distributed", action="store_true", help="hold points against real processes")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/quality"))
    parser.add_argument("--references", type=Path, default=Path("build/quality"), help="the plain pipeline's pictures")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
