"""What a generation really did: the honest account of a run."""

import itertools
from collections import Counter
from dataclasses import dataclass, field

from asyncdiff.plan.schedule import StepKind

# Why a step is computed in full that the schedule, or the user's bound, wants so.
WARM_UP = "warm-up"
RESYNC = "resync or cool-down"
FRESH = "with fresh keys"
GUARD = "forecasts too far off"

_NOTHING = "NOTHING WAS ACCELERATED: no step took less than an ordinary one"


@dataclass
class Counts:
    """Counted while a generation runs, on one rank and for one denoiser.

    Attributes:
        full: ordinary calls by reason.
        divided: those of them in which every rank computed its own tokens.
        rounds, bridged, stored: the other calls.
        inserted: the steps that were computed in full, or from which on no step was bridged, because forecasts were
            too far off.
        largest_error: how far they were off at most on this rank, if that was judged.
        cost: what all calls took in the model, in ordinary calls.
        units_run, units_skipped: calls of units in rounds and bridged steps.
        kinds: of all calls, in the order in which they were made.
    """

    full: Counter[str] = field(default_factory=Counter)
    divided: int = 0
    rounds: int = 0
    bridged: int = 0
    stored: int = 0
    inserted: dict[int, StepKind] = field(default_factory=dict)
    largest_error: float = 0.0
    cost: float = 0.0
    units_run: int = 0
    units_skipped: int = 0
    seconds_full: float = 0.0
    seconds_rounds: float = 0.0
    seconds_bridged: float = 0.0
    kinds: list[StepKind] = field(default_factory=list)

    def add(self, kind: StepKind, seconds: float, reason: str = "") -> None:
        """Count a call, how long it took, and, if it was an ordinary one, why."""
        self.kinds.append(kind)
        if kind.is_full:
            self.full[reason] += 1
            self.divided += kind is StepKind.DIVIDED
            self.seconds_full += seconds
        elif kind is StepKind.ROUND:
            self.rounds += 1
            self.seconds_rounds += seconds
        elif kind is StepKind.BRIDGED:
            self.bridged += 1
            self.seconds_bridged += seconds
        else:
            self.stored += 1

    @property
    def steps(self) -> int:
        """Denoiser calls in all."""
        return self.full.total() + self.rounds + self.bridged + self.stored

    @property
    def speedup(self) -> float:
        """The modelled speed-up of these calls, without communication."""
        return self.steps / self.cost if self.cost else 1.0


@dataclass
class GuidanceCounts:
    """What several groups of ranks did with a denoiser's calls in one generation; the same on all ranks.

    Attributes:
        split: calls of which every group computed its part of the batch.
        deferred: calls, each computed by one group, while other groups computed others of the same step.
        whole: calls that one group computed while the others waited.
        cost: what all calls took, in calls of one device.
        reason: why not all calls were shared out, as far as it is known.
    """

    groups: int = 1
    split: int = 0
    deferred: int = 0
    whole: int = 0
    cost: float = 0.0
    reason: str = ""

    @property
    def speedup(self) -> float:
        """How many times as fast the calls were as one after the other on one group, without communication."""
        calls = self.split + self.deferred + self.whole
        return calls / self.cost if calls else 1.0

    @property
    def is_shared(self) -> bool:
        """Whether several groups computed at the same time."""
        return bool(self.split or self.deferred)

    def __str__(self) -> str:
        text = (
            f"  on {self.groups} groups of devices: {self.split} calls divided along the batch, {self.deferred} "
            "computed by a group each at the same time as others, "
            f"{self.whole} by one group while the others waited"
        )
        return text + (f" ({self.reason})" if self.whole and self.reason else "")


@dataclass(frozen=True)
class DenoiserReport:
    """One denoiser in one generation, as this rank saw it.

    Attributes:
        name: the pipeline's name for it.
        components: the module names of each component's units; where tokens are divided, those of each rank at which
            others read something.
        shares: each component's part of the cost of one ordinary call.
        live_edges: for each component, the tensors that it reads from others ("unit → leaf").
        bytes_per_round: what all ranks together send in one round, predictions left out.
        held_bytes: the memory that this process takes for versions of live edges, as long as the generation runs.
        counts: steps by kind, and the time in them.
        modelled_speedup: of the denoising loop, from the shares and the groups, without communication.
        bridge: k, of how many steps one is a round.
        guidance: how the calls were shared out among groups of devices.
        bounds: where each device's tokens begin, and where the last one's end; none where tokens are not divided.
    """

    name: str
    components: tuple[tuple[str, ...], ...]
    shares: tuple[float, ...]
    live_edges: tuple[tuple[str, ...], ...]
    bytes_per_round: int
    held_bytes: int
    counts: Counts
    modelled_speedup: float
    bridge: int = 1
    guidance: GuidanceCounts = field(default_factory=GuidanceCounts)
    bounds: tuple[int, ...] = ()

    @property
    def parts(self) -> tuple[int, int]:
        """How many components there are, and how many parts of the tokens."""
        tokens = max(len(self.bounds) - 1, 1)
        return len(self.components) // tokens, tokens

    @property
    def accelerated(self) -> bool:
        """Whether any step took less than an ordinary one; a round of one component does not."""
        counts = self.counts
        in_parts = counts.divided or (counts.rounds and len(self.components) > 1)
        return bool(in_parts or counts.bridged or counts.stored or self.guidance.is_shared)

    @property
    def summary(self) -> str:
        """What was done, in one line."""
        counts = self.counts
        done = {
            "calls in full": counts.full.total(),
            "rounds": counts.rounds,
            "calls bridged": counts.bridged,
            "from stored predictions": counts.stored,
        }
        steps = ", ".join(f"{count} {what}" for what, count in done.items() if count)
        components, tokens = self.parts
        ways = [f"{self.guidance.groups} groups of devices"] if self.guidance.is_shared else []
        ways += [f"{tokens} parts of the tokens"] if tokens > 1 else []
        ways += [f"{components} components"] if components > 1 else []
        way = " with ".join(ways) or "one device"
        return f"{self.name} on {way}: {steps}; {self.modelled_speedup:.2f}x without communication (modelled)"

    def __str__(self) -> str:
        counts = self.counts
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.full.items())
        reasons += "; each device its tokens" if counts.divided else ""
        lines = [
            f"{self.name}: {counts.steps} denoiser calls = {counts.full.total()} in full ({reasons or 'none'}), "
            f"{counts.rounds} parallel rounds, {counts.bridged} bridged, {counts.stored} from stored predictions",
            f"  time in full calls {counts.seconds_full:.2f} s, in rounds {counts.seconds_rounds:.2f} s, "
            f"in bridged steps {counts.seconds_bridged:.2f} s; "
            f"unit calls run in rounds {counts.units_run}, skipped {counts.units_skipped}",
        ]
        if counts.largest_error:
            lines.append(f"  forecasts were off by at most {counts.largest_error:.3g}{_inserted(counts)}")
        if self.guidance.groups > 1:
            lines.append(str(self.guidance))
        lines += self._parts_of_tokens()
        for number, units in enumerate(() if self.bounds else self.components):
            first, last = (units[0], units[-1]) if units else ("–", "–")
            lines.append(
                f"  component {number}: {len(units)} unit{'s' * (len(units) != 1)} ({first} … {last}), "
                f"{self.shares[number]:.1%} of a call, "
                f"reads {len(self.live_edges[number])} live edge{'s' * (len(self.live_edges[number]) != 1)}"
            )
        lines.append(
            f"  {self.bytes_per_round / 2**20:.2f} MiB of live edges per round over all ranks, "
            f"{self.held_bytes / 2**20:.2f} MiB held here; "
            f"modelled speed-up of this loop without communication {self.modelled_speedup:.2f}x"
        )
        return "\n".join(lines)

    def _parts_of_tokens(self) -> list[str]:
        """What each rank has, where tokens are divided."""
        components, _ = self.parts
        ranks = itertools.product(range(components), enumerate(itertools.pairwise(self.bounds)))
        alone = components == 1
        what = "keys and values" if alone else "keys, values and what other components make"
        return [
            f"  {'' if alone else f'component {component}, '}part {part}: tokens {begin} … {end - 1}, "
            f"{self.shares[rank]:.1%} of a call, reads {len(self.live_edges[rank])} tensors of {what}"
            for rank, (component, (part, (begin, end))) in enumerate(ranks)
        ]


def _inserted(counts: Counts) -> str:
    """Which steps were computed because forecasts were too far off."""
    ways = {
        StepKind.ROUND: "none bridged any more from",
        **dict.fromkeys((kind for kind in StepKind if kind.is_full), "in full"),
    }
    steps = {way: ", ".join(str(at) for at, kind in counts.inserted.items() if kind is way) for way in ways}
    parts = [f"{ways[way]}: step {numbers}" for way, numbers in steps.items() if numbers]
    return f"; for that reason {'; '.join(parts)}" if parts else ""


@dataclass(frozen=True)
class Report:
    """The last (or the running) generation on this rank.

    Where one process computes for all, `bytes_sent` are those of the live edges that would be sent.
    """

    executor: str
    ranks: tuple[int, ...]
    world_size: int
    components: int
    tokens: int
    stride: int
    warmup: int
    bytes_sent: int
    seconds_waited: float
    denoisers: tuple[DenoiserReport, ...]
    guidance: int = 1

    @property
    def parts(self) -> str:
        """What a group of devices shares out, and how."""
        if self.tokens == 1:
            return f"N={self.components} S={self.stride}"
        return f"P={self.tokens}" + (f" N={self.components}" if self.components > 1 else "")

    @property
    def accelerated(self) -> bool:
        """Whether any step took less than an ordinary one, or was shared out among groups of devices."""
        return any(denoiser.accelerated for denoiser in self.denoisers)

    @property
    def summary(self) -> str:
        """What was done, in a line for each denoiser."""
        lines = [denoiser.summary for denoiser in self.denoisers]
        return "\n".join(lines if self.accelerated else [*lines, _NOTHING])

    def __str__(self) -> str:
        who = f"rank {self.ranks[0]} of {self.world_size}" if len(self.ranks) == 1 else f"all {self.world_size} ranks"
        groups = f"G={self.guidance} " if self.guidance > 1 else ""
        sent = "sent" if self.executor == "distributed" else "would send"
        lines = [
            f"asyncdiff {groups}{self.parts} w={self.warmup}, executor {self.executor}, {who}: "
            f"{sent} {self.bytes_sent / 2**20:.2f} MiB, waited {self.seconds_waited:.2f} s"
        ]
        lines += [str(denoiser) for denoiser in self.denoisers]
        if not any(denoiser.counts.steps for denoiser in self.denoisers):
            lines.append("  no generation yet")
        elif not self.accelerated:
            lines.append(f"  {_NOTHING}")
        elif self.executor == "local" and self.world_size > 1:
            lines.append(f"  one process computed for all {self.world_size} devices, one after the other: a preview")
        return "\n".join(lines)
