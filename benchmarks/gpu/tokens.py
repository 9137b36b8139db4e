"""The token axis: what one rank does with its part of the tokens.

Measured are a step with fresh keys, one that is forecast between two of them (bridged), and a round with forecast keys,
each of the last rank alone: the others do the same. What so many GPUs would take by it is modelled from that
(`benchmarks.gpu.modelled_tokens`).
"""

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from asyncdiff.plan.course import Course
from asyncdiff.plan.method import Bits, Method
from asyncdiff.plan.schedule import Schedule, StepKind
from asyncdiff.plan.tokens import TokenDivision
from asyncdiff.settings import Settings
from benchmarks.gpu.bench import SECONDS_TO_RECORD, WARMUP, Bench, plan_of_round, rounds_to_fill, run, timed
from benchmarks.gpu.loop import Loop
from benchmarks.gpu.measure import Kind, Marks
from benchmarks.gpu.modelled_tokens import Forecast, Fresh
from benchmarks.gpu.solo import SECONDS_OF_NCCL, SoloWorld, attached, line_of_one

BRIDGE = 2
PARTS = (4, 2, 8)  # the most important first
CALLS_TO_FIND = 7  # ordinary calls, roughly, in which it is found where the tokens are, and tried
STEPS_AT_THE_END = 6  # that are not bridged, and the cool-down

FIRST_STEPS = [Kind.FIRST, *[Kind.SKIPPED] * WARMUP]


@dataclass(frozen=True)
class Measured:
    """What a part's steps were measured to take, for so many groups that share out the guidance."""

    of: Fresh | Forecast
    groups: int


def measure_tokens(bench: Bench, loop: Loop, half: Loop | None) -> list[Measured]:
    """All of it, of a transformer; with fresh keys also of half of the batch, where both branches are in one."""
    found: list[Measured] = []
    for parts in PARTS:
        expected = SECONDS_TO_RECORD + (CALLS_TO_FIND + 3 / parts * (rounds_to_fill() + bench.repeats)) * bench.plain
        bench.stage(f"tokens={parts}, fresh", expected, partial(_fresh, bench, loop, parts, 1, found))
        if parts != PARTS[0]:
            continue  # for want of time
        few = partial(_fresh, bench, loop, parts, 1, found, bits=8)
        bench.stage(f"tokens={parts}, fresh, 8 bits", expected, few)
        bench.stage(f"tokens={parts}", expected, partial(_forecast, bench, loop, parts, found))
        if half is not None:
            name = f"half tokens={parts}, fresh"
            bench.stage(name, 0.6 * expected, partial(_fresh, bench, half, parts, 2, found))
    if bench.setting.device.type == "cuda":
        parts = PARTS[0]
        expected = SECONDS_OF_NCCL + 1.5 * CALLS_TO_FIND * bench.plain
        bench.stage(f"tokens={parts}, fresh, NCCL", expected, partial(_fresh_on_nccl, bench, loop, parts))
    return found


def _fresh(
    bench: Bench, loop: Loop, parts: int, groups: int, measured: list[Measured], bits: Bits | None = None
) -> dict[str, Any]:
    """Steps with fresh keys, the bridged ones between them, and what passes from one attention to the next."""
    world, marks = SoloWorld(parts, bench.setting.device), Marks(bench.setting.device)
    settings = Settings(tokens=parts, fresh=True, bridge=BRIDGE, warmup=WARMUP, method=Method(bits=bits))
    with attached(loop, settings, world):
        world.become(parts - 1)
        schedule, steps = settings.schedule(), bench.subject.steps
        computed, is_finite = run(loop, _plan_of(bench, StepKind.DIVIDED, schedule, steps), world)
        bridged, _ = run(loop, _plan_of(bench, StepKind.BRIDGED, schedule, steps), world)
        world.on_shared = marks.set
        run(loop, FIRST_STEPS, world)
    division = _divided(world)
    found = Fresh(division, computed.device / 1000, bridged.device / 1000)
    measured.append(Measured(found, groups))
    return {
        "step": asdict(computed),
        "bridged": asdict(bridged),
        "finite": is_finite,
        "ms_between_sites": marks.between(len(division.layout.sites) + 1),
        "received_bytes": found.received,
        **_form(division),
    }


def _forecast(bench: Bench, loop: Loop, parts: int, measured: list[Measured]) -> dict[str, Any]:
    """Rounds with forecast keys."""
    world = SoloWorld(parts, bench.setting.device)
    with attached(loop, Settings(tokens=parts, fresh=False, warmup=WARMUP), world):
        world.become(parts - 1)
        timing, is_finite = run(loop, plan_of_round(bench), world)
    division = _divided(world)
    found = Forecast(division, timing.device / 1000, timing.full / 1000)
    measured.append(Measured(found, 1))
    return {
        "round": asdict(timing),
        "finite": is_finite,
        "history_bytes": world.last.held_bytes,
        "received_bytes": found.received,
        "hidden_by_bytes_per_second": found.received / found.round,
        **_form(division),
    }


def _fresh_on_nccl(bench: Bench, loop: Loop, parts: int) -> dict[str, Any]:
    """Steps with fresh keys whose exchanges are started by NCCL, from this device to itself."""
    with line_of_one(bench.setting.device) as line:
        world = SoloWorld(parts, bench.setting.device, line)
        with attached(loop, Settings(tokens=parts, fresh=True, warmup=WARMUP), world):
            world.become(parts - 1)
            timing, is_finite = run(loop, [*FIRST_STEPS, *timed(bench)], world)
    return {"step": asdict(timing), "finite": is_finite}


def _plan_of(bench: Bench, kind: StepKind, schedule: Schedule, steps: int) -> list[Kind]:
    """What is measured of the steps of one kind, where others lie between them."""
    kinds = [step.kind for step in Course(schedule, steps - 1).steps()]
    places = [place for place in range(WARMUP + 2, steps - STEPS_AT_THE_END) if kinds[place] is kind]
    wanted = timed(bench)[-len(places) :]
    plan = [Kind.FIRST, *[Kind.SKIPPED] * (steps - 1)]
    for place, what in zip(places, wanted, strict=False):
        plan[place] = what
    return plan[: places[len(wanted) - 1] + 1]


def _divided(world: SoloWorld) -> TokenDivision:
    division = world.last.division
    if not isinstance(division, TokenDivision):
        raise RuntimeError("the denoiser is not divided by tokens")
    return division


def _form(division: TokenDivision) -> dict[str, Any]:
    layout = division.layout
    return {
        "tokens": layout.tokens,
        "text_divided": layout.text,
        "sites": len(layout.sites),
        "share": division.share,
        "bounds": division.bounds,
    }
