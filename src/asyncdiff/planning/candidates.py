"""Every sensible way to run a model on so many devices, with what is predicted of it. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from asyncdiff.denoiser.graph import operations
from asyncdiff.denoiser.rates import DeviceRates
from asyncdiff.errors import SplitError
from asyncdiff.plan.course import Course
from asyncdiff.plan.division import Division, divide_denoiser
from asyncdiff.plan.link import Link
from asyncdiff.plan.method import FORECAST, FORECAST_OF_KEYS, Bits
from asyncdiff.plan.routing import messages, parts_of_round
from asyncdiff.plan.schedule import Schedule
from asyncdiff.plan.timeline import Load, Timeline, forecast_shares, timeline
from asyncdiff.plan.tokens import divide_tokens
from asyncdiff.planning.indication import Indication, Key, indication_of
from asyncdiff.planning.memory import Memory, heaviest
from asyncdiff.planning.retiming import Seconds, retimed
from asyncdiff.planning.subject import Share, Subject

_STRIDES = (1, 2)
_BRIDGES = (1, 2, 3)
_BRIDGES_OF_ONE = (1, 2, 3, 4)
_FEW_BITS: Bits = 8
_WAYS_OF_TOKENS: tuple[tuple[bool, int, Bits | None], ...] = (
    *((True, bridge, bits) for bridge in _BRIDGES for bits in (None, _FEW_BITS)),
    (False, 1, None),
)
# With keys that are forecast: more parts are not safe, and bridged steps are farther off than on one device
# (docs/tokens.md).
_MOST_PARTS = 4


@dataclass(frozen=True)
class Way:
    """Settings of `AsyncDiff`, by their names there."""

    guidance: int
    components: int
    stride: int
    bridge: int
    shard: bool
    warmup: int
    tokens: int = 1
    fresh: bool = False
    bits: Bits | None = None

    @property
    def devices(self) -> int:
        """G · (N + S − 1), or G · P."""
        return self.guidance * self.tokens * (self.components + self.stride - 1)

    @property
    def computes_what_is_due(self) -> bool:
        """Whether what is computed is what one device would compute: nothing is of an earlier step, nor rounded."""
        return self.components == 1 and (self.tokens == 1 or (self.fresh and self.bits is None))

    @property
    def is_exact(self) -> bool:
        """Whether the pictures are the ordinary ones."""
        return self.computes_what_is_due and self.bridge == 1

    def __str__(self) -> str:
        """As `AsyncDiff` takes them, the warm-up left out, which all ways have in common."""
        parts = [f"guidance={self.guidance}"] if self.guidance > 1 else []
        parts += [f"components={self.components}"] if self.tokens == 1 else [f"tokens={self.tokens}"]
        parts += ["fresh=False"] * (self.tokens > 1 and not self.fresh)
        parts += [f"stride={self.stride}"] if self.stride > 1 else []
        parts += [f"bridge={self.bridge}"] if self.bridge > 1 else []
        parts += [f"method=Method(bits={self.bits})"] if self.bits else []
        return ", ".join(parts + ["shard=True"] * self.shard)


@dataclass(frozen=True)
class Candidate:
    """A way, and what is predicted of it.

    Attributes:
        devices: how many it takes.
        seconds: of the denoising loop, for each picture.
        speedup: over the plain pipeline on one of these devices.
        bytes_per_round: live edges that all devices send in a step that is a round, in all of its calls.
        bytes_per_picture: all that they send, for each picture.
        memory: of the device that needs most.
        missing: bytes that this device lacks; 0 where all fits.
        indication: how close the demo models' pictures stay; None where the way is exact, or was not measured.
        is_best: whether no other that fits is both faster and, by the indication, closer.
    """

    way: Way
    devices: int
    seconds: float
    speedup: float
    bytes_per_round: float
    bytes_per_picture: float
    memory: Memory
    missing: float
    indication: Indication | None
    is_best: bool = False

    @property
    def fits(self) -> bool:
        """Whether its memory is there."""
        return self.missing == 0

    @property
    def decibels(self) -> float | None:
        """The indication, of the demo model that is farther off: infinite where the way is exact."""
        if self.way.is_exact:
            return float("inf")
        return None if self.indication is None else self.indication.least


@dataclass(frozen=True)
class AloneTimes:
    """Seconds of one call in a round, and in a bridged step, where one device computes all components."""

    round: float
    bridged: float


@dataclass(frozen=True)
class Conditions:
    """What a model is to be run on, and how.

    Attributes:
        devices: how many there are.
        memory: bytes that each has; None where that is not to be looked at.
        link: between them.
        rates: of their kind.
        steps: of a generation.
        warmup: ordinary steps at first.
        call: seconds of a denoiser's call on one device, by the part of the batch.
        outside: seconds that a device spends outside of the denoiser, for each call.
        alone: seconds of rounds and bridged steps of so many components that one device computes after each other,
            where that was measured.
        units: seconds of the denoiser's units in a call of the whole batch, where they were measured; by default they
            are as their operations are counted.
        by_tokens: what a call with one of so many parts of the tokens takes, relative to an undivided one, where that
            was measured.
    """

    devices: int
    memory: float | None
    link: Link
    rates: DeviceRates
    steps: int
    warmup: int
    call: Mapping[float, float]
    outside: float = 0.0
    alone: Mapping[int, AloneTimes] = field(default_factory=dict)
    units: Seconds = field(default_factory=dict)
    by_tokens: Mapping[tuple[int, bool], float] = field(default_factory=dict)


class Planner:
    """Predicts ways for one subject, whose divisions are found once.

    Args:
        subject: what is planned for.
        given: the conditions.
        indications: what is known of the demo models.
    """

    def __init__(self, subject: Subject, given: Conditions, indications: Mapping[Key, Indication]) -> None:
        self._subject, self._given, self._indications = subject, given, indications
        self._divisions: dict[tuple[int, bool], Division | None] = {}
        self._by_tokens: dict[Way, Division | None] = {}
        # What going through one byte takes, as a part of a call.
        self._of_a_byte = given.rates.per_byte / operations(subject.trace, given.rates)

    def candidates(self) -> Iterator[Candidate]:
        """All sensible ways; those in few bits a number only where they are faster for it."""
        seconds: dict[Way, float] = {}
        for way in ways(self._given.devices, self._given.warmup):
            share = self._subject.share_out(way.guidance)
            if share is None:
                continue
            division = self._divided(way)
            if division is None:
                continue
            found = self._candidate(way, share, division)
            seconds[way] = found.seconds
            if way.bits is None or found.seconds < seconds[replace(way, bits=None)]:
                yield found

    def timeline(self, way: Way) -> Timeline:
        """Who does what when, of one group, if one goes this way.

        Raises:
            SplitError: the denoiser cannot be divided so.
        """
        share, division = self._subject.share_out(way.guidance), self._divided(way)
        if share is None or division is None:
            raise SplitError(f"the denoiser cannot be run with {way}")
        return self._timeline(way, share, division)

    def _candidate(self, way: Way, share: Share, division: Division) -> Candidate:
        given, subject = self._given, self._subject
        found = self._timeline(way, share, division)
        memory = heaviest(subject, division, share)
        plain = given.steps * subject.calls * (given.call[1.0] + given.outside)
        return Candidate(
            way=way,
            devices=way.devices,
            seconds=found.seconds / subject.pictures,
            speedup=plain / found.seconds,
            bytes_per_round=way.guidance * share.part * share.calls * division.bytes_per_round,
            bytes_per_picture=way.guidance * found.sent / subject.pictures,
            memory=memory,
            missing=0 if given.memory is None else max(0.0, memory.total - given.memory),
            indication=self._indication(way),
        )

    def _indication(self, way: Way) -> Indication | None:
        """What was measured of such a way; fresh keys are as good as one device."""
        if way.is_exact or not (way.computes_what_is_due or way.tokens == 1):
            return None
        return indication_of(self._indications, way.components, way.stride, way.bridge)

    def _timeline(self, way: Way, share: Share, division: Division) -> Timeline:
        given = self._given
        call = given.call[share.part]
        rounds, bridged = self._beside(division, call)
        load = Load(
            call=call,
            calls=share.calls,
            part=share.part,
            prediction=share.part * self._subject.prediction,
            groups=way.guidance,
            rounds=rounds,
            bridged=bridged,
            divided=call * division.passes_within * self._of_a_byte,
            outside=given.outside,
        )
        return timeline(division, Course(division.schedule, given.steps - 1), load, given.link)

    def _beside(self, division: Division, call: float) -> tuple[tuple[float, ...], float]:
        """Seconds that each rank's rounds, and bridged steps, take beside the denoiser's own parts."""
        schedule, partition = division.schedule, division.partition
        ranks = range(schedule.world_size)
        alone = None if schedule.by_tokens else self._given.alone.get(schedule.components)
        if alone is None:
            rounds, bridged = forecast_shares(division, self._of_a_byte)
            return tuple(call * share for share in rounds), call * bridged
        computed = self._given.call[1.0] * sum(partition.shares)
        each = max(0.0, alone.round - computed) / schedule.components
        return (each,) * len(ranks), max(0.0, alone.bridged - self._given.call[1.0] * partition.end.share)

    def _divided(self, way: Way) -> Division | None:
        """The division of a way; None where there are not as many parts."""
        if way.tokens > 1:
            return self._divided_by_tokens(way)
        key = way.components, way.shard
        if key not in self._divisions:
            schedule = Schedule(way.components, 1, self._given.warmup, cooldown=FORECAST.cooldown, chained=way.shard)
            try:
                self._divisions[key] = self._retimed(
                    divide_denoiser(self._subject.trace, schedule, None, self._given.rates, FORECAST)
                )
            except SplitError:
                self._divisions[key] = None
        found = self._divisions[key]
        return None if found is None else self._scheduled(found, way)

    def _divided_by_tokens(self, way: Way) -> Division | None:
        key, counted, given = replace(way, guidance=1), self._subject.tokens, self._given
        if counted is None or counted.layout.tokens < way.tokens:
            return None
        if way.fresh and counted.with_text is not None:
            counted = counted.with_text
        if key not in self._by_tokens:
            share = given.by_tokens.get((way.tokens, way.fresh), counted.share(way.tokens))
            method = replace(FORECAST, bits=way.bits) if way.fresh else FORECAST_OF_KEYS
            schedule = Schedule(
                way.tokens,
                1,
                given.warmup,
                bridge=way.bridge,
                cooldown=method.cooldown,
                by_tokens=True,
                fresh=way.fresh,
            )
            try:
                self._by_tokens[key] = divide_tokens(counted.layout, schedule, given.rates, method, share, {})
            except SplitError:  # its steps cannot be bridged
                self._by_tokens[key] = None
        return self._by_tokens[key]

    def _retimed(self, division: Division) -> Division:
        given = self._given
        if not given.units:
            return division
        return retimed(division, self._subject.trace, given.rates, given.units, given.call[1.0])

    def _scheduled(self, division: Division, way: Way) -> Division:
        """The same components, by the schedule of a way."""
        schedule = replace(division.schedule, stride=way.stride, bridge=way.bridge)
        sent = messages(schedule, division.partition)
        part_of = parts_of_round(division.graph, division.partition, sent, self._given.rates)
        return replace(division, schedule=schedule, messages=sent, part_of=part_of)


def ways(devices: int, warmup: int) -> Iterator[Way]:
    """Every way that so many devices, or fewer, can go; those with few devices first."""
    found = [
        Way(guidance, components, stride, bridge, shard, warmup)
        for guidance in range(1, devices + 1)
        for components in range(1, devices // guidance + 1)
        for stride in (_STRIDES if components > 1 else (1,))
        for bridge in (_BRIDGES if components > 1 else _BRIDGES_OF_ONE)
        for shard in ((False, True) if components > 1 else (False,))
        if stride == 1 or bridge == 1
    ]
    found += [
        Way(guidance, 1, 1, bridge, False, warmup, tokens, fresh, bits)
        for guidance in range(1, devices // 2 + 1)
        for tokens in range(2, devices // guidance + 1)
        for fresh, bridge, bits in _WAYS_OF_TOKENS
        if fresh or tokens <= _MOST_PARTS
    ]
    return iter(sorted((way for way in found if way.devices <= devices), key=lambda way: way.devices))
