"""What several GPUs would take that have a part of the tokens each, from what one of them was measured to take.

Modelled, not measured, by the timeline with which `asyncdiff plan` works: fresh keys are waited for at every attention,
forecast ones have a whole step to arrive.

Beside them stands exact sequence parallelism as others do it (ring attention, arXiv 2310.01889: keys and values go
around from rank to rank). It is modelled from the same measured step: what it computes is the same, what it sends is
not. What it could compute meanwhile is left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from asyncdiff.plan.course import Course
from asyncdiff.plan.link import Link
from asyncdiff.plan.timeline import Load, timeline
from asyncdiff.plan.tokens import TokenDivision
from benchmarks.gpu.modelled import LINKS, Modelled


@dataclass(frozen=True)
class Wanted:
    """A generation to be modelled.

    Attributes:
        steps: of the generation.
        warmup: how many of them, at the beginning, are in full.
        groups: of ranks, which share out the guidance.
        prediction: bytes of the prediction of one of them.
        plain: seconds of an ordinary call on one GPU.
    """

    steps: int
    warmup: int
    groups: int
    prediction: int
    plain: float


@dataclass(frozen=True)
class Fresh:
    """Steps with fresh keys, as measured.

    Attributes:
        division: what of the schedule, and of what travels, is modelled by.
        computed, bridged: seconds of such a step, and of one that is forecast between two of them.
    """

    division: TokenDivision
    computed: float
    bridged: float

    @property
    def received(self) -> int:
        """Bytes that the last rank receives at the attentions of a step."""
        last = self.division.schedule.world_size - 1
        return sum(size for _, reader, size in self.division.exchanged_within if reader == last)

    def modelled(self, wanted: Wanted) -> Iterator[Modelled]:
        """With every step computed, with every second one bridged, and beside them exact sequence parallelism."""
        bits = self.division.method.bits
        fresh = "fresh" if bits is None else f"fresh, {bits} bits"
        for link in LINKS:
            waited = link.seconds(self.received, self.division.moments_within)
            for bridge in (1, self.division.schedule.bridge):
                division = _timed(self.division, wanted, bridge, step=self.computed, round_=self.computed)
                way = fresh if bridge == 1 else f"{fresh}, bridge={bridge}"
                yield _modelled(division, wanted, link, way, self.computed, self.bridged, waited)
            if bits is None:
                yield self._passed_around(wanted, link)

    def _passed_around(self, wanted: Wanted, link: Link) -> Modelled:
        layout, parts = self.division.layout, self.division.parts
        ranks = parts.count
        given = sum(layout.given_bytes(number, parts, part) for number in layout.sites for part in range(ranks - 1))
        waited = link.seconds(given, (ranks - 1) * len(layout.sites))
        end = link.seconds((ranks - 1) * self.division.result_bytes(0, 1.0))
        joining = link.seconds(wanted.prediction) if wanted.groups > 1 else 0.0
        step = self.computed + waited + end + joining
        seconds = wanted.steps * step
        speedup = wanted.steps * wanted.plain / seconds
        way = _named("ring, exact", ranks, wanted)
        return Modelled(wanted.groups * ranks, way, link.name, seconds, speedup, step, waited)


@dataclass(frozen=True)
class Forecast:
    """Rounds with forecast keys, as measured.

    Attributes:
        division: what of the schedule, and of what travels, is modelled by.
        round: seconds of one.
        full: of a step in full, divided as well.
    """

    division: TokenDivision
    round: float
    full: float

    @property
    def received(self) -> int:
        """Bytes that the last rank receives in a round."""
        return self.division.bytes_of(self.division.partition.reads[-1])

    def modelled(self, wanted: Wanted) -> Iterator[Modelled]:
        """By the default method."""
        for link in LINKS:
            division = _timed(self.division, wanted, 1, step=self.full, round_=self.round)
            yield _modelled(division, wanted, link, "", self.round, 0.0, link.seconds(self.received))


def _timed(division: TokenDivision, wanted: Wanted, bridge: int, step: float, round_: float) -> TokenDivision:
    """A division whose shares are seconds."""
    partition = division.partition
    return replace(
        division,
        schedule=replace(division.schedule, warmup=wanted.warmup, bridge=bridge),
        share=step,
        partition=replace(
            partition, shares=tuple(round_ for _ in partition.shares), end=replace(partition.end, share=0.0)
        ),
    )


def _modelled(
    division: TokenDivision, wanted: Wanted, link: Link, way: str, step: float, bridged: float, waited: float
) -> Modelled:
    ranks = division.parts.count
    load = Load(
        call=1.0,  # shares are seconds
        calls=1,
        part=1.0,
        prediction=wanted.prediction,
        groups=wanted.groups,
        rounds=(0.0,) * ranks,
        bridged=bridged,
    )
    seconds = timeline(division, Course(division.schedule, wanted.steps - 1), load, link).seconds
    each = step + waited if division.schedule.fresh else max(step, waited)
    speedup = wanted.steps * wanted.plain / seconds
    return Modelled(wanted.groups * ranks, _named(way, ranks, wanted), link.name, seconds, speedup, each, waited)


def _named(way: str, ranks: int, wanted: Wanted) -> str:
    groups = f"guidance={wanted.groups}, " if wanted.groups > 1 else ""
    return f"{groups}tokens={ranks}{', ' if way else ''}{way}"
