"""Checks what the study is to show, line by line, against its results."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from asyncdiff.demo import DemoName
from asyncdiff.plan.method import PAPER
from benchmarks.quality.measuring import Record
from benchmarks.quality.settings import (
    MOST_COMPONENTS,
    OURS,
    PAPER_SETTINGS,
    Setting,
    base,
    both,
    claim_points,
    fast_samplers,
    few_steps,
    guarded,
    six_times_as_fast,
)
from benchmarks.quality.statistics import Gain, gain
from benchmarks.quality.store import Store

SHOWN, NOT_SHOWN, NOT_MEASURED = "shown", "not shown", "not measured"

_ROUNDING = 0.05  # dB: differences below it are float rounding of an exact division
_AGREEMENT_MARGIN = 0.5  # per cent
_SIX_TIMES = 6.0
_AS_FAST = 0.95  # of a speed-up is called as fast


@dataclass(frozen=True)
class Claim:
    """One line of what is to be shown, for one model."""

    text: str
    model: DemoName
    verdict: str
    figures: str


def check(store: Store, models: Sequence[DemoName]) -> list[Claim]:
    """Every line for every model."""
    return [claim for model in models for lines in _LINES for claim in lines(store, model)]


def markdown(claims: list[Claim]) -> str:
    """The claims as a table."""
    rows = [f"| {claim.model} | {claim.text} | **{claim.verdict}** | {claim.figures} |" for claim in claims]
    return "\n".join(["| model | to show | verdict | figures |", "| --- | --- | --- | --- |", *rows])


def _compare(store: Store, text: str, ours: Setting, theirs: Setting, holds: Callable[[Gain], bool]) -> Claim:
    own, other = store.find(ours), store.find(theirs)
    if own is None or other is None:
        missing = [str(setting) for setting, found in ((ours, own), (theirs, other)) if found is None]
        return Claim(text, ours.model, NOT_MEASURED, f"without {', '.join(missing)}")
    found = gain(own, other)
    figures = f"{_point(own)} against {_point(other)}: {found}"
    return Claim(text, ours.model, SHOWN if holds(found) else NOT_SHOWN, figures)


def _point(record: Record) -> str:
    return f"{record.setting} {record.decibels.mean():.1f} dB at {record.modelled_speedup:.2f}×"


def _at_least(decibels: float) -> Callable[[Gain], bool]:
    """The whole interval lies above."""
    return lambda found: found.paired.low >= decibels


def _not_below(found: Gain) -> bool:
    """The interval does not lie wholly below zero, but for rounding."""
    return found.paired.high >= -_ROUNDING


def _half_the_error(store: Store, model: DemoName) -> Iterator[Claim]:
    for n, s in PAPER_SETTINGS:
        theirs, ours = both(base(model, components=n, stride=s))
        text = f"N={n} S={s}: at least 6 dB less error than the paper's method"
        yield _compare(store, text, ours, theirs, _at_least(6))


def _closer_than_less_daring(store: Store, model: DemoName) -> Iterator[Claim]:
    for own, other in (((4, 1), (2, 1)), ((3, 2), (4, 1))):
        ours = base(model, components=own[0], stride=own[1])
        theirs = base(model, components=other[0], stride=other[1], method=PAPER)
        text = f"N={own[0]} S={own[1]} closer than the paper's N={other[0]} S={other[1]}"
        yield _compare(store, text, ours, theirs, _at_least(0))


def _many_components(store: Store, model: DemoName) -> Iterator[Claim]:
    if model != "dit":
        return
    many, four, two = (
        base(model, components=MOST_COMPONENTS),
        base(model, components=4, method=PAPER),
        base(model, components=2, method=PAPER),
    )
    yield _compare(store, f"N={MOST_COMPONENTS} closer than the paper's N=4", many, four, _at_least(0))
    yield _compare(store, f"N={MOST_COMPONENTS} within 2 dB of the paper's N=2", many, two, _at_least(-2))


def _guidance(store: Store, model: DemoName) -> Iterator[Claim]:
    text = "guidance 2 × N=2 on 4 devices at least as close as N=2 on 2"
    yield _compare(store, text, base(model, guidance=2), base(model), _not_below)
    ours, theirs = base(model, guidance=2, bridge=2), base(model, method=PAPER)
    text = "guidance 2 × N=2 × bridge 2 on 4 devices closer than the paper's N=2 S=1"
    yield _compare(store, text, ours, theirs, _at_least(0))
    ours = six_times_as_fast(model)
    text = f"the same with bridge {ours.bridge} and w={ours.warmup}, six times as fast: closer than the paper"
    found = store.find(ours)
    is_as_fast = found is not None and found.modelled_speedup >= _SIX_TIMES
    theirs = replace(theirs, warmup=ours.warmup)
    yield _compare(store, text, ours, theirs, lambda gained: is_as_fast and _at_least(0)(gained))


def _components_or_one_device(store: Store, model: DemoName) -> Iterator[Claim]:
    text = "where components beat forecasting on one device"
    plain = base(model)
    alike = [
        record
        for record in store.records
        if record.setting.model == model
        and record.setting.max_error is None
        and replace(record.setting, components=2, stride=1, bridge=1, taylorseer=None, prompts=plain.prompts) == plain
    ]
    one_device = [record for record in alike if record.setting.devices == 1]
    divided = [record for record in alike if record.setting.components > 1]
    if not one_device or not divided:
        yield Claim(text, model, NOT_MEASURED, "")
        return
    fastest = max(record.modelled_speedup for record in one_device)
    kinds: dict[str, list[str]] = {"closer": [], "not closer": [], f"faster than one device ({fastest:.2f}×)": []}
    closer, not_closer, beyond = kinds.values()
    for record in divided:
        as_fast = [other for other in one_device if other.modelled_speedup >= _AS_FAST * record.modelled_speedup]
        if not as_fast:
            beyond.append(_point(record))
            continue
        rival = max(as_fast, key=lambda other: float(other.decibels.mean()))
        gained = gain(record, rival).paired
        words = f"{_point(record)} against {_point(rival)}: {gained} dB"
        (closer if gained.low > 0 else not_closer).append(words)
    figures = ". ".join(f"{kind}: {'; '.join(words) or 'none'}" for kind, words in kinds.items())
    yield Claim(text, model, SHOWN, figures)


def _few_steps(store: Store, model: DemoName) -> Iterator[Claim]:
    for sampler in fast_samplers(model):
        for n in (2, 4):
            theirs, ours = both(few_steps(model, sampler, components=n))
            text = f"T=20 {sampler} N={n}: never worse than the paper's method"
            yield _compare(store, text, ours, theirs, _not_below)


def _agreement(store: Store, model: DemoName) -> Iterator[Claim]:
    text = f"prompt agreement not below the plain pipeline's by more than {_AGREEMENT_MARGIN} points"
    settings = [setting for setting in dict.fromkeys(claim_points(model)) if setting.method == OURS]
    found = [record for setting in settings if not setting.taylorseer and (record := store.find(setting))]
    if not found:
        yield Claim(text, model, NOT_MEASURED, "")
        return
    lost = [(record.agreement_sequential - record.agreement, record) for record in found]
    below = [f"{record.setting}: {loss:.1f} points" for loss, record in lost if loss > _AGREEMENT_MARGIN]
    lowest = min(record.agreement for record in found)
    figures = f"{len(found)} settings, lowest {lowest:.1f} %; " + (
        "below: " + "; ".join(below) if below else "none below"
    )
    yield Claim(text, model, NOT_SHOWN if below else SHOWN, figures)


def _guard(store: Store, model: DemoName) -> Iterator[Claim]:
    text = "the guard caps the worst prompt's error"
    plain, guard = (store.find(setting) for setting in guarded(model))
    if plain is None or guard is None:
        yield Claim(text, model, NOT_MEASURED, "")
        return
    worst = [float(np.min(record.decibels)) for record in (plain, guard)]
    figures = (
        f"worst of {guard.setting.prompts}: {worst[0]:.1f} dB at {plain.modelled_speedup:.2f}× without, "
        f"{worst[1]:.1f} dB at {guard.modelled_speedup:.2f}× with {guard.setting}; "
        f"full steps {sum(plain.full_steps.values())} and {sum(guard.full_steps.values())} {guard.full_steps}"
    )
    yield Claim(text, model, SHOWN if worst[1] > worst[0] else NOT_SHOWN, figures)


_LINES = (
    _half_the_error,
    _closer_than_less_daring,
    _many_components,
    _guidance,
    _components_or_one_device,
    _few_steps,
    _agreement,
    _guard,
)
