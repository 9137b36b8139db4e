"""The schedule against the paper's recurrence, written out, and against what no schedule may break."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncdiff import ConfigurationError
from asyncdiff.plan.cost import speedup
from asyncdiff.plan.course import Course
from asyncdiff.plan.schedule import Schedule, StepKind

schedules = st.builds(Schedule, st.integers(1, 8), st.integers(1, 4), st.integers(1, 9), time_shift=st.booleans())


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 30))
def test_stride_one_is_the_papers_recurrence(components: int, warmup: int, count: int) -> None:
    """Section 3.2: h_n(i) = ε_n(h_{n-1}(i-1), t_i) for every component at every step after the warm-up."""
    for step in Course(Schedule(components, 1, warmup), count - 1).steps():
        if step.index < warmup:
            assert step.kind is StepKind.FULL
            continue
        assert step.kind is StepKind.ROUND
        found = [(task.rank, task.component, task.label, task.reads[0].step, task.predicts) for task in step.tasks]
        last = components - 1
        expected = [(n, n, step.index, step.index - 1, step.index if n == last else None) for n in range(components)]
        assert found == expected


def test_stride_two_by_hand() -> None:
    """Section 3.3, N=2, S=2, w=3, 8 steps: rounds at 3, 5, 7; the helper is rank 2."""
    rows = [
        (
            step.index,
            step.kind.value,
            [(t.rank, t.component, t.label, t.reads[0].step, t.predicts, t.feeds) for t in step.tasks],
        )
        for step in Course(Schedule(2, 2, 3), 7).steps()
    ]
    assert rows == [
        (0, "full", []),
        (1, "full", []),
        (2, "full", []),
        (3, "round", [(0, 0, 4, 2, None, True), (1, 1, 4, 2, 4, True), (2, 1, 3, 2, 3, False)]),
        (4, "stored", []),
        (5, "round", [(0, 0, 6, 3, None, True), (1, 1, 6, 3, 6, True), (2, 1, 5, 3, 5, False)]),
        (6, "stored", []),
        (7, "round", [(0, 0, 7, 5, None, True), (1, 1, 7, 5, 8, True), (2, 1, 7, 5, 7, False)]),
    ]


@given(schedules, st.integers(1, 40))
def test_everything_used_was_made(schedule: Schedule, count: int) -> None:
    predictions: set[int] = set()
    versions: set[int] = set()
    for step in Course(schedule, count - 1).steps():
        if step.kind is StepKind.FULL:
            predictions.add(step.index)
            if step.keeps:
                versions.add(step.index)
        for task in step.tasks:
            assert [version.step for version in task.reads] == [max(versions)]
            assert 0 <= task.label < count
            if task.predicts is not None:
                predictions.add(task.predicts)
        if step.kind is StepKind.ROUND:
            versions.add(step.index)
            assert [task.rank for task in step.tasks] == list(range(schedule.world_size))
            assert len({task.predicts for task in step.tasks} - {None}) == schedule.stride
        assert step.prediction in predictions
        assert step.prediction == step.index or step.index < schedule.warmup + schedule.stride


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 9))
def test_time_shift_takes_every_label_one_step_earlier(components: int, stride: int, warmup: int) -> None:
    schedules = (Schedule(components, stride, warmup, time_shift=shift) for shift in (False, True))
    plain, shifted = (Course(schedule, 29).steps() for schedule in schedules)
    for one, other in zip(plain, shifted, strict=True):
        assert [task.label - 1 for task in one.tasks] == [task.label for task in other.tasks]


def test_modelled_speedup_is_the_papers_formula() -> None:
    assert speedup(Schedule(2, 1, 3), 50, 0.5) == pytest.approx(50 / (3 + 47 * 0.5))
    assert speedup(Schedule(3, 2, 3), 51, 1 / 3) == pytest.approx(51 / (3 + 24 / 3))


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "2"])
@pytest.mark.parametrize("name", ["components", "stride", "warmup"])
def test_bad_numbers(name: str, bad: object) -> None:
    numbers = {"components": 2, "stride": 1, "warmup": 3, name: bad}
    with pytest.raises(ConfigurationError, match=f"{name} must be a whole number of at least 1"):
        Schedule(**numbers)  # type: ignore[arg-type]


def _kinds(schedule: Schedule, count: int, inserted: dict[int, StepKind] | None = None) -> str:
    return "".join(step.kind.value[0] for step in Course(schedule, count - 1, inserted or {}).steps())


def test_the_last_steps_before_the_cool_down_are_not_bridged() -> None:
    assert _kinds(Schedule(2, 1, 3, bridge=2, cooldown=2), 12) == "fffrbrbrrrff"
    assert _kinds(Schedule(2, 1, 3, bridge=2, cooldown=2), 13) == "fffrbrbrrrrff"
    assert _kinds(Schedule(2, 1, 3, bridge=3, cooldown=1), 12) == "fffrbbrbrrrf"
    assert _kinds(Schedule(2, 1, 3, bridge=4, cooldown=1), 12) == "fffrbbbrbbbf", "long bridges end as they are"
    # A round yields two predictions: one that would begin where the cool-down does is none.
    assert _kinds(Schedule(2, 2, 3, bridge=2, cooldown=2), 13) == "fffrsbbrsrsff"


def test_a_bridged_step_becomes_a_round_and_a_round_a_full_step() -> None:
    schedule = Schedule(2, 1, 3, bridge=3, versions=2)
    assert _kinds(schedule, 14) == "fffrbbrbbrbrrr"
    assert Course(schedule, 13).remedied(4).inserted == {4: StepKind.ROUND}
    assert _kinds(schedule, 14, {4: StepKind.ROUND}) == "fffrrrrrrrrrrr", "from then on no step is bridged"
    assert [version.step for version in Course(schedule, 13).remedied(4).step(6).tasks[0].reads] == [5, 4]
    assert Course(schedule, 13).remedied(6).inserted == {6: StepKind.FULL}
    assert _kinds(schedule, 14, {6: StepKind.FULL}) == "fffrbbfrbbrrrr"
    strides = Schedule(2, 2, 3, bridge=2)
    assert _kinds(strides, 14) == "fffrsbbrsbbrsr"
    course = Course(strides, 13)
    assert course.remedied(5).inserted == {5: StepKind.ROUND} and course.remedied(6).inserted == {6: StepKind.FULL}
    assert _kinds(strides, 14, {5: StepKind.ROUND}) == "fffrsrsrsrsrsr"
