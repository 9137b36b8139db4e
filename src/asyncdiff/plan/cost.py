"""The modelled time of a generation, in ordinary denoiser calls, without communication. Pure."""

from dataclasses import replace

from asyncdiff.plan.course import Course
from asyncdiff.plan.schedule import Schedule, Step, StepKind

# Of so many steps at least one is computed, whatever speed is aimed at: forecasts from farther away are worth nothing.
_LONGEST_BRIDGE = 8


def cost(step: Step, largest_share: float, end_share: float = 0.0) -> float:
    """The modelled time of a step, in denoiser calls, without communication.

    `largest_share` is the largest component's part of a call, in which tokens are divided in steps in full as well;
    `end_share` that of the denoiser's last layers, where
    they run apart from the components.
    """
    shared = {StepKind.ROUND: largest_share, StepKind.DIVIDED: largest_share}
    computed = shared.get(step.kind, 1.0 if step.kind.is_full else 0.0)
    return computed + (end_share if any(task.completes for task in step.tasks) else 0.0)


def speedup(schedule: Schedule, steps: int, largest_share: float, end_share: float = 0.0) -> float:
    """The modelled speed-up of the denoising loop without communication (paper, appendix).

    T / (w + rounds · c_max), with c_max the largest component's share of a denoiser call, and the cost of `cost`.
    """
    return steps / sum(cost(step, largest_share, end_share) for step in Course(schedule, steps - 1).steps())


def fast_enough(
    schedule: Schedule, steps: int, target: float, largest_share: float, end_share: float = 0.0
) -> Schedule:
    """The same schedule with the smallest `bridge` whose modelled speed-up reaches the target, or else the fastest."""
    candidates = [replace(schedule, bridge=bridge) for bridge in range(1, _LONGEST_BRIDGE + 1)]
    speedups = [speedup(candidate, steps, largest_share, end_share) for candidate in candidates]
    reaching = (candidate for candidate, reached in zip(candidates, speedups, strict=True) if reached >= target)
    return next(reaching, candidates[speedups.index(max(speedups))])
