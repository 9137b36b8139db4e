"""The modelled time of a generation, in ordinary denoiser calls, without communication. Pure."""

from dataclasses import replace

from asyncdiff.plan.course import Course
from asyncdiff.plan.schedule import Schedule, Step, StepKind

# Of so many steps at least one is computed, whatever speed is aimed at: forecasts from farther away are worth nothing.
_LONGEST_BRIDGE = 8


def cost(step: Step, largest_share: float, end_share: float = 0.0, divided_share: float = 1.0) -> float:
    """The modelled time of a step, in denoiser calls, without communication.

    Args:
        largest_share: the largest component's part of a call.
        end_share: that of the denoiser's last layers, where they run apart from the components.
        divided_share: that of a step in full, where tokens are divided.
    """
    shared = {StepKind.ROUND: largest_share, StepKind.DIVIDED: divided_share}
    computed = shared.get(step.kind, 1.0 if step.kind.is_full else 0.0)
    return computed + (end_share if any(task.completes for task in step.tasks) else 0.0)


def speedup(
    schedule: Schedule, steps: int, largest_share: float, end_share: float = 0.0, divided_share: float = 1.0
) -> float:
    """The modelled speed-up of the denoising loop without communication (paper, appendix).

    T / (w + rounds · c_max), with c_max the largest component's share of a denoiser call, and the cost of `cost`.
    """
    course = Course(schedule, steps - 1)
    return steps / sum(cost(step, largest_share, end_share, divided_share) for step in course.steps())


def fast_enough(
    schedule: Schedule,
    steps: int,
    target: float,
    largest_share: float,
    end_share: float = 0.0,
    divided_share: float = 1.0,
) -> Schedule:
    """The same schedule with the smallest `bridge` whose modelled speed-up reaches the target, or else the fastest."""
    candidates = [replace(schedule, bridge=bridge) for bridge in range(1, _LONGEST_BRIDGE + 1)]
    speedups = [speedup(candidate, steps, largest_share, end_share, divided_share) for candidate in candidates]
    reaching = (candidate for candidate, reached in zip(candidates, speedups, strict=True) if reached >= target)
    return next(reaching, candidates[speedups.index(max(speedups))])
