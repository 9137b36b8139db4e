"""The results of all runs: counts, and every test that did not simply pass, with the reason."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.diffusers_tests.records import Record
from benchmarks.diffusers_tests.verdict import (
    DIFFERS,
    FULL_VERDICTS,
    IDLE,
    PLAIN_VERDICTS,
    ROUNDS,
    ROUNDS_VERDICTS,
    SAME,
    SKIPPED,
    USABLE,
    Verdict,
    judge_full,
    judge_plain,
    judge_rounds,
)

Records = Mapping[str, Record]
_MODES = {"plain": PLAIN_VERDICTS, "full": FULL_VERDICTS, "rounds": ROUNDS_VERDICTS}
_WORDS = {"plain": "without AsyncDiff", "full": "all steps in full", "rounds": "with rounds"}
_PASSED = {USABLE, IDLE, SAME, ROUNDS}  # of which there is no more to say


def differing(plain: Records, full: Records) -> list[str]:
    """The tests whose numbers must be seen in a second plain run before they can be judged."""
    judged = _judge(plain, {"full": full}, {})["full"]
    return [test for test, verdict in judged.items() if verdict.kind == DIFFERS]


def summarise(plain: Records, attached: Mapping[str, Records], again: Records) -> dict[str, Any]:
    """What is published.

    Args:
        attached: records by mode, "full" or "rounds".
        again: those of a second plain run, of some tests.
    """
    judged = _judge(plain, attached, again)
    usable = [test for test, verdict in judged["plain"].items() if verdict.kind == USABLE]
    return {
        "tests": len(plain),
        "usable": len(usable),
        "pipelines": len({call.pipeline for test in usable for call in plain[test].calls}),
        "calls": sum(len(plain[test].calls) for test in usable),
        "modes": {mode: _of_mode(mode, verdicts) for mode, verdicts in judged.items()},
    }


def table(summary: Mapping[str, Any]) -> str:
    """The counts, for a terminal."""
    lines = [
        f"{summary['tests']} tests; {summary['usable']} pass without AsyncDiff and call a pipeline "
        f"({summary['pipelines']} pipeline classes, {summary['calls']} calls). Of these:"
    ]
    for mode, content in summary["modes"].items():
        lines.append(f"{_WORDS[mode]}{', all tests' if mode == 'plain' else ''}")
        lines += [f"  {count:5}  {kind}" for kind, count in content["counts"].items()]
    return "\n".join(lines)


def _judge(plain: Records, attached: Mapping[str, Records], again: Records) -> dict[str, dict[str, Verdict]]:
    """By mode and test; of the tests that can be used only, but for the plain run."""
    judged = {"plain": {test: judge_plain(record) for test, record in plain.items()}}
    usable = {test: plain[test] for test, verdict in judged["plain"].items() if verdict.kind == USABLE}
    if "full" in attached:
        full = attached["full"]
        judged["full"] = {test: judge_full(one, full.get(test), again.get(test)) for test, one in usable.items()}
    if "rounds" in attached:
        rounds = attached["rounds"]
        judged["rounds"] = {test: judge_rounds(one, rounds.get(test)) for test, one in usable.items()}
    return judged


def _of_mode(mode: str, verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    counts = Counter(verdict.kind for verdict in verdicts.values())
    told = {
        kind: _by_reason((test, v.reason) for test, v in verdicts.items() if v.kind == kind)
        for kind in _MODES[mode]
        if kind in counts.keys() - _PASSED
    }
    return {
        "counts": {kind: counts[kind] for kind in _MODES[mode] if counts[kind]},
        "reasons": {kind: _numbers(reasons) if kind == SKIPPED else reasons for kind, reasons in told.items()},
    }


def _numbers(reasons: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """How many tests there are under each reason: thousands skip themselves."""
    return {reason: len(tests) for reason, tests in reasons.items()}


def _by_reason(reasons: Iterable[tuple[str, str]]) -> dict[str, Sequence[str]]:
    """The tests under each reason, the most frequent first: many tests fail for the same one."""
    tests: dict[str, list[str]] = {}
    for test, reason in reasons:
        tests.setdefault(reason, []).append(test.removeprefix("tests/pipelines/"))
    return dict(sorted(tests.items(), key=lambda item: -len(item[1])))
