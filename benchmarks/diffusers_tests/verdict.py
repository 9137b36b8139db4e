"""What a test says about AsyncDiff: from its records with and without it, by rules that need no pytest."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.diffusers_tests.records import Failure, PipeCall, Record

# The plain run: without AsyncDiff, which of the tests can be used here.
USABLE = "passes, calls a pipeline"
IDLE = "passes, calls none"
HUB = "needs the model hub"
SKIPPED = "skips itself"
FAILS = "fails"

# With all steps in full.
SAME = "passes, bit for bit"
DIFFERS = "a result differs"
UNSTEADY = "differs in two plain runs too"
CHECK = "a check fails"

# With rounds.
ROUNDS = "passes, with rounds"
NO_ROUND = "passes, no step left for a round"
NUMBERS = "only a check of the test fails"
FORM = "a result has another form"
INFINITE = "a result is not finite"

# With both.
REFUSED = "refused"
RAISED = "an error"
CRASHED = "the process ended"
MISSING = "not run"

PLAIN_VERDICTS = (USABLE, IDLE, HUB, SKIPPED, FAILS, CRASHED)
FULL_VERDICTS = (SAME, REFUSED, UNSTEADY, DIFFERS, CHECK, RAISED, CRASHED, MISSING)
ROUNDS_VERDICTS = (ROUNDS, NO_ROUND, REFUSED, NUMBERS, FORM, INFINITE, RAISED, CRASHED, MISSING)

_HUB_SIGNS = ("huggingface.co", "offline mode", "outgoing traffic has been disabled", "no network while")
_HUB_ERRORS = {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "gaierror"}
_NO_REFUSALS = {"ExchangeError", "RankMismatchError"}  # errors of asyncdiff, but not about the pipeline


@dataclass(frozen=True)
class Verdict:
    """What became of a test, and the sentence that says why."""

    kind: str
    reason: str = ""


def judge_plain(record: Record) -> Verdict:
    """Whether the test can say anything: only those that pass without AsyncDiff, and call a pipeline, do."""
    if record.outcome == "skipped":
        return Verdict(SKIPPED, record.skipped)
    if record.outcome == "passed":
        return Verdict(USABLE if record.calls else IDLE)
    failure = _failure(record)
    if record.outcome == "crashed":
        return Verdict(CRASHED, str(failure))
    return Verdict(HUB if _needs_hub(failure) else FAILS, str(failure))


def judge_full(plain: Record, full: Record | None, again: Record | None = None) -> Verdict:
    """Whether the test passes, and every call of a pipeline gave what it gives without AsyncDiff, bit for bit.

    Args:
        again: of a second plain run; it tells a test whose numbers are not the same in every run.
    """
    stopped = _stopped(full)
    if full is None or stopped is not None:
        return stopped or Verdict(MISSING)
    if full.failure is not None:
        return Verdict(CHECK, str(full.failure))
    if _results(full) != _results(plain):
        unsteady = again is not None and _results(again) != _results(plain)
        return Verdict(UNSTEADY) if unsteady else Verdict(DIFFERS, _first_difference(plain.calls, full.calls))
    return _refused(full) or Verdict(SAME)


def judge_rounds(plain: Record, rounds: Record | None) -> Verdict:
    """Whether no call fails, and all results have the plain ones' form and are finite where these are.

    Other numbers are what rounds are about: a test that then fails in a check of its own has said nothing more.
    """
    stopped = _stopped(rounds)
    if rounds is None or stopped is not None:
        return stopped or Verdict(MISSING)
    for before, after in zip(plain.calls, rounds.calls, strict=False):  # a test that fails makes fewer calls
        if after.form != before.form:
            return Verdict(FORM, f"{after.pipeline}: {after.form} in place of {before.form}")
        if before.finite and not after.finite:
            return Verdict(INFINITE, after.pipeline)
    if rounds.failure is not None:
        return Verdict(NUMBERS, str(rounds.failure))
    refused = _refused(rounds)
    if refused is not None:
        return refused
    return Verdict(ROUNDS if any(call.rounds for call in rounds.calls) else NO_ROUND)


def _stopped(record: Record | None) -> Verdict | None:
    """Where there is no end of the test to judge: something other than a check of its own ended it."""
    if record is None:
        return Verdict(MISSING)
    if record.outcome == "skipped":
        return Verdict(MISSING, f"skipped: {record.skipped}")
    if record.outcome == "passed":
        return None
    failure = _failure(record)
    if record.outcome == "crashed":
        return Verdict(CRASHED, str(failure))
    if "AsyncDiffError" in failure.kinds and not _NO_REFUSALS.intersection(failure.kinds):
        return Verdict(REFUSED, str(failure))
    if "AssertionError" in failure.kinds and failure.origin == "tests":
        return None
    return Verdict(RAISED, f"{failure} (in {failure.origin or 'other code'})")


def _failure(record: Record) -> Failure:
    return record.failure or Failure(("Unknown",), "")


def _needs_hub(failure: Failure) -> bool:
    named = _HUB_ERRORS.intersection((*failure.kinds, *failure.causes))
    return bool(named) or any(sign in failure.text for sign in _HUB_SIGNS)


def _refused(record: Record) -> Verdict | None:
    return next((Verdict(REFUSED, call.refused) for call in record.calls if call.refused), None)


def _results(record: Record) -> list[tuple[str, str, str, str]]:
    return [(call.pipeline, call.form, call.values, call.error) for call in record.calls]


def _first_difference(before: Sequence[PipeCall], after: Sequence[PipeCall]) -> str:
    if len(before) != len(after):
        return f"{len(after)} calls of pipelines in place of {len(before)}"
    for number, (one, other) in enumerate(zip(before, after, strict=True), start=1):
        for what in ("pipeline", "error", "form", "values"):
            if getattr(one, what) != getattr(other, what):
                return f"call {number} of {len(before)}, {other.pipeline}: not the same {what}"
    return ""
