"""What a user can set: every setting's name, default, check and help text, in one place.

`AsyncDiff` takes these by name, the commands as options, a study as "name=value"; all of them pass the record on whole.
"""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from asyncdiff.errors import ConfigurationError, SplitError
from asyncdiff.plan.mesh import Mesh
from asyncdiff.plan.method import FORECAST_OF_BOTH, FORECAST_OF_KEYS, Method, method_of
from asyncdiff.plan.numbers import check_number, check_whole_number, shown
from asyncdiff.plan.places import Places, check_places
from asyncdiff.plan.schedule import Schedule
from asyncdiff.plan.split import Split, check_split

Executor = Literal["auto", "local", "distributed"]
MethodName = Literal["paper", "forecast"]
Processes = Any
"""A `torch.distributed.ProcessGroup`, or a `DeviceMesh` with one axis: here nothing is known of either."""

# Far more than anybody has; with still more, planning alone would use up time and memory.
_MOST_DEVICES = 1024
_MOST_SECONDS = 1e9  # what clocks can count to


def _setting(
    default: Any,
    text: str,
    least: int | None = None,
    above: float | None = None,
    most: float | None = None,
    option: str = "",
    is_option: bool = True,
    is_fixed: bool = False,
) -> Any:
    """A setting with its help text and bounds.

    Args:
        option: its name on the command line, where that is another.
        is_option: whether it can be given on a command line at all.
        is_fixed: whether processes that stay have it for good.
    """
    bounds = {"least": least, "above": above, "most": most}
    return field(
        default=default,
        metadata={"help": text, "option": option, "is_option": is_option, "is_fixed": is_fixed, **bounds},
    )


@dataclass(frozen=True)
class Settings:
    """How a pipeline's denoiser is to be run. Checked when it is made.

    Raises:
        ConfigurationError: a value that cannot work, or two that contradict each other.
        SplitError: a split that is none.
    """

    components: int | None = _setting(
        None,
        "N, parts of the denoiser; N + S − 1 devices. By default as many as there are devices for, or tokens instead, "
        "where that is exact and fast.",
        least=1,
        most=_MOST_DEVICES,
    )
    stride: int = _setting(
        1,
        "S, noise predictions that one parallel round yields: 2 is faster, less exact.",
        least=1,
        most=_MOST_DEVICES,
    )
    warmup: int = _setting(
        3,
        "w, ordinary steps at first: more is slower and closer to the ordinary picture. Best with (w − 1) divisible by "
        "S.",
        least=1,
    )
    guidance: int | None = _setting(
        None,
        "G, groups of devices that share out every step: parts of the batch, or a guidance branch each. Exact. "
        "G · (N + S − 1) devices. By default 1 where components are given, else as many as can share out.",
        least=1,
        most=_MOST_DEVICES,
        option="guidance-devices",
    )
    tokens: int | None = _setting(
        None,
        "P, parts of the picture's tokens: each device runs all of a transformer on its own, with the others' keys and "
        "values; steps in full are divided too. With components, rounds run one on each part: G · P · N devices.",
        least=1,
        most=_MOST_DEVICES,
    )
    fresh: bool | None = _setting(
        None,
        "With tokens: True exchanges the others' keys and values within every step that is computed, which is exact "
        "(bridge still forecasts steps); False forecasts them. By default True with tokens alone, False with "
        "components as well.",
    )
    time_shift: bool = _setting(
        False, "After the warm-up give every component the timestep before, to match its inputs' age."
    )
    split: Split | None = _setting(
        None,
        "N lists of module names of the denoiser, to divide it by hand; units that no list names run on every device. "
        "By default found by counting costs.",
    )
    bridge: int | None = _setting(
        None,
        "k: of k steps after the warm-up one is computed, the others are forecast; on one device too. By default 1.",
        least=1,
    )
    target_speedup: float | None = _setting(
        None, "A modelled speed-up: as many steps are bridged as it takes. In place of bridge.", above=0
    )
    max_error: float | None = _setting(
        None,
        "The guard: where forecasts are off by more than this, relative to their size, more is computed; "
        "0.05 for instance.",
        above=0,
    )
    cooldown: int | None = _setting(
        None, "Ordinary steps at the end. By default 2 with a method that forecasts, else 0.", least=0
    )
    resync_every: int | None = _setting(
        None, "After the warm-up, every so manieth step is an ordinary one. By default none is.", least=1
    )
    shard: bool = _setting(
        False,
        "Each device gets its own part of the denoiser's weights alone; steps in full are then computed by one device "
        "after the other. For a pipeline on the CPU; guidance is 1 unless it is given.",
        is_fixed=True,
    )
    place: Places | None = _setting(
        None,
        "With shard, the rank of a group that alone has a part of the pipeline beside the denoiser (text encoders, "
        "VAE): it computes, the others receive. By name; None for all ranks. By default dealt out to even memory out.",
        is_option=False,
        is_fixed=True,
    )
    share_decode: bool = _setting(
        False,
        "The VAE's decoding is shared out among the devices: pictures or frames of a batch, or its tiles, where tiling "
        "is on. The same picture.",
    )
    method: MethodName | Method = _setting(
        "forecast",
        "What stands in for what other devices are still computing: forecast, what the steps before let expect; or "
        "paper, what they made last, much farther from the ordinary picture.",
    )
    executor: Executor = _setting(
        "auto",
        "distributed: a process for each device; local: all in this process, the same numbers; auto: distributed "
        "under torchrun, or where a process group is.",
        is_option=False,
        is_fixed=True,
    )
    process_group: Processes | None = _setting(
        None,
        "The processes that take part, where not all do: a torch.distributed.ProcessGroup, or a DeviceMesh with one "
        "axis (of several: mesh['name']). Ranks are counted from 0 among them. By default all processes.",
        is_option=False,
        is_fixed=True,
    )
    backend: str | None = _setting(
        None,
        "What moves tensors between devices, where the process group is started here: nccl, gloo (by way of the host's "
        "memory), or another of torch.distributed. By default nccl for GPUs, gloo for the rest; in a process group "
        "that exists, its own.",
        is_fixed=True,
    )
    timeout: float = _setting(
        300.0, "Seconds after which waiting for another rank is an error.", above=0, most=_MOST_SECONDS, is_fixed=True
    )

    def __post_init__(self) -> None:
        for own in dataclasses.fields(self):
            object.__setattr__(self, own.name, _checked(own, getattr(self, own.name)))
        if not isinstance(self.executor, str) or self.executor not in get_args(Executor):
            raise ConfigurationError(f"executor must be 'auto', 'local' or 'distributed', not {shown(self.executor)}")
        if self.process_group is not None and self.executor == "local":
            raise ConfigurationError(
                "process_group names the processes that take part, but executor='local' computes in this one alone; "
                "give one of them"
            )
        for own in dataclasses.fields(self):
            kind: Any = own.type
            if kind in (bool, bool | None) and not isinstance(getattr(self, own.name), kind):
                raise ConfigurationError(f"{own.name} must be True or False, not {shown(getattr(self, own.name))}")
        if self.backend is not None and (not isinstance(self.backend, str) or not self.backend):
            raise ConfigurationError(f"backend must be a name, for instance 'gloo', not {shown(self.backend)}")
        if self.bridge is not None and self.target_speedup is not None:
            raise ConfigurationError("bridge and target_speedup both say how many steps are bridged; give one of them")
        if self.place is not None:
            check_places(self.place)
            if not self.shard:
                raise ConfigurationError("place says where parts live with shard=True; give both, or neither")
        if self.tokens is not None:
            self._check_tokens()
        elif self.fresh:
            raise ConfigurationError("fresh=True is about the keys and values of tokens; give tokens, or leave it out")
        method_of(self.method)
        if self.split is not None:
            check_split(self.split)
        if self.split is not None and self.components not in (None, len(self.split)):
            raise SplitError(f"the split has {len(self.split)} lists of module names, but components={self.components}")

    def _check_tokens(self) -> None:
        if self.has_fresh_keys and method_of(self.method).bits == 4:
            raise ConfigurationError(
                f"tokens={self.tokens} exchanges the keys of the step itself, which Method(bits=4) would leave far "
                "off: give bits=8, or fresh=False, where what travels is their difference to the step before"
            )
        if self.fresh and self.components not in (None, 1):
            raise ConfigurationError(
                f"fresh=True makes every step that is computed one in full, in which components={self.components} have "
                "nothing to divide; leave out one of them"
            )
        others = {
            "split": self.split is not None,
            "stride": self.stride > 1,
            "shard": self.shard,
        }
        for name, is_given in others.items():
            if is_given:
                raise ConfigurationError(
                    f"tokens={self.tokens} gives every device all of the denoiser and a part of the picture, and does "
                    f"not go together with {name} yet; leave out one of them"
                )

    @property
    def told_components(self) -> int | None:
        """N, where it is said in so many words or by the split; 1 where only tokens are divided."""
        if self.tokens is not None:
            return self.components or 1
        return self.components if self.split is None else len(self.split)

    @property
    def has_fresh_keys(self) -> bool:
        """Whether keys and values are those of the step itself: what is exact comes first."""
        if self.fresh is None:
            return (self.tokens or 1) > 1 and self.told_components == 1
        return self.fresh

    @property
    def chosen_method(self) -> Method:
        """The method itself, where its name is given: what forecasts keys is not what forecasts live edges."""
        found = method_of(self.method)
        forecasts_keys = (self.tokens or 1) > 1 and not self.has_fresh_keys and self.method == "forecast"
        if not forecasts_keys:
            return found
        return FORECAST_OF_KEYS if self.told_components == 1 else FORECAST_OF_BOTH

    def schedule(self, components: int | None = None) -> Schedule:
        """The schedule of so many components; by default of those that are told, or of one."""
        return Schedule(
            (self.tokens or 1) * (components or self.told_components or 1),
            self.stride,
            self.warmup,
            self.time_shift,
            self.bridge or 1,
            self.chosen_method.cooldown if self.cooldown is None else self.cooldown,
            self.resync_every,
            guarded=self.max_error is not None,
            chained=self.shard,
            by_tokens=(self.tokens or 1) > 1,
            fresh=self.has_fresh_keys,
        )

    def mesh(self, components: int) -> Mesh:
        """The ranks that so many components, and the groups that are told, take."""
        return Mesh(self.guidance or 1, components + self.stride - 1, self.tokens or 1)

    def demand(self, mesh: Mesh) -> str:
        """What takes as many ranks as a mesh of these settings has, in words: numbers, and what they come to."""
        if self.tokens is not None and mesh.component > 1:
            return (
                f"guidance={mesh.guidance}, tokens={mesh.tokens} and components={mesh.component} need "
                f"guidance × tokens × components = {mesh.world_size}"
            )
        if self.tokens is not None:
            return f"guidance={mesh.guidance} and tokens={self.tokens} need guidance × tokens = {mesh.world_size}"
        components = mesh.component - self.stride + 1
        numbers, formula = f"components={components} and stride={self.stride}", "components + stride - 1"
        if mesh.guidance > 1:
            numbers, formula = f"guidance={mesh.guidance}, {numbers}", f"guidance × ({formula})"
        return f"{numbers} need {formula} = {mesh.world_size}"

    def arguments(self) -> dict[str, Any]:
        """Every setting by name, as `AsyncDiff` takes them."""
        return {own.name: getattr(self, own.name) for own in dataclasses.fields(self)}


@dataclass(frozen=True)
class Knob:
    """One setting, as those who show or read settings see it.

    Attributes:
        name: that of the attribute, and of `AsyncDiff`'s argument.
        option: that on the command line.
        default: what it is where nothing is said.
        help: what it means.
        kinds: the types that it may have, None left out.
        least: the smallest whole number that it can be, if it is one.
        is_option: whether it can be given on a command line: an object cannot, and where ranks run is each command's
            own matter.
        is_fixed: whether processes that stay have it for good; the others can be chosen for each generation.
    """

    name: str
    option: str
    default: Any
    help: str
    kinds: tuple[Any, ...]
    least: int | None
    is_option: bool
    is_fixed: bool


def knobs() -> Iterator[Knob]:
    """All settings, in the order in which `AsyncDiff` takes them."""
    for own in dataclasses.fields(Settings):
        is_union = get_origin(own.type) in (Union, UnionType)
        kinds = tuple(kind for kind in (get_args(own.type) if is_union else (own.type,)) if kind is not type(None))
        option = own.metadata["option"] or own.name.replace("_", "-")
        yield Knob(
            name=own.name,
            option=option,
            default=own.default,
            help=own.metadata["help"],
            kinds=kinds,
            least=own.metadata["least"],
            is_option=own.metadata["is_option"],
            is_fixed=own.metadata["is_fixed"],
        )


def _checked(own: "dataclasses.Field[Any]", value: Any) -> Any:
    """The value, if it is within its setting's bounds; of numbers the plain one."""
    if value is None and own.default is None:
        return value
    least, above, most = own.metadata["least"], own.metadata["above"], own.metadata["most"]
    if least is not None:
        return check_whole_number(own.name, value, least, most)
    return value if above is None else check_number(own.name, value, above, most)


def in_options(text: str, prefix: str = "") -> str:
    """A sentence in which settings are called as on the command line, where they can be given there."""
    for knob in (knob for knob in knobs() if knob.is_option):
        text = re.sub(rf"(?<![\w-]){knob.name}(?![\w-])", f"{prefix}{knob.option}", text)
    return text
