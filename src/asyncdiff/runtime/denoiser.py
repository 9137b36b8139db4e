"""One denoiser of one pipeline, call by call: what has to be looked at before a call can be run, and what was done."""

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, Protocol

from asyncdiff.call import Call
from asyncdiff.denoiser.form import Signature
from asyncdiff.exchange.agreement import Statement
from asyncdiff.report import Counts, DenoiserReport, GuidanceCounts
from asyncdiff.runtime.context import Context
from asyncdiff.runtime.deferred import settled
from asyncdiff.runtime.dividing import Divisions
from asyncdiff.runtime.lane import Lane, Prospect
from asyncdiff.runtime.statements import Fingerprint, about_settings, about_steps
from asyncdiff.runtime.stream import Arguments, Streams


class Outer(Protocol):
    """What comes before the runtime: it takes calls apart, and has the runtime compute the parts."""

    streams: Streams
    counts: GuidanceCounts

    def __call__(self, call: Call, whole: Arguments) -> Any: ...

    def end(self) -> None: ...


class DenoiserRuntime:
    """Takes the calls of one denoiser.

    Attributes:
        context: the denoiser.
        outer: what comes before this, if anything.
    """

    def __init__(self, context: Context, lanes: int) -> None:
        """Get ready for a denoiser's calls.

        Args:
            lanes: how many groups of ranks compute in this process, each with calls of its own.
        """
        self.context = context
        self.outer: Outer | None = None
        self._divisions = Divisions(context)
        self._fingerprint = Fingerprint(context.name, context.denoiser, context.share)
        self._about_settings = about_settings(context.settings)
        self._lanes = [Lane(context, self._divisions, number) for number in range(lanes)]
        self._computing = self._lanes[0]  # the one that computes, or has computed last
        self._generation = -1
        self._forms: dict[Signature, str] = {}  # of this generation's calls, in words
        self._has_remarked = False
        context.clock.on_step.append(self._end_step)

    @property
    def counts(self) -> Counts:
        """What the group of ranks that computes, or has computed last, did in this generation."""
        return self._computing.counts

    def detach(self) -> None:
        """Leave the denoiser as it was."""
        self.context.clock.on_step.remove(self._end_step)
        self.context.units.remove()
        self.end()

    def denoise(self, call: Call) -> Any:
        """Stands in for a call of the denoiser."""
        if self.outer is not None:
            call = call.giving(settled(call.given))
        clock = self.context.clock
        if self._generation != clock.generation:
            self._look_again(call)
        arguments = self._arguments(call, self.context.branch())
        clock.call(arguments.times)
        self._remark_other_form(call, arguments)
        streams = self._computing.streams if self.outer is None else self.outer.streams
        if streams.begins_step(arguments, clock.steps):
            if streams.begins_again(arguments):
                clock.begin_again()
                self._look_again(call)
            else:
                clock.tick()
        if self.outer is not None:
            return self.outer(call, arguments)
        return self._computing.compute(call, arguments)

    def begin_part(self, lane: int, context: Any, call: Call) -> Prospect:
        """Get ready to compute a part of a call on a group of ranks.

        Args:
            lane: which of the groups of this process.
            context: the same for all parts that belong to one stream.
            call: the part.
        """
        self._computing = self._lanes[lane]
        return self._computing.begin(call, self._arguments(call, context))

    def compute_part(self, lane: int, prospect: Prospect, within: bool) -> Any:
        """Compute the part of a call that `begin_part` has got ready.

        Args:
            within: whether forecasts are within the bound, in all parts that are computed at the same time.
        """
        self._computing = self._lanes[lane]
        return self._computing.finish(prospect, within)

    def whole(self, call: Call) -> Any:
        """The ordinary result of a call, whatever the schedule says; all ranks of the group take part."""
        if not self.context.schedule.chained:
            return call.with_own_containers()()
        if self._divisions.structure is None:
            self._divisions.look_again()
        return self._computing.whole(call, self._arguments(call, self.context.branch()))

    def kind_of_call(self, arguments: Arguments) -> Hashable:
        """What decides how a call runs, apart from values."""
        return self._divisions.structure, arguments.signature

    def report(self) -> DenoiserReport:
        """What this generation did so far."""
        own = self.counts
        counts = replace(own, full=own.full.copy(), inserted=own.inserted.copy(), kinds=own.kinds.copy())
        division = self._computing.division
        guidance = GuidanceCounts() if self.outer is None else replace(self.outer.counts)
        if division is None:
            return DenoiserReport(self.context.name, (), (), (), 0, 0, counts, guidance.speedup, guidance=guidance)
        units, partition = division.graph.units, division.partition
        return DenoiserReport(
            name=self.context.name,
            components=tuple(tuple(units[unit].name for unit in sorted(own)) for own in partition.components),
            shares=partition.shares,
            live_edges=tuple(
                tuple(f"{units[edge.unit].name} → {edge.leaf}" for edge in sorted(reads)) for reads in partition.reads
            ),
            bytes_per_round=division.bytes_per_round,
            held_bytes=sum(lane.held_bytes for lane in self._lanes),
            counts=counts,
            bridge=division.schedule.bridge,
            modelled_speedup=counts.speedup * guidance.speedup,
            guidance=guidance,
            bounds=division.bounds,
        )

    def end(self) -> None:
        """The generation is over: nothing of it is kept but what the report tells. Waits for what is on its way."""
        for lane in self._lanes:
            lane.end()
        if self.outer is not None:
            self.outer.end()

    def check_numbers(self) -> None:
        """See `Lane.check_numbers`."""
        for lane in self._lanes:
            lane.check_numbers()

    def forget(self) -> None:
        """The generation is broken off: nothing of it is kept, and nothing waited for."""
        for lane in self._lanes:
            lane.forget()
        if self.outer is not None:
            self.outer.end()

    def _end_step(self, timestep: Any) -> None:
        for lane in self._lanes:
            lane.end_step(timestep)

    def compare_again(self) -> None:
        """At the end of a generation in which it was called: what one rank alone has done to it shows then."""
        if self._generation == self.context.clock.generation:
            self._compare(lambda: self._fingerprint.statements(self._divisions.look.structure()))

    def _compare(self, of_denoiser: Callable[[], list[Statement]]) -> None:
        what = f"what the denoiser {self.context.name!r} is made of"
        steps = about_steps(self.context.clock.timetable)
        self.context.check(lambda: [self._about_settings, steps, *of_denoiser()], what)

    def _remark_other_form(self, call: Call, arguments: Arguments) -> None:
        """Ranks of which one alone goes over to calls of another form wait for each other, at different places."""
        form, step = arguments.signature, self.context.clock.steps + 1
        if form in self._forms:
            return
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in call.tensors)
        if self._forms and step > 1:
            before = next(reversed(self._forms.values()))
            self._has_remarked = True
            self.context.exchange.remark(
                f"from step {step} on its calls are of {shapes}; before, they were of {before}"
            )
        self._forms[form] = shapes

    def _arguments(self, call: Call, context: Any) -> Arguments:
        parts = self.context.form.read(call)
        signature = (self._divisions.surroundings(), tuple(parts.times), parts.signature)
        return Arguments(signature, context, parts.tensors, parts.times)

    def _look_again(self, call: Call) -> None:
        """Once a generation: count anew, and see what of the denoiser has changed."""
        self._generation = self.context.clock.generation
        self._forms.clear()
        if self._has_remarked:
            self._has_remarked = False
            self.context.exchange.remark("")
        for lane in self._lanes:
            lane.count_anew()
        self._computing = self._lanes[0]
        self._divisions.look_again()
        self._compare(lambda: self._fingerprint.statements(self._divisions.structure))
        self._divisions.choose_axis(call)
