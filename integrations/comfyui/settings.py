"""The settings of asyncdiff that a request may choose, as widgets; those that are not touched stay as the service has
them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .errors import InputError
from .written import read_split

UNTOUCHED = "as served"
"""In a list: as the service has it."""
BELOW_ALL = -1
"""Of a number: as the service has it."""
LEFT_OUT = "left_out"
_SWITCH = ("on", "off")
_MOST = 10000


@dataclass(frozen=True)
class Setting:
    """One of asyncdiff's own.

    Attributes:
        kind: of its widget.
        help: what it means.
        choices: of a "choice".
    """

    name: str
    kind: Literal["whole", "number", "switch", "choice", "split"]
    help: str
    choices: tuple[str, ...] = ()

    @property
    def untouched(self) -> Any:
        """The widget's value for what the service has."""
        return {"whole": BELOW_ALL, "number": float(BELOW_ALL), "split": ""}.get(self.kind, UNTOUCHED)

    def widget(self) -> tuple[Any, dict[str, Any]]:
        """As ComfyUI describes an input."""
        options: dict[str, Any] = {"default": self.untouched, "tooltip": self.help}
        if self.kind in ("switch", "choice"):
            return [UNTOUCHED, *(self.choices or _SWITCH)], options
        if self.kind == "split":
            return "STRING", options
        options["tooltip"] += f" {BELOW_ALL}: as the service has it."
        if self.kind == "whole":
            return "INT", {**options, "min": BELOW_ALL, "max": _MOST}
        return "FLOAT", {**options, "min": float(BELOW_ALL), "max": float(_MOST), "step": 0.01, "round": False}

    def value(self, given: Any) -> Any:
        """What the service is told.

        Raises:
            InputError: a split that is none.
        """
        if self.kind == "switch":
            return given == _SWITCH[0]
        return read_split(given) if self.kind == "split" else given


# The order and the texts of asyncdiff's own, which tests/integrations compares them with.
SETTINGS = (
    Setting(
        "components",
        "whole",
        "N, parts of the denoiser; N + S − 1 devices. By default as many as there are devices for, or tokens instead, "
        "where that is exact and fast.",
    ),
    Setting("stride", "whole", "S, noise predictions that one parallel round yields: 2 is faster, less exact."),
    Setting(
        "warmup",
        "whole",
        "w, ordinary steps at first: more is slower and closer to the ordinary picture. Best with (w − 1) divisible by "
        "S.",
    ),
    Setting(
        "guidance",
        "whole",
        "G, groups of devices that share out every step: parts of the batch, or a guidance branch each. Exact. "
        "G · (N + S − 1) devices. By default 1 where components are given, else as many as can share out.",
    ),
    Setting(
        "tokens",
        "whole",
        "P, parts of the picture's tokens: each device runs all of a transformer on its own, with the others' keys and "
        "values; steps in full are divided too. With components, rounds run one on each part: G · P · N devices.",
    ),
    Setting(
        "fresh",
        "switch",
        "With tokens: True exchanges the others' keys and values within every step that is computed, which is exact "
        "(bridge still forecasts steps); False forecasts them. By default True with tokens alone, False with "
        "components as well.",
    ),
    Setting(
        "time_shift", "switch", "After the warm-up give every component the timestep before, to match its inputs' age."
    ),
    Setting(
        "split",
        "split",
        "N lists of module names of the denoiser, to divide it by hand; units that no list names run on every device. "
        "By default found by counting costs.",
    ),
    Setting(
        "bridge",
        "whole",
        "k: of k steps after the warm-up one is computed, the others are forecast; on one device too. By default 1.",
    ),
    Setting(
        "target_speedup",
        "number",
        "A modelled speed-up: as many steps are bridged as it takes. In place of bridge.",
    ),
    Setting(
        "max_error",
        "number",
        "The guard: where forecasts are off by more than this, relative to their size, more is computed; "
        "0.05 for instance.",
    ),
    Setting("cooldown", "whole", "Ordinary steps at the end. By default 2 with a method that forecasts, else 0."),
    Setting(
        "resync_every", "whole", "After the warm-up, every so manieth step is an ordinary one. By default none is."
    ),
    Setting(
        "share_decode",
        "switch",
        "The VAE's decoding is shared out among the devices: pictures or frames of a batch, or its tiles, where tiling "
        "is on. The same picture.",
    ),
    Setting(
        "method",
        "choice",
        "What stands in for what other devices are still computing: forecast, what the steps before let expect; or "
        "paper, what they made last, much farther from the ordinary picture.",
        ("paper", "forecast"),
    ),
)
_BY_NAME = {setting.name: setting for setting in SETTINGS}


def widgets() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Of all settings, by name."""
    help_of_left_out = (
        "Names of settings that the service has and these pictures shall not have, with commas between them: "
        "'components' where tokens are chosen, for instance."
    )
    left_out = ("STRING", {"default": "", "tooltip": help_of_left_out})
    return {**{setting.name: setting.widget() for setting in SETTINGS}, LEFT_OUT: left_out}


def chosen(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the service is told, of the widgets' values: those that were touched, and null for those left out.

    Raises:
        InputError: a value that is none, or a name of nothing.
    """
    told: dict[str, Any] = dict.fromkeys(read_names(given.get(LEFT_OUT, "")))
    for setting in SETTINGS:
        value = given.get(setting.name, setting.untouched)
        if value == setting.untouched:
            continue
        if setting.name in told:
            raise InputError(f"{setting.name} is given a value and left out too; do one of them")
        told[setting.name] = setting.value(value)
    return told


def read_names(text: str) -> list[str]:
    """The settings that are named.

    Raises:
        InputError: there is no such setting.
    """
    names = [name for name in (part.strip() for part in text.split(",")) if name]
    unknown = next((name for name in names if name not in _BY_NAME), None)
    if unknown is not None:
        raise InputError(f"{LEFT_OUT} names {unknown!r}, which is no setting; there are {', '.join(_BY_NAME)}")
    return names
