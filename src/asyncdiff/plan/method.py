"""How a device makes up for what the others have not yet sent: the choices that `AsyncDiff(method=…)` offers."""

from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

from asyncdiff.errors import ConfigurationError
from asyncdiff.plan.numbers import check_whole_number, shown

Forecasting = Literal["reuse", "linear", "fitted"]
Bits = Literal[4, 8]

# How many versions of a tensor each way of forecasting looks at.
_VERSIONS: dict[Forecasting, int] = {"reuse": 1, "linear": 2, "fitted": 6}


@dataclass(frozen=True)
class Method:
    """What stands in for a tensor that another device is still computing, and in what form tensors travel.

    Attributes:
        forecast: "reuse": its newest version, as in the paper; "linear": the line through its last two versions,
            F + α·r·(F − F'), where r is the coming step's length over the last one's; "fitted": a polynomial of third
            degree whose terms are weighted by what would have been best in the last two rounds, found anew for every
            tensor, every picture and every round.
        damping: the α of "linear", from 0 (as "reuse") to 1.
        residual: where a component adds to what it is given (out = in + f), keep and send f, so that the reader adds
            it to its own, newer `in`.
        fresh_sum: where the denoiser's last layers read a sum that several components have added to, the prediction
            is made from what all of them have added in this very round.
        bits: of each number of the difference to the version before, which is what travels then, and what is held of
            older versions: 4 or 8; None for whole versions in the denoiser's own number format. Where tokens' keys are
            exchanged within the step, 8 bits of each number of what is exchanged there, which is not exact then.
        most_versions: how many versions are looked at, and held, at most; None for as many as the forecast can use, six
            where it is fitted.
    """

    forecast: Forecasting = "fitted"
    damping: float = 1.0
    residual: bool = True
    fresh_sum: bool = True
    bits: Bits | None = None
    most_versions: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.forecast, str) or self.forecast not in get_args(Forecasting):
            known = ", ".join(map(repr, get_args(Forecasting)))
            raise ConfigurationError(f"forecast must be one of {known}, not {shown(self.forecast)}")
        if isinstance(self.damping, bool) or not isinstance(self.damping, Real) or not 0 <= self.damping <= 1:
            raise ConfigurationError(f"damping must be a number from 0 to 1, not {shown(self.damping)}")
        for name in ("residual", "fresh_sum"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigurationError(f"{name} must be True or False, not {shown(getattr(self, name))}")
        if self.bits is not None and self.bits not in get_args(Bits):
            raise ConfigurationError(f"bits must be 4, 8 or None, not {shown(self.bits)}")
        if self.most_versions is not None:
            check_whole_number("most_versions", self.most_versions, 1)
        if self.fresh_sum and not self.residual:
            raise ConfigurationError("fresh_sum=True needs residual=True: it sums residuals")

    @property
    def versions(self) -> int:
        """How many versions of a tensor it looks at."""
        return min(_VERSIONS[self.forecast], self.most_versions or _VERSIONS[self.forecast])

    @property
    def cooldown(self) -> int:
        """How many steps at the end are best computed in full: the last step of many schedules has no length."""
        return 2 if self.versions > 1 else 0


PAPER = Method("reuse", residual=False, fresh_sum=False)
"""The recurrence of the paper."""

FORECAST = Method()
"""What the study in docs/quality.md has found best."""

FORECAST_OF_KEYS = Method(bits=4, most_versions=4)
"""The same of keys and values, which are far more than components' live edges (docs/tokens.md)."""

FORECAST_OF_BOTH = Method(bits=8, most_versions=4)
"""The same of keys and of what components make on a part of the tokens. Each device has an N-th of the keys, which
leaves room for more bits; with four, pictures were farther off (docs/tokens.md)."""

_PRESETS = {"paper": PAPER, "forecast": FORECAST}


def method_of(given: str | Method) -> Method:
    """A method by the name of its preset, or itself.

    Raises:
        ConfigurationError: there is no preset of that name.
    """
    if isinstance(given, Method):
        return given
    if not isinstance(given, str) or given not in _PRESETS:
        known = " or ".join(map(repr, _PRESETS))
        raise ConfigurationError(f"method must be {known} or a Method, not {shown(given)}")
    return _PRESETS[given]
