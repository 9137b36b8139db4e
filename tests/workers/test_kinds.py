"""Of which kind a bar's steps were, as denoisers count them and as a pipeline writes its bar."""

from typing import Any

from asyncdiff import AsyncDiff
from asyncdiff.plan.schedule import StepKind
from asyncdiff.report import Counts
from asyncdiff.workers.kinds import Kinds
from asyncdiff.workers.progress import Bar, Events, Telling
from tests.tiny.narrow import load_narrow_demo


def test_a_step_is_called_after_its_costliest_call() -> None:
    counts = {"unet": Counts(), "other": Counts()}
    kinds = Kinds(lambda: counts)
    kinds.begin()
    assert kinds.of_steps(0) == [] and kinds.of_steps(1) == [None]
    for kind in (StepKind.BRIDGED, StepKind.ROUND):
        counts["unet"].add(kind, 0.0)
    assert kinds.of_steps(1) == ["round"]
    counts["other"].add(StepKind.FULL, 0.0)
    counts["unet"].add(StepKind.ROUND, 0.0)
    assert kinds.of_steps(1) == ["full"]
    for kind in (StepKind.ROUND, StepKind.STORED):
        counts["unet"].add(kind, 0.0)
    assert kinds.of_steps(2) == ["round", "stored"]


def test_what_the_generation_before_has_counted_is_not_told_again() -> None:
    counts = {"unet": Counts()}
    kinds = Kinds(lambda: counts)
    counts["unet"].add(StepKind.FULL, 0.0)
    kinds.begin()
    assert kinds.of_steps(1) == [None]
    counts["unet"] = Counts()
    counts["unet"].add(StepKind.ROUND, 0.0)
    assert kinds.of_steps(1) == ["round"]


def test_the_steps_of_a_pipeline() -> None:
    """Every one is written, however short; as the report says of the whole."""
    pipe: Any = load_narrow_demo()
    told: list[Bar] = []

    class Kept(Events):
        def add_bar(self, bar: Bar) -> None:
            told.append(bar)

    with AsyncDiff(pipe, components=2, warmup=3, cooldown=1, guidance=1, bridge=2, executor="local") as attached:
        telling = Telling(Kept(), Kinds(attached.counts))
        pipe.set_progress_bar_config(**telling.config())
        for steps in (12, 10):
            telling.begin()
            told.clear()
            pipe("rocket", num_inference_steps=steps, output_type="latent")
            counts = attached.report().denoisers[0].counts
            assert told[-1] == Bar(0, steps, steps, tuple(kind.value for kind in counts.kinds))
            assert {bar.done for bar in told} == set(range(steps + 1))
            assert all(len(bar.kinds) == bar.done for bar in told)
            assert counts.bridged and counts.rounds and counts.full.total() == 4
