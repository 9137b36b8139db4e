"""The points of the study as plain data: a base point, one factor at a time from it, and what the claims compare."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from asyncdiff.demo import DemoName
from asyncdiff.plan.method import PAPER, Method

Part = Literal["base", "factors", "claims"]

MODELS: tuple[DemoName, ...] = get_args(DemoName)
PARTS: tuple[Part, ...] = get_args(Part)
OURS = Method()

# The names of the schedulers in the study, as `drawing.SCHEDULERS` knows them; the base point's first.
SCHEDULERS: dict[DemoName, tuple[str, ...]] = {
    "unet": ("ddim", "dpm++2m", "euler", "euler-ancestral"),
    "dit": ("flow-euler", "flow-euler-stochastic"),
}
STEPS = (20, 28, 50)
GUIDANCE_SCALES = (1.0, 3.0, 7.5)
PAPER_SETTINGS = ((2, 1), (3, 1), (4, 1), (2, 2), (3, 2))  # (N, S)
MOST_COMPONENTS = 8
STRIDES = (1, 2, 3)
WARMUP_OF_STRIDES = 7  # minus one divisible by every stride
WARMUPS = (2, 3, 5, 9)
COOLDOWNS = (0, 1, 4, 6)
BRIDGES = (1, 2, 3, 4)
ONE_DEVICE_BRIDGES = (2, 3, 4, 5, 8)
METHODS = (
    Method("reuse", residual=True, fresh_sum=False),
    Method("reuse", residual=True, fresh_sum=True),
    Method("linear", 1.0, residual=False, fresh_sum=False),
    Method("linear", 0.5, residual=False, fresh_sum=False),
    Method("linear", 1.0, residual=True, fresh_sum=False),
    Method("linear", 1.0, residual=True, fresh_sum=True),
    Method("linear", 0.5, residual=True, fresh_sum=True),
    Method(residual=False, fresh_sum=False),
    Method(residual=True, fresh_sum=False),
)

# The base point is drawn with all prompts, the others with a part of them.
SHARES: dict[Part, int] = {"base": 1, "claims": 2, "factors": 4}
GUARDS = (0.03, 0.05, 0.07, 0.1, 0.2)  # max_error
GUARD = 0.1  # of the guarded point that the claim is about


@dataclass(frozen=True)
class Setting:
    """One point of the study.

    Attributes:
        model: the demo pipeline.
        scheduler: a name of SCHEDULERS.
        steps: T.
        guidance_scale: of classifier-free guidance.
        components: N.
        stride: S.
        warmup: w.
        bridge: k, of how many steps one is a round.
        guidance: G, the groups of devices that the guidance branches are divided over.
        method: what stands in for what is not there yet.
        max_error: the guard's bound.
        cooldown: ordinary steps at the end; None for as many as the method wants.
        taylorseer: diffusers' TaylorSeer cache with this interval, in place of asyncdiff.
        prompts: how many pictures.
        batch: how many of them are drawn at a time.
    """

    model: DemoName
    scheduler: str
    steps: int = 50
    guidance_scale: float = 3.0
    components: int = 2
    stride: int = 1
    warmup: int = 5
    bridge: int = 1
    guidance: int = 1
    method: Method = OURS
    max_error: float | None = None
    cooldown: int | None = None
    taylorseer: int | None = None
    prompts: int = 128
    batch: int = 16

    @property
    def devices(self) -> int:
        """G · (N + S − 1)."""
        return self.guidance * (self.components + self.stride - 1)

    @property
    def family(self) -> str:
        """Whose method it is."""
        if self.taylorseer:
            return "TaylorSeer"
        return "paper" if self.method == PAPER else "ours" if self.method == OURS else method_name(self.method)

    def __str__(self) -> str:
        if self.taylorseer:
            return f"TaylorSeer interval {self.taylorseer}"
        parts = [self.family]
        parts += [f"G={self.guidance}"] if self.guidance > 1 else []
        parts += [f"N={self.components}", f"S={self.stride}"]
        parts += [f"bridge={self.bridge}"] if self.bridge > 1 else []
        parts += [f"max_error={self.max_error:g}"] if self.max_error is not None else []
        parts += [f"cooldown={self.cooldown}"] if self.cooldown is not None else []
        return " ".join(parts)

    @property
    def regardless_of_prompts(self) -> "Setting":
        """The same point with any number of pictures."""
        return replace(self, prompts=0)

    @classmethod
    def read(cls, fields: dict[str, Any]) -> "Setting":
        """What `asdict` has made of a setting."""
        return cls(**(fields | {"method": Method(**fields["method"])}))

    def written(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def method_name(method: Method) -> str:
    """A few words for a method that is no preset."""
    words = [f"linear {method.damping:g}" if method.forecast == "linear" else method.forecast]
    words += ["residual"] if method.residual else []
    words += ["fresh sum"] if method.fresh_sum else []
    return " + ".join(words)


def base(model: DemoName, **changes: Any) -> Setting:
    """The base point, or one that differs from it in the named fields."""
    return replace(Setting(model, SCHEDULERS[model][0]), **changes)


def few_steps(model: DemoName, scheduler: str, **changes: Any) -> Setting:
    """A point with T = 20 and w = 3, as people use fast samplers."""
    return base(model, scheduler=scheduler, steps=20, warmup=3, **changes)


def fast_samplers(model: DemoName) -> tuple[str, str]:
    """A fast and a stochastic sampler of a model; the transformer's pipeline works with no others."""
    return ("dpm++2m", "euler-ancestral") if model == "unet" else ("flow-euler", "flow-euler-stochastic")


def both(setting: Setting) -> list[Setting]:
    """The same point with the paper's method and with ours."""
    return [replace(setting, method=PAPER), replace(setting, method=OURS)]


def guarded(model: DemoName) -> tuple[Setting, Setting]:
    """A daring point without and with the guard; one picture at a time, because the guard judges whole batches."""
    daring = base(model, components=4, bridge=2, batch=1, prompts=32)
    return daring, replace(daring, max_error=GUARD)


def six_times_as_fast(model: DemoName) -> Setting:
    """Four devices and the short warm-up that is the default, where even one bridged step of two takes too long."""
    return base(model, guidance=2, bridge=3, warmup=3)


def base_points(model: DemoName) -> list[Setting]:
    """The base point."""
    return both(base(model))


def claim_points(model: DemoName) -> list[Setting]:
    """What the claims compare, and what the picture of error against speed-up shows."""
    points = [point for n, s in PAPER_SETTINGS for point in both(base(model, components=n, stride=s))]
    points += both(base(model, components=MOST_COMPONENTS))
    points += [base(model, components=1, bridge=k) for k in ONE_DEVICE_BRIDGES]
    points += [base(model, components=n, bridge=k) for n in (2, 4) for k in (2, 3)]
    points += [base(model, components=MOST_COMPONENTS, bridge=2)]
    points += [base(model, guidance=2, components=1, bridge=k) for k in (2, 3)]
    points += [base(model, guidance=2, components=n, bridge=k) for n in (2, 4) for k in (1, 2, 3)]
    points += [
        point
        for sampler in fast_samplers(model)
        for n in (2, 4)
        for point in both(few_steps(model, sampler, components=n))
    ]
    points += [six_times_as_fast(model), base(model, method=PAPER, warmup=3)]
    points += guarded(model)
    points += [replace(guarded(model)[0], max_error=bound) for bound in GUARDS]
    if model == "dit":
        points += [base(model, components=1, taylorseer=interval) for interval in ONE_DEVICE_BRIDGES]
    return points


@dataclass(frozen=True)
class Factor:
    """One factor, everything else as at the base point.

    Attributes:
        name: what is varied.
        points: all of its points.
        value: that of a point.
        series: which points belong to one line.
    """

    name: str
    points: list[Setting]
    value: Callable[[Setting], float | str]
    series: Callable[[Setting], str]


def factors(model: DemoName) -> list[Factor]:
    """All that is varied one at a time."""
    start = base(model)
    few = [replace(start, components=n) for n in (2, 4)]

    def compared(name: str, settings: Iterable[Setting], value: Callable[[Setting], float | str]) -> Factor:
        points = [point for setting in settings for point in both(setting)]
        return Factor(name, points, value, lambda setting: setting.family)

    def ours(name: str, settings: Iterable[Setting], value: Callable[[Setting], float | str]) -> Factor:
        return Factor(name, list(settings), value, lambda setting: f"N={setting.components}")

    return [
        compared(
            "sampler and steps",
            (replace(start, steps=t, scheduler=name) for name in SCHEDULERS[model] for t in STEPS),
            lambda setting: f"{setting.scheduler} {setting.steps}",
        ),
        compared(
            "guidance scale",
            (replace(start, guidance_scale=scale) for scale in GUIDANCE_SCALES),
            lambda setting: setting.guidance_scale,
        ),
        compared(
            "components N",
            (replace(start, components=n) for n in (2, 3, 4, MOST_COMPONENTS)),
            lambda setting: setting.components,
        ),
        compared(
            f"stride S, w={WARMUP_OF_STRIDES}",
            (replace(start, stride=s, warmup=WARMUP_OF_STRIDES) for s in STRIDES),
            lambda setting: setting.stride,
        ),
        compared("warm-up w", (replace(start, warmup=w) for w in WARMUPS), lambda setting: setting.warmup),
        ours(
            "bridge",
            (replace(start, components=n, bridge=k) for n in (1, 2) for k in BRIDGES if n * k > 1),
            lambda setting: setting.bridge,
        ),
        ours(
            "cool-down",
            (replace(setting, cooldown=count) for setting in few for count in (None, *COOLDOWNS)),
            lambda setting: setting.method.cooldown if setting.cooldown is None else setting.cooldown,
        ),
        ours(
            "method",
            (replace(setting, method=method) for setting in few for method in (PAPER, *METHODS, OURS)),
            lambda setting: setting.family,
        ),
    ]


def factor_points(model: DemoName) -> list[Setting]:
    """All points that differ from the base point in one factor."""
    return [point for factor in factors(model) for point in factor.points]


_POINTS: dict[Part, Callable[[DemoName], list[Setting]]] = {
    "base": base_points,
    "claims": claim_points,
    "factors": factor_points,
}


def points(models: Iterable[DemoName], parts: Iterable[Part], prompts: int) -> list[Setting]:
    """All points, each once, with the most prompts of the parts that have it."""
    chosen: dict[Setting, Setting] = {}
    for model in models:
        for part in parts:
            count = max(2, prompts // SHARES[part])
            for point in _POINTS[part](model):
                sized = replace(point, prompts=min(count, point.prompts))
                known = chosen.setdefault(sized.regardless_of_prompts, sized)
                if known.prompts < sized.prompts:
                    chosen[sized.regardless_of_prompts] = sized
    return list(chosen.values())
